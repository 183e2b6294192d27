"""What the loop does with steps that are no use: nothing is spoilt, the rows are kept, and a person is told."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from fitune import Adapter, MemoryStrategy, NoOptions, RunError, StepReport, Strategy, hookimpl
from fitune.testing import write_recipe
from support.resuming import Stopper, curve, go, weights
from support.states import assert_same
from support.tiny import metrics

BAD = {"use": "bad"}


class Bad:
    """A plugin: strategy `bad`, whose forward passes of these numbers, counted from 1, come out wrong."""

    def __init__(self, *passes: int, factor: float = math.nan) -> None:
        self.passes, self.factor, self.seen = passes, factor, 0

    @hookimpl
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[NoOptions]]:
        """Offer it."""
        yield MemoryStrategy(name="bad", summary="Fails", options=NoOptions, make=lambda options: _Bad(self))


class _Bad(Strategy):
    def __init__(self, plugin: Bad) -> None:
        self.plugin = plugin

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        def wrong(module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> Tensor:
            self.plugin.seen += module.training
            return output * self.plugin.factor if module.training and self.plugin.seen in self.plugin.passes else output

        head = model.get_output_embeddings()
        assert head is not None
        head.register_forward_hook(wrong)
        return model


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step is one forward pass of two rows."""
    changes = {"memory": {"strategy": [BAD]}, "train": {"steps": 5, "schedule": "constant"}}
    return write_recipe(tmp_path_factory.mktemp("watching") / "recipe", changes)


def test_it_stops_and_keeps_rows_and_weights(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RunError) as raised:
        go(recipe, plugins=[Bad(3)], out=run)
    rows = run / "non-finite" / "step-3.jsonl"
    assert raised.value.lines == (
        f"step 3: the loss is nan and its gradient's norm nan. Its rows are in {rows}. No weight was changed by it. "
        "Try a lower [train] learning_rate, or warmup_steps",
        f"What was trained in 2 steps is saved in {run / 'checkpoints' / 'step-2'}. Go on with: ft run {run}",
    )
    kept = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    assert len(kept) == 2
    assert all("Count to" in row["text"] for row in kept)
    assert [line["step"] for line in metrics(run)] == [1, 2]
    # The weights are those before it, so that the run goes on as one in which nothing was wrong.
    go(run, plugins=[Bad()])
    go(recipe, plugins=[Bad()], out=tmp_path / "plain")
    assert curve(run) == curve(tmp_path / "plain")
    assert_same(weights(run), weights(tmp_path / "plain"))


def test_it_leaves_a_step_out(recipe: Path, tmp_path: Path) -> None:
    told = Stopper()
    go(recipe, 'train.non_finite="skip"', plugins=[Bad(3, factor=math.inf), told], out=tmp_path / "run")
    (notice,) = told.notices
    assert (notice.step, notice.kind) == (3, "skipped")
    assert notice.what.endswith("step-3.jsonl. It was left out")
    assert [step.skipped for step in told.steps] == [False, False, True, False, False]
    lines = metrics(tmp_path / "run")
    assert lines[2]["loss"] is None  # JSON knows no infinity
    assert [line["what"] for line in metrics(tmp_path / "run", "notice")] == [notice.what]
    assert all(torch.isfinite(one).all() for one in weights(tmp_path / "run"))
    # The step changes nothing: the next one begins with the weights that it began with.
    plain = Stopper()
    go(recipe, plugins=[Bad(), plain], out=tmp_path / "plain")
    assert [step.loss for step in told.steps[:2]] == [step.loss for step in plain.steps[:2]]
    assert told.steps[3].loss != plain.steps[3].loss


def test_not_for_ever(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"step 21: .*\. So were the 19 steps before, none of which was made"):
        go(recipe, 'train.non_finite="skip"', "train.steps=99", plugins=[Bad(*range(2, 99))], out=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "step-20").is_dir()


def test_a_loss_spike_is_told_also_across_a_stop(recipe: Path, tmp_path: Path) -> None:
    """The usual is known from the steps before the checkpoint."""
    overrides = ("train.steps=44", "train.learning_rate=1e-6")
    with pytest.raises(RunError, match="stopped after 36"):
        go(recipe, *overrides, plugins=[Bad(), Stopper(36)], out=tmp_path / "run")
    told = Stopper()
    go(tmp_path / "run", plugins=[Bad(4, factor=30.0), told])
    assert [(notice.step, notice.kind) for notice in told.notices] == [(40, "loss spike")]


class Deaf:
    """A plugin: adapter `deaf`, whose only parameters are no part of the loss."""

    @hookimpl
    def ft_adapters(self) -> Iterable[Adapter[NoOptions]]:
        """Offer it."""

        def attach(options: NoOptions, model: PreTrainedModel) -> PreTrainedModel:
            model.requires_grad_(False)
            model.lonely = nn.Linear(2, 2)
            model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())
            return model

        def save(model: PreTrainedModel, directory: Path) -> None:
            save_file({"weight": torch.ones(2, 2)}, directory / "deaf.safetensors")

        yield Adapter(name="deaf", summary="Fails", options=NoOptions, attach=attach, save=save)


def test_nothing_trains(recipe: Path, tmp_path: Path) -> None:
    told = Stopper()
    go(recipe, 'adapter={use="deaf"}', "train.steps=2", plugins=[Bad(), Deaf(), told], out=tmp_path / "run")
    assert [(notice.step, notice.kind) for notice in told.notices] == [(1, "no gradient")]
    assert told.notices[0].what.startswith("nothing trains: the gradient of each of the 2 parameters")


def test_what_is_as_it_should_be_is_not_told(recipe: Path, tmp_path: Path) -> None:
    told = Stopper()
    go(recipe, plugins=[Bad(), told], out=tmp_path / "run")
    assert told.notices == []
    assert isinstance(told.steps[0], StepReport)
