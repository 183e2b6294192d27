"""Memory strategy `schedule-free`: AdamW that averages weights in place of a schedule, by the package schedulefree.

Defazio et al., "The Road Less Scheduled", arXiv 2405.15682. It trains at weights between the newest and their average;
what is evaluated and saved is the average. The state is as large as AdamW's, and while the model has the average, the
weights that it trains at stand beside it: 4 bytes a number that trains, when there are no gradients.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

from annotated_types import Ge

from fitune import MemoryStrategy, OptimizerSettings, Problem, Recipe, Strategy, hookimpl
from fitune_plugins.memory.optimizers import in_few_launches

if TYPE_CHECKING:
    import torch
    from torch import nn

SCHEDULES = ("constant", "constant_with_warmup")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleFreeOptions:
    """Options of the strategy `schedule-free`."""

    power: Annotated[float, Ge(0)] = 0.0
    """The weights of step t count t to this power in the average: more of the newest with more."""


class ScheduleFree(Strategy):
    """Makes the optimizer, and gives the average."""

    def __init__(self, options: ScheduleFreeOptions) -> None:
        self.options = options
        self._optimizer: Any = None

    def make_optimizer(self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
        """Make it, with the groups that AdamW has otherwise."""
        from schedulefree import AdamWScheduleFree

        from fitune import decay_groups

        self._optimizer = AdamWScheduleFree(
            decay_groups(parameters),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            r=self.options.power,
            foreach=in_few_launches(parameters),
        )
        self._optimizer.train()
        return cast("torch.optim.Optimizer", self._optimizer)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """The average, in the masters."""
        return _averaged(self._optimizer)


@contextlib.contextmanager
def _averaged(optimizer: Any) -> Iterator[None]:
    """Go to the average and back: by a copy, for what the optimizer computes back differs in its last digits."""
    import torch

    moved = [p for group in optimizer.param_groups for p in group["params"] if "z" in optimizer.state.get(p, {})]
    if not moved:
        yield
        return
    with torch.no_grad():
        trained = [parameter.clone() for parameter in moved]
    optimizer.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, trained)
        for group in optimizer.param_groups:
            group["train_mode"] = True


def _is_there(options: ScheduleFreeOptions) -> Iterable[Problem]:
    if importlib.util.find_spec("schedulefree") is None:
        fix = "Install it: pip install 'fitune[schedule-free]'"
        yield Problem(key="use", what="the package schedulefree is not installed", fix=fix)


@hookimpl
def ft_check(recipe: Recipe) -> Iterable[Problem]:
    """Refuse a schedule beside it, and a beta1 that it would divide by."""
    if not any(isinstance(use.options, ScheduleFreeOptions) for use in recipe.strategies):
        return
    if recipe.train.schedule not in SCHEDULES:
        what = f'"schedule-free" averages weights in place of a schedule, and "schedule" is "{recipe.train.schedule}"'
        fix = 'Set schedule = "constant", or "constant_with_warmup" with warmup_steps'
        yield Problem(key="train.schedule", what=what, fix=fix)
    if not recipe.train.beta1:
        what = '"schedule-free" trains between the newest weights and their average by "beta1", which is 0'
        yield Problem(key="train.beta1", what=what, fix="Set it, e.g. 0.9")


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[ScheduleFreeOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name="schedule-free",
        summary="AdamW that averages weights in place of a schedule (schedulefree); the average is what is saved",
        exact=False,
        makes=("optimizer",),
        options=ScheduleFreeOptions,
        make=ScheduleFree,
        check=_is_there,
    )
