"""A run of several processes, traced as the first of them: shards, gathered layers, and what is sent."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from fitune import Batch, ModelError
from fitune.compose.model import AMID_A_LAYER
from fitune.memory.allocator.allocator import EMPTY_CACHE
from fitune.memory.cards.cards import find_card
from fitune.memory.cards.pace import GATHERED, MEETING, REDUCED, Pace
from fitune.memory.cards.several import OF_MORE, OF_TWO, several
from fitune.memory.forecast import on_card
from fitune.memory.timing import time_of
from fitune.memory.trace.collectives import is_collective, sent_by
from fitune.memory.trace.log import MemoryLog
from fitune.memory.trace.processes import as_processes
from fitune.memory.trace.run import Trace, trace
from fitune.plugin.recipe import Recipe
from fitune.plugin.units import MIB
from fitune_plugins.memory import context_parallel_rows
from support.real_steps import both_logs, events
from support.traces import shapes

Read = Callable[..., Recipe]

FULL = ('adapter={use="none"}',)

SHARDED = ('memory.strategy=[{use="fsdp"}]',)

LAYER = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32
"""Weights of a layer of the tiny model: attention, MLP, two norms."""

REST = 2 * 260 * 32 + 32
"""Embeddings, head, and the last norm."""


def traced(recipe: Recipe, cards: int) -> Trace:
    """On so many cards."""
    return trace(recipe, shapes(recipe), several(find_card("h100"), cards))


def steps_of(log: MemoryLog) -> MemoryLog:
    """Without what comes before the first step: on the CPU, what stays on the host cannot be told from the rest."""
    start = next(index for index, phase, step in log.phases if (phase, step) == ("forward", 1))
    return replace(log, events=log.events[start:])


def standing(log: MemoryLog, kind: str) -> int:
    """Bytes, not rounded, of the blocks of a kind that are never given back before the first step ends."""
    start = next(index for index, phase, step in log.phases if phase == "forward" and step == 1)
    alive = {number for number in log.events[:start] if number > 0} - {-number for number in log.events[:start]}
    return sum(log.blocks[number - 1].bytes for number in alive if log.blocks[number - 1].kind == kind)


@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_without_values_take_what_those_with_values_do(read: Read, adapter: str, dtype: str) -> None:
    recipe = read(*SHARDED, f'adapter={{use="{adapter}"}}', f'model.dtype="{dtype}"')
    forecast, real = both_logs(recipe, processes=2)
    assert events(steps_of(forecast)) == events(steps_of(real))
    assert any(block.kind == "gathered weights" for block in forecast.blocks)


def test_packed_rows_are_kept_apart_within_shards_too(read: Read) -> None:
    packed = ("data.stage=[" + ", ".join(f'{{use="{use}"}}' for use in ("chat", "tokenize", "truncate", "pack")) + "]",)
    found = traced(read(*SHARDED, *packed), 2)
    assert any("kept apart" in notice for notice in found.notices)


def test_an_evaluation_gathers_layers_too(read: Read) -> None:
    log = traced(read(*SHARDED, "eval.fraction=0.5", "eval.exact_match=true", "eval.max_new_tokens=4"), 2).log
    gathered = [b for b in log.blocks if b.phase == "evaluation" and b.kind == "gathered weights"]
    assert {block.shape for block in gathered} >= {(64 * 32,), (260 * 32,)}


def test_each_process_has_its_part_of_every_weight(read: Read) -> None:
    whole, sharded = traced(read(), 1), traced(read(*SHARDED), 4)
    assert standing(whole.log, "weights") - standing(sharded.log, "weights") == 3 * (2 * LAYER + REST)
    assert standing(whole.log, "adapter") == standing(sharded.log, "adapter"), "which is whole in each"
    assert sharded.parameters == whole.parameters
    assert sharded.plan.sharded
    assert sharded.plan.notices == (AMID_A_LAYER,)
    assert whole.plan.notices == traced(read(*SHARDED, "memory.recoveries=0"), 4).plan.notices == ()


def test_a_layer_is_gathered_whole_and_given_back(read: Read) -> None:
    log = traced(read(*SHARDED), 4).log
    sent_for = [block.bytes for block in log.blocks if block.kind == "communication" and block.phase == "forward"]
    assert {4 * LAYER, 4 * 260 * 32, 4 * (260 * 32 + 32)} <= set(sent_for), "a layer, the embeddings, the rest"
    assert all(block.stream for block in log.blocks if block.kind == "communication" and block.phase == "forward")
    gathered = [number for number, block in enumerate(log.blocks, 1) if block.kind == "gathered weights"]
    assert set(gathered) <= {-number for number in log.events}, "none stays"
    of_mlps = [b for b in log.blocks if b.kind == "gathered weights" and b.shape == (64 * 32,)]
    assert len(of_mlps) == 2 * 2 * 2 * 3, "in each step, for each pass, in each layer, three weights"


def test_replicas_take_what_one_process_does_and_a_buffer_for_the_sum(read: Read) -> None:
    recipe = read()
    alone, replica = traced(recipe, 1), traced(recipe, 4)
    assert [b for b in replica.log.blocks if b.phase in ("forward", "loss", "backward")] == [
        b for b in alone.log.blocks if b.phase in ("forward", "loss", "backward")
    ]
    flat = 4 * alone.trainable
    added = len(replica.log.blocks) - len(alone.log.blocks)
    assert added == 2, "a buffer in each of two steps"
    assert sum(b.bytes == flat and b.phase == "gradients" for b in replica.log.blocks) == 2


@pytest.mark.parametrize(("cards", "mib"), [(1, 1200), (2, 2000)])
def test_what_is_reserved_is_of_the_layout_of_segments_that_needs_more(read: Read, cards: int, mib: int) -> None:
    """Of several processes; with one they lie as the driver lays them. A run's last blocks are such that it matters."""
    recipe = read()
    found = traced(recipe, cards)
    found.log.release(EMPTY_CACHE)
    block = next(block for block in found.log.blocks if block.operation)

    def take(size: int) -> int:
        return found.log.take(replace(block, bytes=size * MIB, apart=False, stream=0))

    found.log.give_back(take(800))
    x, y, alone = take(400), take(400), take(400)
    found.log.give_back(x)
    found.log.give_back(alone)
    take(400)
    found.log.give_back(y)
    take(800)
    reserved = on_card(found, shapes(recipe), several(find_card("h100"), cards)).reserved
    assert mib <= reserved / MIB < mib + 200


def test_what_is_sent_is_every_layer_twice_a_micro_batch(read: Read) -> None:
    found = traced(read(*SHARDED), 4)
    gathered, again = 2 * LAYER + REST, 2 * LAYER  # the rest stays whole for as long as the micro-batch takes
    assert found.work.sent == found.micro_batches * 3 * (gathered + again)
    assert found.work.sent_behind == 2 * 3 * found.trainable * 4 // 4, "the adapters' gradients, as a ring sums them"


def test_links_count_into_the_time_of_a_step(read: Read) -> None:
    card = several(find_card("h100"), 4)
    work = traced(read(*SHARDED), 4).work
    seconds = work.seconds(card, traced=2, accumulation=4)
    behind = work.seconds(card, traced=2, accumulation=0).peers
    assert seconds.peers - behind == pytest.approx(2 * work.sent / (0.75 * 450e9))
    assert behind == pytest.approx(MEETING + work.sent_behind / (0.75 * 450e9))
    assert seconds.step >= seconds.card + seconds.peers, "what is gathered beside it slows what computes"


def test_the_host_takes_its_time_for_each_tensor_that_is_gathered_or_reduced(read: Read) -> None:
    """Of each layer twice; of embeddings, head and the last norm once; with LoRA nothing is reduced."""
    found = traced(read(*SHARDED), 4)
    of_layer, rest = 9, 3
    assert found.work.gathered == found.micro_batches * (2 * 2 * of_layer + rest)
    assert found.work.reduced == 0
    full = traced(read(*SHARDED, *FULL), 4)
    assert full.work.reduced == full.micro_batches * (2 * of_layer + rest)
    card = several(find_card("h100"), 4)
    more = dataclasses.replace(found.work, gathered=found.work.gathered + 1000, reduced=1000)
    one, other = (work.seconds(card, traced=1, accumulation=1).host for work in (found.work, more))
    assert other - one == pytest.approx((GATHERED + REDUCED) * 1000 * Pace(card).forward)


def test_a_process_is_back_in_its_own_group_afterwards(tmp_path: Path) -> None:
    hook = sys.excepthook
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=(tmp_path / "group").as_uri())
    try:
        own, hook_within = dist.group.WORLD, sys.excepthook
        with as_processes(8):
            assert (dist.get_world_size(), dist.get_rank(), dist.get_backend()) == (8, 0, "fake")
            with as_processes(8):
                assert dist.get_world_size() == 8
        assert dist.group.WORLD is own
        assert dist.get_backend() == "gloo"
        assert sys.excepthook is hook_within
        tensor = torch.ones(1)
        dist.all_reduce(tensor)
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook
    with as_processes(2):
        assert dist.get_world_size() == 2
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("name", "given", "sent"),
    [
        ("c10d._allgather_base_.default", (400, 100), 300),
        ("c10d._reduce_scatter_base_.default", (100, 400), 300),
        ("c10d.allreduce_.default", (400,), 600),
        ("_c10d_functional.all_reduce.default", (400,), 600),
        ("_c10d_functional.all_gather_into_tensor.default", (100,), 300),
        ("_c10d_functional.wait_tensor.default", (400,), 0),
        ("c10d.alltoall_base_.default", (400, 400), 300),
        ("c10d.barrier.default", (4,), 0),
    ],
)
def test_bytes_of_collectives_are_those_of_rings(name: str, given: tuple[int, ...], sent: int) -> None:
    assert is_collective(name)
    with as_processes(4):
        assert sent_by(name, [torch.empty(size, dtype=torch.int8) for size in given]) == sent


def test_other_operations_are_no_collectives() -> None:
    assert not is_collective("aten.mm.default")
    assert not is_collective("fsdp.all_gather_copy_in.default")


PARTED = ('memory.strategy=[{use="gradient-checkpointing"}, {use="context-parallel"}]',)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_of_rows_without_values_take_what_those_with_values_do(
    read: Read, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the host cuts into parts cannot be told from what is on the card, on a CPU: it is left out."""
    cut = context_parallel_rows.part_of

    def unseen(*given: Any) -> Batch:
        with _disable_current_modes():
            return cut(*given)

    monkeypatch.setattr(context_parallel_rows, "part_of", unseen)
    forecast, real = both_logs(read(*PARTED, f'model.dtype="{dtype}"'), processes=2)
    assert events(steps_of(forecast)) == events(steps_of(real))


def test_each_process_keeps_its_part_of_every_row(read: Read) -> None:
    rows, length = read().train.micro_batch, read().train.length
    log = traced(read(*PARTED), 4).log
    kept = {block.shape for block in log.blocks if block.kind == "saved activations" and len(block.shape) == 3}
    assert (rows, length // 4 + 1, 32) in kept, "with the token behind it"
    assert (rows, length, 32) not in kept


def test_heads_are_exchanged_in_each_layer(read: Read) -> None:
    """Queries, keys and values on the way there (keys' and values' two heads are repeated for four processes), as much
    as queries on the way back; forwards, once more where a layer is computed again, and backwards.
    """
    recipe = read(*PARTED)
    found = traced(recipe, 4)
    rows, part = recipe.train.micro_batch, recipe.train.length // 4
    of_layer = rows * part * (4 + 4 + 4 + 4) * 8 * 4
    assert found.work.sent == found.micro_batches * 2 * 3 * of_layer * 3 // 4
    seconds = found.work.seconds(several(find_card("h100"), 4), traced=found.micro_batches, accumulation=1)
    assert seconds.step >= seconds.card + seconds.peers > seconds.card, "the card waits for them"


def test_a_group_of_processes_exchanges_within_itself_alone(read: Read) -> None:
    pairs = 'memory.strategy=[{use="gradient-checkpointing"}, {use="context-parallel", cards=2}]'
    recipe = read(pairs)
    found, card = traced(recipe, 4), several(find_card("h100"), 4)
    rows, part = recipe.train.micro_batch, recipe.train.length // 2
    assert found.work.sent == found.micro_batches * 2 * 3 * rows * part * (4 + 2 + 2 + 4) * 8 * 4 // 2
    assert (found.plan.replicas, found.plan.context_parallel) == (2, 2)
    told = on_card(found, shapes(recipe), card)
    assert told.card.nccl == OF_MORE + OF_TWO, "a communicator of all, and one of the group"
    one = on_card(traced(read(), 1), shapes(read()), several(find_card("h100"), 1))
    assert time_of(told).tokens == 2 * time_of(one).tokens, "of two groups"


def test_processes_that_cannot_be_grouped_are_told(read: Read) -> None:
    with pytest.raises(ModelError, match="4 processes cannot be put into groups of 3"):
        traced(read('memory.strategy=[{use="context-parallel", cards=3}]'), 4)
