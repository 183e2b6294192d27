"""How strategies change what a micro-batch is, and what is left where one fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fitune import Batch, CannotRecord, MicroBatch, Plan, Recorder, Strategy
from fitune.compose.loss import plain_loss
from fitune.compose.loss_scaling import LossScaling
from fitune.compose.recorder import NO_GPU, NoRecorder, recorder_for, takes_more_targets
from fitune.compose.step import Step
from fitune.plugin.recipe import Use
from fitune.testing import write_recipe
from support.made_plugins import strategy
from support.tiny import parts_of


class _Named(Strategy):
    """Notes when it begins and ends."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said = name, said

    def micro_batch(self, compute: MicroBatch, recorder: Recorder) -> MicroBatch:
        """Note it around what is given."""

        def noted(batch: Batch) -> Tensor:
            self.said.append(f"{self.name} {recorder.step}")
            loss = compute(batch)
            self.said.append(f"of {self.name}")
            return loss

        return noted


def _step(directory: Path, *given: Strategy, scaling: LossScaling | None = None) -> tuple[Step, Batch]:
    parts = parts_of(write_recipe(directory / "recipe"), 'model.dtype="bfloat16"')
    batch: Batch = next(iter(parts.make_batches(iter([parts.examples[:2]]))))
    step = parts.step
    made = Step(
        model=step.model,
        loss=step.loss,
        trainables=step.trainables,
        optimizer=step.optimizer,
        strategies=tuple(
            (Use(record=strategy(f"number-{number}"), options=None), one) for number, one in enumerate(given)
        ),
        max_grad_norm=1.0,
        device=step.device,
        scaling=scaling,
    )
    return made, batch


def test_the_first_strategy_is_the_outermost(tmp_path: Path) -> None:
    said: list[str] = []
    step, batch = _step(tmp_path, _Named("first", said), Strategy(), _Named("second", said))
    assert step.trainables.keep
    step.make([batch], batch.targets)
    assert said == ["first 1", "second 1", "of second", "of first"]
    kept = [master.grad for master in step.trainables.masters if master.grad is not None]
    said.clear()
    step.make([batch, batch], 2 * batch.targets)
    assert said[0] == "first 2"
    assert len(said) == 8
    assert all(m.grad is one and not one.any() for m, one in zip(step.trainables.masters, kept, strict=True))


def test_without_one_nothing_is_kept(tmp_path: Path) -> None:
    step, batch = _step(tmp_path, Strategy())
    assert step.micro_batch is step.computation
    step.make([batch], batch.targets)
    assert all(master.grad is None for master in step.trainables.masters)


def test_a_scale_of_the_loss_is_read_from_one_place(tmp_path: Path) -> None:
    """So that what was recorded finds another step's."""
    step, batch = _step(tmp_path, scaling=LossScaling())
    norms = []
    for scale in (2.0**16, 2.0**10):
        assert step.scaling is not None
        step.scaling.scale = scale
        factor = step.computation._factor
        assert factor is not None
        norms.append(float(step.make([batch], batch.targets, accept=lambda norm, loss_sum: False)[1]))
        assert step.computation._factor is factor
        assert factor.item() == step.scaling.factor(batch.targets)
    assert norms[0] == norms[1] > 0


def test_a_micro_batch_that_fails_leaves_no_gradient_of_its_own(tmp_path: Path) -> None:
    step, batch = _step(tmp_path, _Named("any", []))

    def failing(model: torch.nn.Module, batch: Batch) -> Tensor:
        plain_loss(model, batch).backward()
        raise RuntimeError("behind a backward pass")

    step.trainables.begin()
    step.computation.loss = failing
    with pytest.raises(RuntimeError, match="behind a backward pass"):
        step.micro_batch(batch)
    assert all(parameter.grad is None for parameter in step.trainables.parameters)
    assert all(m.grad is not None and not m.grad.any() for m in step.trainables.masters)


def test_a_run_on_the_host_records_nothing() -> None:
    recorder = recorder_for(torch.nn.Linear(2, 2), torch.device("cpu"), Plan(), length=8)
    assert recorder.refused == NO_GPU
    with pytest.raises(CannotRecord, match=NO_GPU):
        recorder.record(lambda: torch.zeros(()))
    assert recorder.apart(lambda: torch.ones(())).item() == 1
    assert isinstance(recorder, NoRecorder)


def test_losses_that_take_more_targets() -> None:
    assert takes_more_targets(Plan()), "the plain loss looks at labels alone"
    assert not takes_more_targets(Plan(loss=plain_loss))
    assert takes_more_targets(Plan(loss=plain_loss, more_targets=True))
