"""The state of a run, captured and put into another composition of it: from there on both are equal to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fitune import MemoryStrategy, NoOptions, OptimizerSettings, RunError, Strategy, hookimpl
from fitune.checkpoint.module_state import changed, module_state, set_module_state
from fitune.checkpoint.state import TrainingState, capture, copied, restore
from fitune.compose import loss_scaling
from fitune.compose.parts import Parts
from fitune.testing import write_recipe
from fitune.train.loop import train
from fitune.train.position import Position
from support.states import CASES, assert_same, tensors, values_of
from support.tiny import losses_of, parts_of


def _state_after(parts: Parts, steps: int) -> tuple[TrainingState, list[float | None]]:
    """The state after so many steps, and the losses of the steps behind it."""
    loaded = module_state(parts.run.model)
    reports = train(parts)
    list(islice(reports, steps))
    state = capture(parts, steps, loaded)
    return state, losses_of(reports)


@pytest.mark.parametrize("case", CASES)
def test_another_composition_goes_on_as_the_first(recipe_path: Path, case: str) -> None:
    overrides = ["train.steps=8", *CASES[case]]  # more than an epoch of six steps
    first = parts_of(recipe_path, *overrides)
    state, expected = _state_after(first, 3)
    second = parts_of(recipe_path, *overrides, "seed=42")
    torch.manual_seed(99)
    restore(second, state)
    assert losses_of(train(second, Position(3))) == expected
    assert_same(values_of(second), values_of(first))
    assert second.scheduler.last_epoch == first.scheduler.last_epoch


def test_the_state_is_not_changed_by_what_is_made_of_it(recipe_path: Path) -> None:
    first = parts_of(recipe_path, "train.steps=4")
    state, expected = _state_after(first, 2)
    before = copied({"masters": state.masters, "optimizer": state.optimizer})
    for _ in range(2):
        second = parts_of(recipe_path, "train.steps=4")
        restore(second, state)
        assert losses_of(train(second, Position(2))) == expected
    assert_same(tensors(before), [*state.masters, *tensors(state.optimizer)])


def test_the_scale_of_the_loss_goes_on(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scaling, "INITIAL_SCALE", 2.0**24)
    overrides = ['model.dtype="float16"', "train.steps=4"]
    first = parts_of(recipe_path, *overrides)
    state, _ = _state_after(first, 2)
    second = parts_of(recipe_path, *overrides)
    restore(second, state)
    assert second.step.scaling is not None
    assert second.step.scaling.state() == state.scaling
    assert second.step.scaling.scale < 2.0**24


class _Wide(torch.optim.SGD):
    """Keeps a sum in float64, which `load_state_dict` would round to the parameter's type."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            total = self.state[p].setdefault("total", torch.zeros_like(p, dtype=torch.float64))
            total += 1 / 3


class _MakesWide(Strategy):
    def make_optimizer(
        self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings
    ) -> torch.optim.Optimizer | None:
        return _Wide(parameters, lr=0.1, momentum=0.5)


class Wide:
    """A plugin: strategy `wide`."""

    @hookimpl
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[NoOptions]]:
        """Offer it."""
        yield MemoryStrategy(name="wide", summary="Wide", options=NoOptions, make=lambda options: _MakesWide())


def test_state_of_another_type_keeps_it(recipe_path: Path) -> None:
    uses = 'memory.strategy=[{use="wide"}]'
    state, _ = _state_after(parts_of(recipe_path, uses, plugins=[Wide()]), 1)
    other = parts_of(recipe_path, uses, plugins=[Wide()])
    list(train(other, Position(2)))
    restore(other, state)
    found = other.step.optimizer.state
    assert {p.dtype for p in other.step.trainables.masters} == {torch.float32}
    assert all(torch.equal(v["total"], torch.full_like(v["total"], 1 / 3)) for v in found.values())
    assert {v["total"].dtype for v in found.values()} == {torch.float64}


def test_another_runs_state_is_refused(recipe_path: Path) -> None:
    state, _ = _state_after(parts_of(recipe_path), 1)
    for other, why in (  # on 0.1: "8 tensors there, 8 tensors here"
        (
            'adapter={use="lora", r=2}',
            r"lora_A\.\S* is \[4, 32\] there, and \[2, 32\] here\. .*\[adapter\] r$",
        ),
        ('adapter={use="lora", targets=["q_proj"]}', r"8 tensors train there, and 4 here\. Keep \[adapter\] targets"),
        ('memory.strategy=[{use="adamw-8bit"}]', r"it was trained by .*AdamW, and here is .*\. Keep the optimizer"),
    ):
        with pytest.raises(RunError, match=f"what was trained cannot be taken over: .*{why}"):
            restore(parts_of(recipe_path, other), state)


class _Adaptive(nn.Module):
    """As transformers' dynamic rotary embeddings: a buffer for the longest row so far, and its length."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.longest = 4
        self.limit: int | None = None
        self.register_buffer("frequencies", torch.ones(4), persistent=False)
        self.original = self.frequencies

    def forward(self, length: int) -> None:
        if length > self.longest:
            self.longest = length
            self.register_buffer("frequencies", torch.full((4,), 1 / length), persistent=False)


def test_what_modules_change_in_themselves_is_put_back() -> None:
    rotary = _Adaptive()
    model = nn.Sequential(rotary, nn.BatchNorm1d(3), nn.Dropout())
    loaded = module_state(model)
    rotary(9)
    model[1](torch.randn(5, 3))
    model[2].eval()
    now = changed(loaded, module_state(model))
    assert dict(now.values) == {("0", "longest"): 9, ("2", "training"): False}
    assert set(now.buffers) == {
        ("0", "frequencies"), ("1", "running_mean"), ("1", "running_var"), ("1", "num_batches_tracked"),
    }  # fmt: skip
    set_module_state(model, loaded)
    again = changed(loaded, module_state(model))
    assert (dict(again.values), dict(again.buffers)) == ({}, {})
    assert torch.equal(rotary.original, torch.ones(4))
    set_module_state(model, now)
    assert rotary.frequencies.tolist() == pytest.approx([1 / 9] * 4)
    assert rotary.longest == 9
    assert "0.frequencies" not in model.state_dict()  # still not saved


def test_dropout_layers_draw_as_before(tmp_path: Path) -> None:
    """The generators' state is that of before the step, wherever they stand when the state is taken."""
    recipe = write_recipe(tmp_path / "recipe", {"adapter": {"use": "lora", "dropout": 0.5}})
    parts = parts_of(recipe)
    at = Position()
    loaded = module_state(parts.run.model)
    at.begin(parts, "step")
    torch.rand(10)
    state = capture(parts, 0, loaded, at.random)
    other = parts_of(recipe)
    expected = losses_of(train(other))
    restore(parts, state)
    assert losses_of(train(parts)) == expected


@pytest.mark.parametrize("fused", [True, False])
def test_state_lies_as_its_parameter_does(recipe_path: Path, fused: bool, tmp_path: Path) -> None:
    """Files hold dense rows; a fused step pairs the numbers of a parameter and its state by where they lie."""
    from fitune.checkpoint.encoding import decode, encode

    turned = [MemoryStrategy(name="turned", summary="x", options=NoOptions, make=lambda _: _Turned(fused=fused))]

    class Plugin:
        @hookimpl
        def ft_memory_strategies(self) -> Iterable[MemoryStrategy[NoOptions]]:
            return turned

    overrides = ["train.steps=6", 'memory.strategy=[{use="turned"}]']
    first = parts_of(recipe_path, *overrides, plugins=[Plugin()])
    state, expected = _state_after(first, 3)
    stored: dict[str, Tensor] = {}
    told = encode(state.optimizer, stored, "optimizer")
    read = replace(state, optimizer=decode(told, stored))
    second = parts_of(recipe_path, *overrides, plugins=[Plugin()])
    restore(second, read)
    states = second.step.optimizer.state
    lies = [(m.stride(), *(states[m][key].stride() for key in ("exp_avg", "exp_avg_sq"))) for m in states]
    assert all(len(set(strides)) == 1 for strides in lies)
    assert any(strides[0][0] == 1 and strides[0][1] > 1 for strides in lies)
    assert losses_of(train(second, Position(3))) == expected
    assert_same(values_of(second), values_of(first))


class _Turned(Strategy):
    """Adapters whose matrices lie the other way round, as those of `fast-layers` do."""

    def __init__(self, *, fused: bool) -> None:
        self.fused = fused

    def prepare(self, model: Any) -> Any:
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() == 2:
                parameter.data = parameter.data.t().contiguous().t()
        return model

    def make_optimizer(self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=settings.learning_rate, fused=self.fused)
