"""Models in float16 train by dynamic loss scaling: no gradient is lost to underflow, none that overflows is used."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fitune import RunError, StepReport
from fitune.cli.console import RunConsole
from fitune.compose import loss_scaling as loss_scaling_module
from fitune.compose.loss_scaling import GROWTH_INTERVAL, INITIAL_SCALE, MOST_SKIPPED, LossScaling, loss_scaling
from fitune.compose.optimizer import Trainables
from fitune.compose.parts import Parts
from fitune.compose.step import Step
from fitune.testing import write_recipe
from fitune.train.loop import train as steps_of
from support.tiny import adapter, assert_close, gradients, losses, make_batch, metrics, parts_of, train

FLOAT16 = 'model.dtype="float16"'
FINITE, INFINITE = torch.tensor(1.0), torch.tensor(float("inf"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe in float16."""
    return write_recipe(tmp_path / "recipe", {"model": {"dtype": "float16"}})


def _reports(parts: Parts) -> list[StepReport]:
    return [report for report in steps_of(parts) if isinstance(report, StepReport)]


def _values(parts: Parts) -> list[Tensor]:
    state: Any = parts.step.optimizer.state
    moments = [value for values in state.values() for value in values.values() if isinstance(value, Tensor)]
    return [t.detach().clone() for t in (*parts.step.trainables.parameters, *parts.step.trainables.masters, *moments)]


STRATEGIES = ["", '{use="chunked-loss", tokens=5}, {use="gradient-checkpointing"}', '{use="accumulation", steps=2}']


@pytest.mark.parametrize("use", ['"none"', '"lora", targets="all-linear"'])
@pytest.mark.parametrize("strategies", STRATEGIES)
def test_it_trains_as_in_float32(recipe: Path, tmp_path: Path, use: str, strategies: str) -> None:
    overrides = [f"adapter={{use={use}}}", f"memory.strategy=[{strategies}]", "train.steps=10"]
    train(recipe, tmp_path / "half", *overrides)
    train(recipe, tmp_path / "full", *overrides, 'model.dtype="float32"')
    found, expected = losses(tmp_path / "half"), losses(tmp_path / "full")
    assert found == pytest.approx(expected, rel=5e-3)
    assert found[-1] < found[0] - 1
    assert found != expected
    norms = [[line["grad_norm"] for line in metrics(tmp_path / run)] for run in ("half", "full")]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_gradients_do_not_depend_on_the_scale(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = gradients(recipe, "train.steps=1")[0]
    monkeypatch.setattr(loss_scaling_module, "INITIAL_SCALE", 2.0**10)
    assert_close(gradients(recipe, "train.steps=1")[0], plain, relative=0.01)


@pytest.mark.parametrize(
    ("scale", "targets", "factor"), [(2.0**16, 1, 2.0**16), (2.0**16, 3, 2.0**14), (2.0**16, 2**18, 0.25), (1, 3, 0.25)]
)
def test_the_factor_is_a_power_of_two(scale: float, targets: int, factor: float) -> None:
    scaling = LossScaling()
    scaling.scale = scale
    assert scaling.factor(targets) == factor


class _Faint(nn.Module):
    """Its gradient passes a number of float16 that is smaller than any."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, dtype=torch.float16))

    def forward(self) -> Tensor:
        return (self.weight.float() * 1e-4).to(torch.float16).float().sum() * 1e-5


def _step(model: nn.Module, scaling: LossScaling | None) -> Step:
    trainables = Trainables(model, masters=True)
    return Step(
        model=cast(Any, model),
        loss=lambda module, batch: module(),
        trainables=trainables,
        optimizer=torch.optim.SGD(trainables.masters, lr=1.0),
        strategies=(),
        max_grad_norm=0.0,
        device=torch.device("cpu"),
        scaling=scaling,
    )


def test_gradients_that_would_underflow_are_kept() -> None:
    """1e-5 x 1e-4 is 1e-9, and float16 ends at 6e-8."""
    batch = make_batch([([1, 2, 3], [1, 2, 3])])
    assert _step(_Faint(), None).make([batch], 2)[1].item() == 0
    found = _step(_Faint(), LossScaling()).make([batch, batch], 4)[1].item()
    assert found == pytest.approx(4**0.5 * 2 * 1e-9 / 4, rel=1e-3)  # of four weights, by two rows, over four targets


def test_an_overflow_is_skipped_and_the_scale_halved(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a scale at which no gradient fits, down to one at which all do."""
    monkeypatch.setattr(loss_scaling_module, "INITIAL_SCALE", 2.0**24)
    parts = parts_of(recipe, "train.steps=14", "train.schedule='linear'")
    before, reports = _values(parts), []
    for report in steps_of(parts):
        assert isinstance(report, StepReport)
        reports.append(report)
        same = all(torch.equal(a, b) for a, b in zip(_values(parts), before, strict=False))
        assert same is all(r.skipped for r in reports)
        assert all(p.grad is None for p in (*parts.step.trainables.masters, *parts.step.trainables.parameters))
    skipped = [report.skipped for report in reports]
    first = skipped.index(False)
    assert 1 <= first <= 10
    assert skipped == [True] * first + [False] * (14 - first)
    assert [r.loss_scale for r in reports] == [2.0 ** (24 - min(n, first)) for n in range(14)]
    assert [torch.isfinite(torch.tensor(r.grad_norm)).item() for r in reports] == [not s for s in skipped]
    assert len({r.loss for r in reports[: first + 1]}) > 1  # other data each time
    # The schedule counts the steps that were made.
    rates = [1e-2 * (1 - max(0, n - first) / 14) for n in range(14)]
    assert [r.learning_rate for r in reports] == pytest.approx(rates)


def test_a_skipped_step_is_told(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scaling_module, "INITIAL_SCALE", 2.0**24)
    console = RunConsole(Console(file=io.StringIO(), width=200))
    train(recipe, tmp_path / "run", "train.steps=12", plugins=[console])
    lines = metrics(tmp_path / "run")
    assert lines[0]["skipped"] is True
    assert "grad_norm" not in lines[0]
    assert lines[-1]["skipped"] is False
    assert lines[-1]["grad_norm"] > 0
    json.loads((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0], parse_constant=_no)
    said = cast(io.StringIO, console.console.file).getvalue()
    assert "step 1 was skipped: its gradient overflows float16 at a loss scale of 1.67772e+07" in said
    assert said.count("was skipped") == sum(line["skipped"] for line in lines)
    assert adapter(tmp_path / "run")


def _no(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_the_scale_grows_after_many_good_steps() -> None:
    scaling = LossScaling()
    for _ in range(GROWTH_INTERVAL - 1):
        assert scaling.accept(FINITE)
    assert scaling.scale == INITIAL_SCALE
    assert scaling.accept(FINITE)
    assert scaling.scale == 2 * INITIAL_SCALE
    assert not scaling.accept(INFINITE)
    assert not scaling.accept(torch.tensor(float("nan")))
    assert (scaling.scale, scaling.skipped) == (INITIAL_SCALE / 2, 2)
    for _ in range(GROWTH_INTERVAL - 1):  # counted anew
        assert scaling.accept(FINITE)
    assert (scaling.scale, scaling.skipped) == (INITIAL_SCALE / 2, 0)


def test_too_many_skipped_steps_end_the_run() -> None:
    scaling = LossScaling()
    for _ in range(MOST_SKIPPED - 1):
        assert not scaling.accept(INFINITE)
    with pytest.raises(RunError, match=r"20 steps in a row had a gradient that float16 cannot hold.*0.0625"):
        scaling.accept(INFINITE)


def test_a_model_that_overflows_itself_ends_the_run(recipe: Path, tmp_path: Path) -> None:
    """No scale can help where the forward pass overflows; float32 holds the same weights."""
    file = recipe.parent / "model" / "model.safetensors"
    weights = load_file(file)
    for name, times in (("down_proj", 1e5), ("up_proj", 1e3)):  # each of which float16 can hold
        weights[f"model.layers.0.mlp.{name}.weight"] *= times
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"step 1: the loss is nan .* In float16 the model itself may overflow"):
        train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "full", 'model.dtype="float32"')


def test_master_weights_are_needed(recipe: Path) -> None:
    with pytest.raises(RunError, match=r"\[train\] master_weights = false, but what trains is in float16"):
        parts_of(recipe, "train.master_weights=false")
    # Adapters of float32 need none.
    parts = parts_of(recipe, "train.master_weights=false", 'adapter={use="lora", dtype="float32"}')
    assert parts.step.scaling is not None
    assert not any(report.skipped for report in _reports(parts))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_types_are_not_scaled(recipe: Path, tmp_path: Path, dtype: str) -> None:
    parts = parts_of(recipe, f'model.dtype="{dtype}"')
    assert parts.step.scaling is None
    assert {(report.loss_scale, report.skipped) for report in _reports(parts)} == {(None, False)}
    train(recipe, tmp_path / "run", f'model.dtype="{dtype}"')
    assert not {"loss_scale", "skipped"} & metrics(tmp_path / "run")[0].keys()


def test_some_float16_is_enough() -> None:
    """Frozen weights of float16 pass gradients on in float16, whatever trains."""
    model = nn.Sequential(nn.Linear(2, 2).to(torch.float16), nn.Linear(2, 2))
    assert loss_scaling(model, model[1].parameters()) is not None
    assert loss_scaling(model[1], model[1].parameters()) is None


def test_evaluation_is_as_in_float32(recipe: Path, tmp_path: Path) -> None:
    source = f'eval={{source=[{{use="jsonl", path="{recipe.parent / "data.jsonl"}"}}]}}'
    train(recipe, tmp_path / "half", source)
    train(recipe, tmp_path / "full", source, 'model.dtype="float32"')
    found, expected = ([line["loss"] for line in metrics(tmp_path / run, "evaluation")] for run in ("half", "full"))
    assert len(found) == 2
    assert found == pytest.approx(expected, rel=5e-3)
