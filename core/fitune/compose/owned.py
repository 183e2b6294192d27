"""Gradients that a strategy takes in the midst of the backward pass: what the loop asks of it in their place.

Nothing of such a step can be put off: when the last gradient comes, weights have been changed by the first. So it is
one micro-batch, in one process, and by nothing that is known of all gradients together.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fitune.compose.calling import call_plugin, title, wrong
from fitune.errors import PluginError, RunError
from fitune.plugin.gradients import GradientOwner
from fitune.plugin.recipe import Use
from fitune.plugin.records import MemoryStrategy
from fitune.plugin.strategy import Plan, Strategy

Pair = tuple[nn.Parameter, nn.Parameter]
"""A parameter of the model, and its master."""


class Owned:
    """What one strategy owns. Parameters know it by a weak reference alone: a model can be freed at once."""

    def __init__(self, use: Use[MemoryStrategy[Any]], owner: GradientOwner, pairs: Sequence[Pair]) -> None:
        """`pairs` are the owner's own. Raises `PluginError` where the strategy's record does not say what it does."""
        if "gradients" not in use.record.makes:
            raise PluginError(
                f'{title(use)}: own_gradients gives something, and its record must say so: makes=("gradients",)'
            )
        self.name = use.record.name
        self.masters = {id(master) for _, master in pairs}
        self._use, self._owner, self._pairs = use, owner, list(pairs)
        self._taken: set[int] | None = None
        """The parameters whose gradients came in this backward pass; None outside of one."""
        self._begun = False
        for parameter, master in self._pairs:
            parameter.register_post_accumulate_grad_hook(partial(_arrived, weakref.ref(self), weakref.ref(master)))

    def begin(self) -> None:
        """A step begins."""
        self._begun = False

    def expect(self, loss: Tensor, units: float) -> None:
        """Its backward pass begins. Raises `RunError` for a second one."""
        if self._begun:
            raise RunError(
                f'"{self.name}" changes weights in the backward pass, and something makes two of them in one step. '
                f'Remove [[memory.strategy]] "{self.name}"'
            )
        call_plugin(self._use, self._owner.begin, loss.detach(), units)
        self._begun, self._taken = True, set()

    def complete(self) -> None:
        """The backward pass is through: parameters that it gave no gradient have one of zeros, as in every step."""
        if self._taken is None:
            return
        for parameter, master in self._pairs:
            if id(parameter) not in self._taken:
                parameter.grad = torch.zeros_like(parameter)
                self.take(parameter, master)
        self._taken = None

    def leave(self) -> None:
        """The backward pass was cut short."""
        self._taken = None
        for parameter, _ in self._pairs:
            parameter.grad = None

    def take(self, parameter: Tensor, master: nn.Parameter) -> None:
        """A gradient has come; outside of a step it is nobody's, and stays where it is. Raises `RunError` where another
        part of it came before.
        """
        if self._taken is None or parameter.grad is None:
            return
        if id(parameter) in self._taken:
            raise RunError(
                f'"{self.name}" changes weights as their gradients come, and that of one of shape '
                f'{list(parameter.shape)} comes in two parts. Remove [[memory.strategy]] "{self.name}"'
            )
        self._taken.add(id(parameter))
        gradient, parameter.grad = parameter.grad, None
        call_plugin(self._use, self._owner.take, master, gradient)

    def norms(self) -> dict[int, Tensor]:
        """Of each gradient, not divided, by its master's id."""
        masters = self._owner.masters
        found: object = call_plugin(self._use, self._owner.norms)
        if not isinstance(found, Tensor) or found.shape != (len(masters),):
            raise wrong(self._use, "norms", found, f"a tensor [{len(masters)}]")
        return {id(master): norm for master, norm in zip(masters, found.unbind(), strict=True)}

    def changed(self) -> int:
        """How many masters this step has changed."""
        return call_plugin(self._use, self._owner.changed) if self._begun else 0


def _arrived(owned: weakref.ref[Owned], master: weakref.ref[nn.Parameter], parameter: Tensor) -> None:
    one, of = owned(), master()
    if one is not None and of is not None:
        one.take(parameter, of)


def owned_by(
    strategies: Sequence[tuple[Use[MemoryStrategy[Any]], Strategy]],
    pairs: Sequence[Pair],
    optimizer: torch.optim.Optimizer,
) -> Owned | None:
    """What one of the strategies owns of these parameters; None where none asks. Raises `PluginError`."""
    masters = [master for _, master in pairs]
    found: list[Owned] = []
    for use, strategy in strategies:
        owner: object = call_plugin(use, strategy.own_gradients, masters, optimizer)
        if owner is None:
            continue
        if not isinstance(owner, GradientOwner):
            raise wrong(use, "own_gradients", owner, "a fitune.GradientOwner, or None")
        own = {id(master) for master in owner.masters}
        if not own <= {id(master) for master in masters}:
            raise wrong(use, "own_gradients", owner, "one whose masters are among those that it was offered")
        found.append(Owned(use, owner, [pair for pair in pairs if id(pair[1]) in own]))
    if len(found) > 1:
        names = " and ".join(f'"{one.name}"' for one in found)
        raise PluginError(f"the memory strategies {names} both take gradients as they come. Keep one of them")
    return found[0] if found else None


def must_suit_owner(uses: Sequence[Use[MemoryStrategy[Any]]], plan: Plan) -> str:
    """Why no micro-batch can be recorded beside a strategy that takes gradients as they come; empty without one.

    Raises `RunError` where a step is more than it can have.
    """
    name = next((use.record.name for use in uses if "gradients" in use.record.makes), "")
    if not name:
        return ""
    if plan.processes > 1:
        raise RunError(
            f'"{name}" changes weights as gradients come, before {plan.processes} processes could sum theirs. Train on '
            f'one GPU, or remove [[memory.strategy]] "{name}"'
        )
    if plan.accumulation > 1:
        raise RunError(
            f'"{name}" changes weights as gradients come, so that a step is one micro-batch, and here it is '
            f'{plan.accumulation}. Accumulate nothing, or remove [[memory.strategy]] "{name}"'
        )
    return f"{name} changes weights within it"


def must_not_be_scaled(owned: Owned) -> RunError:
    """What is said where the loss is scaled, of which too large a scale is told by all gradients together."""
    return RunError(
        f'"{owned.name}" changes weights as gradients come, and in float16 a step may be left out when all have come. '
        f'Set the model\'s dtype to "bfloat16", or remove [[memory.strategy]] "{owned.name}"'
    )
