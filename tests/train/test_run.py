"""A run from end to end: strategies in their order, saving whole or not at all, and what is told to whom."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from fitune import (
    Adapter,
    MemoryStrategy,
    NoOptions,
    OptimizerSettings,
    Plan,
    PluginError,
    Run,
    RunError,
    Strategy,
    hookimpl,
)
from fitune.compose.parts import steps_of_epochs
from fitune.train.loop import train
from fitune.train.save import save
from support.tiny import losses, metrics, parts_of
from support.tiny import train as train_run


class _Told(Strategy):
    """Writes down when it is called."""

    def __init__(self, name: str, log: list[str], *, optimizer: bool = False, fails: bool = False) -> None:
        self.name, self.log, self.optimizer, self.fails = name, log, optimizer, fails

    def plan(self, plan: Plan) -> Plan:
        self.log.append(f"{self.name} plan")
        return plan

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        self.log.append(f"{self.name} prepare")
        return model

    def make_optimizer(
        self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings
    ) -> torch.optim.Optimizer | None:
        self.log.append(f"{self.name} optimizer")
        return torch.optim.SGD(parameters, lr=settings.learning_rate) if self.optimizer else None

    @contextlib.contextmanager
    def around_step(self) -> Iterator[None]:
        if self.fails:
            raise RuntimeError(f"{self.name} cannot start")
        self.log.append(f"{self.name} in")
        try:
            yield
        finally:
            self.log.append(f"{self.name} out")


class Told:
    """A plugin with strategies `one`, `two` and `failing`; the first two make optimizers if asked to."""

    def __init__(self, *optimizers: str) -> None:
        self.log: list[str] = []
        self.optimizers = optimizers

    @hookimpl
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[NoOptions]]:
        for name in ("one", "two", "failing"):
            yield MemoryStrategy(name=name, summary=name, options=NoOptions, make=self._make(name))

    def _make(self, name: str) -> Any:
        return lambda options: _Told(name, self.log, optimizer=name in self.optimizers, fails=name == "failing")


def _uses(*names: str) -> str:
    return f"memory.strategy=[{', '.join(f'{{use={name!r}}}' for name in names)}]"


@pytest.mark.parametrize(("first", "second"), [("one", "two"), ("two", "one")])
def test_strategies_are_called_in_the_recipes_order(recipe_path: Path, first: str, second: str) -> None:
    told = Told()
    parts = parts_of(recipe_path, _uses(first, second), "train.steps=1", plugins=[told])
    composed = [f"{name} {what}" for what in ("plan", "prepare", "optimizer") for name in (first, second)]
    assert told.log == composed
    list(train(parts))
    assert told.log[len(composed) :] == [f"{first} in", f"{second} in", f"{second} out", f"{first} out"]


def test_contexts_are_left_when_a_step_fails(recipe_path: Path) -> None:
    told = Told()
    parts = parts_of(recipe_path, _uses("one", "two"), plugins=[told])
    parts.run.model.register_forward_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        list(train(parts))
    assert told.log[-4:] == ["one in", "two in", "two out", "one out"]


def test_contexts_are_left_when_a_later_one_cannot_be_entered(recipe_path: Path) -> None:
    told = Told()
    parts = parts_of(recipe_path, _uses("one", "failing", "two"), plugins=[told])
    with pytest.raises(PluginError, match='memory strategy "failing" failed: RuntimeError: failing cannot start'):
        list(train(parts))
    assert told.log[-2:] == ["one in", "one out"]


def _fail(*_: object) -> None:
    raise ZeroDivisionError


def test_two_optimizers_are_an_error_that_names_both(recipe_path: Path) -> None:
    with pytest.raises(PluginError, match='"one" and "two" both make an optimizer'):
        parts_of(recipe_path, _uses("one", "two"), plugins=[Told("one", "two")])


def test_one_optimizer_takes_the_place_of_adamw(recipe_path: Path) -> None:
    parts = parts_of(recipe_path, _uses("one", "two"), plugins=[Told("two")])
    assert isinstance(parts.step.optimizer, torch.optim.SGD)
    assert next(report.learning_rate for report in train(parts) if hasattr(report, "learning_rate")) == 0.01


def test_adamw_is_as_the_recipe_says(recipe_path: Path) -> None:
    numbers = ["train.beta1=0.8", "train.beta2=0.9", "train.epsilon=1e-5", "train.learning_rate=0.5"]
    optimizer = parts_of(recipe_path, *numbers).step.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-5
    assert optimizer.param_groups[0]["initial_lr"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ([], 6),  # neither steps nor epochs: one epoch of 12 rows in windows of two
        (["train.micro_batch=5"], 3),  # the last window holds what is left
        (["train.epochs=2.5"], 15),
        (["train.epochs=0.01"], 1),
        (["train.epochs=0.75"], 5),  # 4.5 steps: half a step up, to odd and to even numbers
        (["train.epochs=0.25"], 2),
        (["train.epochs=0.5", "train.micro_batch=5"], 2),
        (["train.epochs=0.7"], 4),  # 4.2
        (["train.epochs=2", "train.steps=7"], 7),
        (["train.epochs=1", "train.steps=7"], 6),
        (["train.steps=20"], 20),
        (["train.epochs=1", 'memory.strategy=[{use="accumulation", steps=4}]'], 2),
    ],
)
def test_how_many_steps(recipe_path: Path, overrides: list[str], steps: int) -> None:
    text = recipe_path.read_text(encoding="utf-8")
    assert "steps = 3\n" in text
    recipe_path.write_text(text.replace("steps = 3\n", ""), encoding="utf-8")
    assert parts_of(recipe_path, *overrides).run.steps == steps


def test_epochs_count_as_they_are_written() -> None:
    """3.5 and 4.5 steps, of which the binary numbers are a little less or more; one step at least."""
    found = [steps_of_epochs(*given) for given in [(0.35, 10), (0.45, 10), (1.1, 10), (1.005, 100), (1e-9, 4)]]
    assert found == [4, 5, 11, 101, 1]


@pytest.mark.parametrize("warmup", ["train.warmup_steps=2", "train.warmup_ratio=0.3"])
def test_the_learning_rate_rises_and_falls(recipe_path: Path, tmp_path: Path, warmup: str) -> None:
    train_run(
        recipe_path, tmp_path / "run", "train.steps=6", warmup, "train.schedule=linear", "train.learning_rate=0.04"
    )
    rates = [line["learning_rate"] for line in metrics(tmp_path / "run")]
    assert rates == pytest.approx([0.0, 0.02, 0.04, 0.03, 0.02, 0.01])


def test_the_same_seed_gives_the_same_run(recipe_path: Path, tmp_path: Path) -> None:
    def numbers(name: str, *overrides: str) -> list[dict[str, Any]]:
        train_run(recipe_path, tmp_path / name, "adapter.dropout=0.2", *overrides)
        timed = ("seconds", "tokens_per_second", "host_memory_peak")
        return [{k: v for k, v in line.items() if k not in timed} for line in metrics(tmp_path / name)]

    assert numbers("one") == numbers("same")
    assert losses(tmp_path / "one") != [line["loss"] for line in numbers("other", "seed=43")]


class BrokenSave:
    """A plugin: adapter `broken`, full fine-tuning that fails half-way through saving."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @hookimpl
    def ft_adapters(self) -> Iterable[Adapter[NoOptions]]:
        def write(model: PreTrainedModel, directory: Path) -> None:
            (directory / "half").write_text("half", encoding="utf-8")
            raise self.error

        yield Adapter(name="broken", summary="Fails", options=NoOptions, attach=lambda o, model: model, save=write)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("two\nlines"), 'adapter "broken": save failed: ValueError: two lines (PLACE)'),
    ],
)
def test_saving_is_whole_or_not_at_all(recipe_path: Path, error: Exception, cause: str) -> None:
    parts = parts_of(recipe_path, 'adapter={use="broken"}', plugins=[BrokenSave(error)])
    final = parts.run.directory / "adapter"
    final.mkdir(parents=True)
    (final / "before").touch()
    with pytest.raises(RunError) as caught:
        save(parts)
    also = f"Nor could it be written to {tempfile.gettempdir()}: {cause}. What was trained is lost"
    said = re.sub(r"\(train/test_run\.py:\d+\)", "(PLACE)", caught.value.message)
    assert said == f"{final} could not be written: {cause}. {also}"
    assert [p.name for p in parts.run.directory.rglob("*")] == ["adapter", "before"]


def test_saving_replaces_what_was_there(recipe_path: Path) -> None:
    parts = parts_of(recipe_path)
    final = save(parts)
    (final / "old").touch()
    assert save(parts) == final
    assert not (final / "old").exists()
    assert [p.name for p in parts.run.directory.iterdir()] == ["adapter"]


class Ending:
    """A plugin that notes how a run ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[bool, str | None]] = []

    @hookimpl
    def ft_run_finished(self, run: Run | None, error: BaseException | None) -> None:
        self.ends.append((run is not None, None if error is None else type(error).__name__))


def test_the_end_is_always_told(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending()
    train_run(recipe_path, tmp_path / "well", plugins=[ending])
    with pytest.raises(PluginError, match="failing cannot start"):
        train_run(recipe_path, tmp_path / "step", _uses("failing"), plugins=[ending, Told()])
    (recipe_path.parent / "model" / "model.safetensors").unlink()
    with pytest.raises(Exception, match="cannot be loaded"):
        train_run(recipe_path, tmp_path / "load", plugins=[ending])
    assert ending.ends == [(True, None), (True, "PluginError"), (False, "ModelError")]
    monkeypatch.setenv("RANK", "1")  # another process of this run keeps silent, even where composing failed
    with pytest.raises(Exception, match="cannot be loaded"):
        train_run(recipe_path, tmp_path / "other", plugins=[ending])
    assert len(ending.ends) == 3
