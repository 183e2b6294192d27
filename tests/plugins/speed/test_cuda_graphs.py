"""Strategy `cuda-graphs` without a GPU: what is recorded, replayed and computed, and that it all learns the same."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fitune.compose.parts
from fitune import Batch, Plan
from fitune.compose.loss import plain_loss
from fitune.compose.parts import Parts
from fitune.compose.recorder import NoRecorder
from fitune.plugin.events import Notice
from fitune.testing import write_recipe
from fitune.train.loop import train as steps_of
from fitune_plugins.memory.chunked_cross_entropy import chunked_loss
from fitune_plugins.memory.fused_cross_entropy import fused_loss
from fitune_plugins.speed.cuda_graph_shapes import Shapes, shape_of
from fitune_plugins.speed.cuda_graphs import CudaGraphs, CudaGraphsOptions
from support.packed import two_rows
from support.recording import Replayed
from support.tiny import assert_close, loss_and_gradients, losses_of, make_batch, parts_of

STRATEGY = 'memory.strategy=[{use="cuda-graphs", graphs=%d}, {use="accumulation", steps=3}]'


def _rows(*lengths: int) -> list[Batch]:
    return [make_batch([(range(1, n + 1), range(1, n + 1))]) for n in lengths]


class _Steps:
    """Micro-batches of given lengths, a step each time; what was computed is in `computed`."""

    def __init__(self, recorder: Replayed, graphs: int = 8) -> None:
        self.recorder, self.computed = recorder, list[Batch]()
        self.micro_batch = CudaGraphs(CudaGraphsOptions(graphs=graphs)).micro_batch(self._compute, recorder)

    def _compute(self, batch: Batch) -> Tensor:
        self.computed.append(batch)
        return batch.input_ids.sum()

    def __call__(self, *lengths: int) -> list[str]:
        """What the recorder had to do for them."""
        self.recorder.step += 1
        self.recorder.done.clear()
        for batch in _rows(*lengths):
            assert self.micro_batch(batch) == sum(range(1, len(batch.input_ids[0]) + 1)) + self._padding(batch)
        return list(self.recorder.done)

    def _padding(self, batch: Batch) -> int:
        tokens = batch.input_ids.shape[1]
        return tokens * (-(-tokens // 64) * 64 - tokens)


def test_a_shape_is_computed_in_its_first_step_and_recorded_in_the_next() -> None:
    steps = _Steps(Replayed(256))
    assert steps(200, 200) == ["room", "apart", "apart"]
    assert steps(200, 200, 194) == ["record", "replay", "replay", "replay"], "194 is padded as 200 is"
    assert steps(200, 60) == ["replay", "apart"]
    assert steps(60, 200) == ["record", "replay", "replay"]


def test_others_are_computed_where_as_many_are_recorded_as_may_be() -> None:
    steps = _Steps(Replayed(256), graphs=1)
    steps(200, 60)
    assert steps(60, 200) == ["record", "replay", "apart"]
    assert steps(200, 60) == ["apart", "replay"]


def test_a_larger_one_begins_the_pool_anew() -> None:
    steps = _Steps(Replayed(256))
    steps(60)
    steps(60)
    assert steps(200, 60) == ["close", "apart", "record", "replay"]
    assert steps(200) == ["record", "replay"]


def test_what_waits_twice_is_not_recorded_any_more() -> None:
    steps = _Steps(Replayed(256))
    steps.recorder.finds = ["it waits", "", "it waits", "it waits"]
    assert steps(200) == ["room", "apart"], "a kernel may have measured itself"
    assert steps(200, 200) == ["apart", "record", "replay"]
    assert steps(60) == ["apart"], "the first of this shape"
    assert steps(60) == ["apart", "close"]
    assert steps(60, 200) == [], "computed as if nobody had asked"
    assert steps.recorder.said == ["cuda-graphs: micro-batches are launched as usual from now on, since it waits"]


def test_what_cannot_be_recorded_is_computed_all_the_same() -> None:
    steps = _Steps(Replayed(256))
    steps(200)
    steps.recorder.cannot = "of a kernel"
    before = len(steps.computed)
    assert steps(200, 200) == ["record", "close"]
    assert len(steps.computed) == before + 2, "each is computed once"
    assert steps.recorder.said == ["cuda-graphs: micro-batches are launched as usual from now on, since of a kernel"]


def test_tensors_that_have_moved_are_recorded_anew() -> None:
    steps = _Steps(Replayed(256))
    steps(200)
    steps(200)
    steps.recorder.moved = True
    assert steps(200, 200) == ["record", "replay", "replay"]


def test_it_says_where_it_has_no_effect() -> None:
    strategy = CudaGraphs(CudaGraphsOptions())
    (notice,) = strategy.plan(Plan()).notices
    assert notice == "cuda-graphs: no GPU here, so it has no effect"

    def compute(batch: Batch) -> Tensor:
        raise AssertionError

    assert strategy.micro_batch(compute, NoRecorder()) is compute
    strategy.plan(Plan(gpu=True))
    refused = NoRecorder("somebody waits for copies")
    assert strategy.micro_batch(compute, refused) is compute
    assert refused.said == ["cuda-graphs has no effect: somebody waits for copies"]


# --------------------------------------------------------------------------------------------------------------- shapes
def test_rows_have_few_lengths_and_numbers_of_targets() -> None:
    shapes = Shapes(length=2048, more_targets=True)
    padded = [shapes.padded(batch) for batch in _rows(*range(3, 2048, 5), 2048)]
    assert {batch.input_ids.shape[1] for batch in padded} == set(range(128, 2049, 128))
    assert len({shape_of(batch) for batch in padded}) <= 16 * 4
    exact = Shapes(length=2048, more_targets=False)
    assert [exact.padded(batch).targets for batch in _rows(100, 2048)] == [99, 2047]
    assert [shapes.padded(batch).targets for batch in _rows(3, 2048)] == [127, 2047], "no more than there can be"
    assert shapes.padded(_rows(5000)[0]).input_ids.shape == (1, 5000), "longer than was said: left as it is"


def _full() -> Batch:
    """Two rows of 64 tokens, the last of them with all of its targets at its end."""
    return make_batch([(range(1, 65), [-100] * 60 + [61, 62, 63, 64]), (range(1, 65), [-100] * 50 + [*range(51, 65)])])


BATCHES = {
    "two lengths": make_batch([(range(1, 12), range(1, 12)), (range(20, 26), range(20, 26))]),
    "packed": two_rows(),
    "full": _full(),
}


@pytest.mark.parametrize("loss", [plain_loss, partial(chunked_loss, chunk=7), partial(fused_loss, chunk=7)])
@pytest.mark.parametrize("case", BATCHES)
def test_padding_changes_neither_loss_nor_gradients(tmp_path: Path, loss: Callable[..., Tensor], case: str) -> None:
    parts = parts_of(write_recipe(tmp_path / "recipe"), "adapter.dropout=0.0")
    model, batch = parts.run.model, BATCHES[case]
    model.train()
    padded = Shapes(length=256, more_targets=True).padded(batch)
    assert padded.input_ids.shape == (len(batch.input_ids), 64)
    assert padded.targets > batch.targets
    if case == "packed":
        assert padded.ends is not None
        assert padded.ends.tolist()[-1] == padded.input_ids.numel()
        assert len(padded.ends) == 17
    expected, gradients = loss_and_gradients(loss, model, batch)
    found, others = loss_and_gradients(loss, model, padded)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert_close(others, gradients)


# ----------------------------------------------------------------------------------------------------------- whole runs
@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Rows of two lengths, in micro-batches of one."""
    path = write_recipe(tmp_path / "recipe", {"train": {"micro_batch": 1, "steps": 6, "length": 256}})
    rows = [{"messages": [{"role": "user", "content": "?" * n}, {"role": "assistant", "content": "!" * n}]}
            for n in (8, 30, 55, 8, 30, 55)]  # fmt: skip
    (path.parent / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 3), encoding="utf-8")
    return path


def _run(recipe: Path, recorder: NoRecorder, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Parts:
    monkeypatch.setattr(fitune.compose.parts, "recorder_for", lambda *given, **named: recorder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return parts_of(recipe, *overrides)


@pytest.mark.parametrize("more", [(), ('model.dtype="float16"',), ("train.master_weights=false",)])
def test_a_run_that_replays_learns_what_one_that_computes_does(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """To the bit, with dropout, accumulation and rows of several lengths."""
    found = []
    for graphs, length, cannot in ((2, 256, ""), (8, 256, ""), (8, 256, "of a test"), (0, 0, "")):
        recorder = Replayed(length) if graphs else NoRecorder("it is compared with")
        if isinstance(recorder, Replayed):
            recorder.cannot = cannot
        strategy = (STRATEGY % max(graphs, 1),)
        parts = _run(recipe, recorder, monkeypatch, *strategy, "adapter.dropout=0.3", *more)
        reports = list(steps_of(parts))
        notices = [report.what for report in reports if isinstance(report, Notice) and report.kind == "graphs"]
        assert len(notices) == bool(cannot)
        if isinstance(recorder, Replayed):
            assert ("replay" in recorder.done) == (not cannot)
        masters = [m.detach().clone() for m in parts.step.trainables.masters]
        found.append((losses_of(reports), masters))
    replayed, others, given_up, plain = found
    for losses, masters in (others, given_up):
        assert losses == replayed[0]
        assert all(torch.equal(one, other) for one, other in zip(masters, replayed[1], strict=True))
    assert plain[0] == pytest.approx(replayed[0], rel=0.1), "of which the rows are shorter, so that other units drop"
