"""Forecasts of micro-batches that are recorded: what they take is of a pool of its own, and a replay takes nothing."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fitune import Batch, MemoryStrategy, MicroBatch, NoOptions, Recorder, Strategy
from fitune.memory.allocator.allocator import CLOSE_POOL, EMPTY_CACHE
from fitune.memory.allocator.replay import replay
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import Forecast, on_card
from fitune.memory.report import json_of, text
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.run import trace
from fitune.plugin.recipe import Recipe, Use
from support.architectures import recipe_of

GRAPHS = "cuda-graphs"
CARD = find_card("a10g")


def _forecast(recipe: Recipe, accumulation: int = 2) -> Forecast:
    shapes = shapes_of_recipe(recipe, accumulation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return on_card(trace(recipe, shapes, CARD), shapes, CARD)


@pytest.fixture
def plain(tmp_path: Path) -> Forecast:
    """Without graphs."""
    return _forecast(recipe_of(tmp_path / "plain", "llama", lora=True, length=512, rows=2))


@pytest.fixture
def graphs(tmp_path: Path) -> Forecast:
    """With them."""
    return _forecast(recipe_of(tmp_path / "graphs", "llama", GRAPHS, lora=True, length=512, rows=2))


def test_what_micro_batches_take_is_of_the_pool_and_all_else_is_not(plain: Forecast, graphs: Forecast) -> None:
    log = graphs.trace.log
    outside = {block.kind for block in log.blocks if not block.apart}
    assert outside >= {"weights", "adapter", "master weights", "optimizer state", "gradients"}
    assert outside <= {"weights", "adapter", "master weights", "optimizer state", "gradients", "temporaries",
                       "cuBLAS workspace", "kernel scratch", "saved activations"}  # fmt: skip
    assert {block.phase for block in log.blocks if block.apart} == {"forward", "loss", "backward", "gradients"}
    static = [block for block in log.blocks if not block.apart and block.kind == "saved activations"]
    assert {(block.shape, block.dtype) for block in static} <= {
        ((2, 512), "int64"),
        ((), "float32"),
        ((1,), "int64"),
    }, "where batches are copied to, the sum of losses, and the generator's seed and offset"
    kept = [block for block in log.blocks if block.kind == "gradients" and block.dtype == "float32"]
    assert {block.step for block in kept} == {1}, "gradients of masters stay from the first step on"
    assert all(not block.apart for block in kept)
    assert sum(block.bytes for block in kept) == 4 * graphs.trace.trainable
    assert not any(block.apart for block in plain.trace.log.blocks)


def test_a_replay_takes_nothing_and_counts_as_one_launch(plain: Forecast, graphs: Forecast) -> None:
    phases = [(phase, step) for _, phase, step in graphs.trace.log.phases]
    assert phases.count(("forward", 1)) == phases.count(("forward", 2)) == 1
    assert (graphs.trace.micro_batches, plain.trace.micro_batches) == (1, 2)
    assert graphs.trace.work.graphs
    assert not plain.trace.work.graphs
    assert graphs.trace.flops_per_token == plain.trace.flops_per_token
    seconds = [one.trace.work.seconds(CARD, traced=one.trace.micro_batches, accumulation=8) for one in (plain, graphs)]
    assert seconds[1].host < seconds[0].host / 2
    assert seconds[1].card == pytest.approx(seconds[0].card, rel=0.1)


def test_its_two_pools_add_up(plain: Forecast, graphs: Forecast) -> None:
    """The allocator holds what the plain run's does, but the optimizer cannot have what activations leave."""
    assert graphs.ledger.peak == graphs.allocated
    assert graphs.allocated == pytest.approx(plain.allocated, rel=0.01)
    assert 0 < graphs.pool < graphs.reserved
    assert graphs.reserved > plain.reserved
    assert plain.pool == 0
    log = graphs.trace.log
    general = [(number, size) for number, size in log.sized() if number and abs(number) not in log.apart]
    private = [(number, size) for number, size in log.sized() if abs(number) in log.apart]
    assert replay(private).peak_reserved == graphs.pool
    assert replay(general).peak_reserved + graphs.pool == graphs.reserved
    assert [how for _, how in log.releases] == [EMPTY_CACHE, EMPTY_CACHE], "before the first, and as it is recorded"


def test_a_plan_shows_the_pool(plain: Forecast, graphs: Forecast) -> None:
    assert any("in a pool of their own" in line for line in text(graphs, "run"))
    assert not any("in a pool of their own" in line for line in text(plain, "run"))
    assert json_of(graphs)["graph_pool"] == graphs.pool


def test_evaluation_is_beside_the_pool(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "not", "llama", GRAPHS, lora=True, length=512, rows=2)
    evaluated = recipe_of(tmp_path / "evaluated", "llama", GRAPHS, lora=True, length=512, rows=2, evaluates=True)
    one, other = _forecast(recipe), _forecast(evaluated)
    blocks = [block for block in other.trace.log.blocks if block.phase == "evaluation"]
    assert blocks
    assert not any(block.apart for block in blocks)
    assert other.pool == one.pool
    assert other.reserved > one.reserved


class _Doubtful(Strategy):
    """Asks for a value in each micro-batch, or draws random numbers in it."""

    def __init__(self, how: str) -> None:
        self.how = how

    def micro_batch(self, compute: MicroBatch, recorder: Recorder) -> MicroBatch:
        """Do so behind it."""

        def computed(batch: Batch) -> Tensor:
            loss = compute(batch)
            if self.how == "waits":
                loss.to("cpu")
            else:
                torch.nn.functional.dropout(loss, 0.5)
            return loss

        return computed


def _with(recipe: Recipe, how: str) -> Recipe:
    record = MemoryStrategy(name="doubtful", summary="Doubtful", options=NoOptions, make=lambda options: _Doubtful(how))
    return replace(recipe, strategies=(*recipe.strategies, Use(record=record, options=NoOptions())))


def test_what_waits_is_launched_as_usual(tmp_path: Path) -> None:
    found = _forecast(_with(recipe_of(tmp_path, "llama", GRAPHS), "waits"))
    assert any("launched as usual" in said and "waits for the GPU" in said for said in found.trace.notices)
    assert not found.trace.work.graphs
    assert found.trace.log.releases[-1][1] == CLOSE_POOL
    assert found.trace.micro_batches == 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_random_numbers_are_recorded_unless_they_are_drawn_anew(tmp_path: Path, checkpointing: bool) -> None:
    more = ["gradient-checkpointing"] if checkpointing else []
    found = _forecast(_with(recipe_of(tmp_path / "drawn", "llama", GRAPHS, *more), "draws"))
    assert found.trace.work.graphs != checkpointing
    assert any("random numbers" in said for said in found.trace.notices) == checkpointing
    assert _forecast(recipe_of(tmp_path / "not", "llama", GRAPHS, *more)).trace.work.graphs


def test_a_strategy_that_waits_says_so_itself(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "llama", GRAPHS, "gradient-checkpointing", "offload-checkpoints")
    found = _forecast(recipe)
    (said,) = [notice for notice in found.trace.notices if GRAPHS in notice]
    assert said == "cuda-graphs has no effect: offload-checkpoints waits for copies in the midst of a micro-batch"
    assert found.pool == 0
    assert not found.trace.log.releases


def test_packed_rows_are_recorded(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "llama", GRAPHS, length=512, rows=1, packed=True)
    found = _forecast(recipe)
    assert found.trace.work.graphs, found.trace.notices
