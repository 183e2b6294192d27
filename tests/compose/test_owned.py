"""Gradients that a strategy takes as they come: what the loop asks of it, and what it leaves to others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fitune import MemoryStrategy, NoOptions, PluginError, RunError, Strategy
from fitune.compose.owned import Owned
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import forecast
from fitune.memory.shapes import of_recipe
from fitune.plugin.recipe import Use
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from fitune.train.loop import train as steps_of
from support.architectures import recipe_of
from support.made_plugins import giving
from support.tiny import assert_close, parts_of

UNCLIPPED = "train.max_grad_norm=0"


class Plain:
    """Stochastic gradient descent as gradients come (`fitune.GradientOwner`)."""

    def __init__(self, masters: Sequence[nn.Parameter], rate: float) -> None:
        self.masters, self.rate = masters, rate
        self.units, self.found = 0.0, dict[int, Tensor]()

    def begin(self, loss: Tensor, units: float) -> None:
        assert not loss.requires_grad
        self.units, self.found = units, dict[int, Tensor]()

    @torch.no_grad()
    def take(self, master: nn.Parameter, gradient: Tensor) -> None:
        self.found[id(master)] = gradient.float().norm()
        master.add_(gradient.float().mul(1 / self.units), alpha=-self.rate)

    def norms(self) -> Tensor:
        return torch.stack([self.found[id(master)] for master in self.masters])

    def changed(self) -> int:
        return len(self.found)


class Owning(Strategy):
    """Owns every `step`-th master, and steps all by the same rule."""

    def __init__(self, every: int, own: bool = True) -> None:
        self.every, self.own = every, own

    def make_optimizer(self, parameters: Any, settings: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=settings.learning_rate)

    def own_gradients(self, masters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> Plain | None:
        return Plain(masters[:: self.every], optimizer.param_groups[0]["lr"]) if self.own else None


def record(made: Strategy, *makes: Any) -> MemoryStrategy[NoOptions]:
    """Of a strategy."""
    return MemoryStrategy(name="mine", summary="Mine", options=NoOptions, make=lambda options: made, makes=makes)


def run(path: Path, made: Strategy, *overrides: str, makes: tuple[str, ...] = ("optimizer", "gradients")) -> Any:
    """A composed run with it."""
    how = ('memory.strategy=[{use="mine"}]', 'adapter={use="none"}', 'train.schedule="constant"', *overrides)
    return parts_of(path, UNCLIPPED, *how, plugins=[giving(record(made, *makes))])


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_owned_is_the_loops(recipe_path: Path, every: int, dtype: str) -> None:
    """Norms are of all, in the order of the parameters."""
    norms, masters = [], []
    for own in (True, False):
        parts = run(recipe_path, Owning(every, own), f'model.dtype="{dtype}"', "train.learning_rate=0.1")
        reports = [one for one in steps_of(parts) if hasattr(one, "grad_norm")]
        norms.append([one.grad_norm for one in reports])
        masters.append([m.detach() for m in parts.step.trainables.masters])
    assert norms[0][0] == norms[1][0] > 0
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert_close(masters[0], masters[1])


def test_gradients_that_are_kept_are_those_of_others(recipe_path: Path) -> None:
    parts = run(recipe_path, Owning(2))
    trainables = parts.step.trainables
    trainables.keep = True
    list(steps_of(parts))
    assert [m.grad is None for m in trainables.masters] == [not at % 2 for at in range(len(trainables.masters))]


class _Gives(Strategy):
    def __init__(self, given: Any) -> None:
        self.given = given

    def own_gradients(self, masters: Any, optimizer: Any) -> Any:
        return self.given(masters)


@pytest.mark.parametrize(
    ("given", "makes", "said"),
    [
        (lambda masters: 3, ("gradients",), "own_gradients gave a int, and must give a fitune.GradientOwner, or None"),
        (lambda masters: Plain(masters, 1), (), r'own_gradients gives something, and .* makes=\("gradients",\)'),
        (lambda masters: Plain([nn.Parameter(torch.ones(1))], 1), ("gradients",), "one whose masters are among those"),
    ],
)
def test_what_a_strategy_gives_wrongly_is_told(recipe_path: Path, given: Any, makes: Any, said: str) -> None:
    with pytest.raises(PluginError, match=f'memory strategy "mine": {said}' if given(()) == 3 else said):
        run(recipe_path, _Gives(given), makes=makes)


def test_norms_that_are_none(recipe_path: Path) -> None:
    class Without(Plain):
        def norms(self) -> Tensor:
            return torch.ones(2)

    with pytest.raises(
        PluginError, match=r'memory strategy "mine": norms gave a Tensor, and must give a tensor \[\d+\]'
    ):
        list(steps_of(run(recipe_path, _Gives(lambda masters: Without(masters, 0.1)), makes=("gradients",))))


def owned(*parameters: nn.Parameter) -> tuple[Owned, Plain]:
    """Of parameters that are their own masters."""
    plain = Plain(parameters, 0.5)
    use = Use(record=record(Strategy(), "gradients"), options=NoOptions())
    return Owned(use, plain, [(p, p) for p in parameters]), plain


def test_a_second_backward_pass_in_a_step_is_refused() -> None:
    weight = nn.Parameter(torch.ones(3))
    one, _ = owned(weight)
    one.begin()
    loss = (2 * weight).sum()
    one.expect(loss, 1.0)
    loss.backward()
    one.complete()
    assert weight.tolist() == [0, 0, 0]
    with pytest.raises(RunError, match='"mine" changes weights in the backward pass, and something makes two of them'):
        one.expect(loss, 1.0)
    one.begin()
    one.expect(loss, 1.0)  # of the next step


def test_a_gradient_in_two_parts_is_refused() -> None:
    """As reentrant checkpoints of a layer would give it that is used twice."""
    weight = nn.Parameter(torch.ones(3))
    one, plain = owned(weight)
    one.begin()
    one.expect(torch.zeros(()), 1.0)
    weight.sum().backward()
    with pytest.raises(RunError, match=r"that of one of shape \[3\] comes in two parts. Remove"):
        weight.sum().backward()
    assert plain.changed() == 1


def test_outside_of_a_step_gradients_are_nobodys() -> None:
    weight = nn.Parameter(torch.ones(3))
    one, plain = owned(weight)
    weight.sum().backward()
    assert torch.equal(weight.grad if weight.grad is not None else weight, torch.ones(3))
    assert weight.tolist() == [1, 1, 1]
    assert one.changed() == 0
    assert plain.units == 0


def test_a_model_that_is_let_go_is_gone() -> None:
    """Without waiting for the garbage collector: the card's memory is wanted at once."""
    import gc
    import weakref

    weight = nn.Parameter(torch.ones(3))
    one, plain = owned(weight)
    seen = weakref.ref(weight)
    gc.disable()
    try:
        del one, plain, weight
        gone = seen() is None
    finally:
        gc.enable()
    assert gone


class Masters(Owning):
    """Gives masters of its own."""

    def __init__(self, make: Any) -> None:
        super().__init__(1)
        self.make = make

    def make_master(self, parameter: nn.Parameter) -> Any:
        return self.make(parameter)


def test_an_owner_has_masters_as_it_likes(recipe_path: Path) -> None:
    """None for matrices, in float64 for vectors: both train, and the model has what they are."""
    made = Masters(lambda p: p if p.ndim > 1 else nn.Parameter(p.detach().double()))
    parts = run(recipe_path, made, 'model.dtype="bfloat16"', "train.learning_rate=0.5")
    before = [p.detach().clone() for p in parts.step.trainables.parameters]
    list(steps_of(parts))
    for (parameter, master), one in zip(parts.step.trainables.pairs, before, strict=True):
        assert (master is parameter) is (parameter.ndim > 1)
        assert master.dtype == (torch.bfloat16 if parameter.ndim > 1 else torch.float64)
        assert torch.equal(parameter, master.to(torch.bfloat16))
        assert not torch.equal(parameter, one)


def test_a_forecast_has_no_masters_where_there_are_none(tmp_path: Path) -> None:
    recipe_of(tmp_path, "llama", lora=False, length=16)
    kinds = []
    for make in (lambda p: None, lambda p: p):
        registry = open_registry(giving(record(Masters(make), "optimizer", "gradients")))
        recipe = read_recipe(tmp_path / "recipe.toml", registry, ['memory.strategy=[{use="mine"}]', UNCLIPPED])
        found = forecast(recipe, of_recipe(recipe), find_card("h100"))
        kinds.append({entry.kind: entry.bytes for entry in found.ledger.entries})
    assert kinds[0]["master weights"] > 2 * kinds[0]["weights"] * 0.9
    assert "master weights" not in kinds[1]


@pytest.mark.parametrize("given", [3, nn.Parameter(torch.ones(7))])
def test_a_master_of_another_shape_is_refused(recipe_path: Path, given: Any) -> None:
    said = rf'memory strategy "mine": make_master gave a {type(given).__name__}, and must give a parameter of the shape'
    with pytest.raises(PluginError, match=said):
        run(recipe_path, Masters(lambda p: given))
