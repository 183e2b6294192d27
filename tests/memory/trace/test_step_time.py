"""The work of a step: what operations are counted to take, and the seconds that a card makes of it, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fitune.compose.model import built
from fitune.errors import ModelError
from fitune.memory.cards.cards import Card, find_card
from fitune.memory.cards.pace import (
    ATTENTION,
    BANDWIDTH,
    CALLED,
    CAUSAL,
    GAP,
    LAUNCH,
    LINK,
    LISTED,
    MATMUL,
    TUNED,
    Operation,
    attention,
    product,
)
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.flops import flops_of
from fitune.memory.trace.run import Trace, trace
from fitune.memory.trace.shorten import shorten
from fitune.memory.trace.step_time import Work, operation_of
from fitune_plugins.speed.kernels import skinny  # noqa: F401  # registers its operations
from support.architectures import CHUNKED_LOSS, GRADIENT_CHECKPOINTING, recipe_of

aten: Any = torch.ops.aten
T4 = find_card("t4")
A10G = find_card("a10g")  # 70 TFLOP/s in bfloat16, 600 GB/s, 31.5 GB/s to the host


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def found(operation: Any, *arguments: Any) -> Operation | None:
    results = operation(*arguments)
    flops = flops_of(operation, str(operation), arguments, {}, results)
    return operation_of(operation, str(operation), arguments, results, flops)


X = empty(1024, 4096)


@pytest.mark.parametrize(
    ("operation", "arguments", "form", "size"),
    [
        (aten.mul.Tensor, (X, X), "pointwise", 2 * 1024 * 4096 * 3),
        (aten.mul.Tensor, (X, empty(4096)), "strided", 2 * (1024 * 4096 * 2 + 4096)),
        (aten.mul.Tensor, (X, empty(1024, 1).expand(1024, 4096)), "strided", 2 * (1024 * 4096 * 2 + 1024)),
        (aten.mul_.Tensor, (X, 2.0), "pointwise", 2 * 1024 * 4096 * 2),
        (aten.cat.default, ([X, X],), "strided", 2 * 1024 * 4096 * 4),
        (aten._foreach_mul_.Scalar, ([X, X], 2.0), "pointwise", 2 * 1024 * 4096 * 4),
        (aten._to_copy.default, (X,), "copy", 2 * 1024 * 4096 * 2),
        (aten._softmax.default, (X, -1, False), "reduction", 2 * 1024 * 4096 * 2),
        (
            aten.embedding.default,
            (empty(102400, 4096), empty(512, dtype=torch.int64)),
            "strided",
            2 * (2 * 512 * 4096),  # as much is read as written: not the whole table
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, torch._ops.OpOverload) else "",
)
def test_what_an_operation_moves(operation: Any, arguments: Any, form: str, size: int) -> None:
    assert found(operation, *arguments) == Operation("pass", bytes=size, form=form)


def test_what_a_product_takes() -> None:
    wide, narrow = found(aten.mm.default, X, empty(4096, 64)), found(aten.mm.default, X, empty(4, 4096).t())
    assert wide == product("bfloat16", (1, 1024, 64, 4096), aligned=True, added=False)
    assert narrow == product("bfloat16", (1, 1024, 4, 4096), aligned=False, added=False)  # rows of 8 bytes
    added = found(aten.addmm_.default, empty(1024, 4096), empty(1024, 16), empty(16, 4096))
    assert added == product("bfloat16", (1, 1024, 4096, 16), aligned=True, added=True)
    batched = found(aten.bmm.default, empty(8, 64, 32), empty(8, 32, 16))
    assert batched == product("bfloat16", (8, 64, 16, 32), aligned=True, added=False)


def test_a_kernel_of_a_plugin_moves_its_bytes() -> None:
    """One that changes an argument writes it, too, though that is no result."""
    with torch.library._scoped_library("fitune_test", "DEF") as library:
        library.define("change_(Tensor(a!) x, Tensor y) -> Tensor")
        library.impl("change_", lambda x, y: y.new_empty(8), "Meta")
        operation = torch.ops.fitune_test.change_.default
        assert found(operation, X, X) == Operation("pass", bytes=3 * X.nbytes + 16, form="copy")


def test_a_kernel_that_says_its_operations_is_a_product() -> None:
    """A few columns take longer than their bytes; one that adds to what is there has no result."""
    narrow, out = empty(16, 4096), empty(1024, 16)
    for operation, arguments in ((torch.ops.fitune.skinny, (X, narrow)), (torch.ops.fitune.skinny_, (out, X, narrow))):
        made = found(operation.default, *arguments, 1.0)
        assert made is not None
        assert made._replace(bytes=0) == product("bfloat16", (1, 1024, 16, 4096), aligned=True, added=False, moved=0)


def test_attention_is_a_family_of_its_own() -> None:
    query = empty(1, 8, 256, 64)
    forward = found(aten._scaled_dot_product_flash_attention.default, query, query, query, 0.0, True)
    assert forward is not None
    expected = attention("bfloat16", (8, 256, 64), "forward flash")
    assert forward._replace(bytes=0) == expected._replace(bytes=0)
    assert forward.flops == 2 * 2 * 8 * 256 * 256 * 64


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        (aten.view.default, (X, [-1])),
        (aten.t.default, (X,)),
        (aten.split.Tensor, (X, 512)),
        (aten._unsafe_view.default, (X, [-1])),
        (aten.detach.default, (X,)),
        (aten.empty_like.default, (X,)),
    ],
)
def test_views_and_empty_tensors_take_nothing(operation: Any, arguments: Any) -> None:
    assert found(operation, *arguments) is None


def test_what_is_on_the_host_takes_nothing_of_the_card() -> None:
    assert found(aten.mul.Tensor, torch.ones(4), torch.ones(4)) is None


def seconds(work: Work, card: Card = A10G, *, traced: int = 1, accumulation: int = 1) -> Any:
    return work.seconds(card, traced=traced, accumulation=accumulation)


def passing(size: int) -> Operation:
    return Operation("pass", bytes=size, form="pointwise")


def test_an_operation_takes_the_longer_of_computing_and_copying() -> None:
    work = Work()
    work.micro[Operation("product", "bfloat16", 7 * 10**12, 10**6)] = 1  # a tenth of a second at 70 TFLOP/s
    work.micro[passing(6 * 10**9)] = 1  # a hundredth at 600 GB/s
    assert seconds(work).card == pytest.approx(0.1 / MATMUL + 0.01 / BANDWIDTH + 2 * GAP)
    work = Work()
    work.micro[Operation("product", "bfloat16", 7 * 10**9, 60 * 10**9)] = 1  # bound by memory
    assert seconds(work).card == pytest.approx(0.1 / BANDWIDTH + GAP)


def test_causal_attention_computes_half_of_the_square() -> None:
    work = Work()
    work.micro[Operation("attention", "bfloat16", 7 * 10**12, 0)] = 1
    assert seconds(work).card == pytest.approx(CAUSAL * 0.1 / ATTENTION + GAP)


def test_micro_batches_are_multiplied_and_the_rest_of_a_step_is_not() -> None:
    work = Work(moved=630 * 10**6)
    work.micro[passing(6 * 10**9)] = 2  # in two micro-batches that were traced
    work.rest[passing(6 * 10**9)] = 3
    took = seconds(work, traced=2, accumulation=8)
    rest = 3 * (0.01 / BANDWIDTH + GAP)  # which is waited for
    assert took.card == pytest.approx(8 * (0.01 / BANDWIDTH + GAP) + rest)
    assert took.host == pytest.approx(8 * LAUNCH + rest)
    assert took.link == pytest.approx(4 * 0.02 / LINK + rest)
    assert took.step == max(took.card, took.host, took.link)


def test_small_operations_wait_for_the_host() -> None:
    work = Work()
    work.micro[passing(1000)] = 10_000
    took = seconds(work, T4)
    assert took.step == took.host == pytest.approx(10_000 * LAUNCH)


def test_graphs_launch_a_micro_batch_at_once() -> None:
    work = Work(graphs=True)
    work.micro[passing(1000)] = 10_000
    assert seconds(work, T4, accumulation=4).host == pytest.approx(4 * LAUNCH)


def test_the_host_looks_at_each_tensor_that_an_optimizer_is_given() -> None:
    tensors = [empty(4, 4) for _ in range(100)]
    work = Work()
    work.note("optimizer", aten._foreach_mul_.Scalar, "aten._foreach_mul_.Scalar", (tensors, 2.0), (), 0, 1)
    assert seconds(work, T4).step == pytest.approx(LAUNCH + 100 * LISTED)


def test_the_host_takes_its_time_around_each_module() -> None:
    work = Work(calls=300, tuned=100)
    around = 200 * CALLED + 100 * TUNED
    assert seconds(work, T4, traced=2, accumulation=4).host == pytest.approx(2 * around * LAUNCH)
    work.graphs = True  # which are launched without any
    assert seconds(work, T4, traced=2, accumulation=4).host == pytest.approx(4 * LAUNCH)


def traced(directory: Path, *strategies: str, layers: int | None = None, card: str = "a10g") -> Trace:
    recipe = recipe_of(directory, "llama", *strategies, changes={"num_hidden_layers": 6})
    return trace(recipe, shapes_of_recipe(recipe, 1), find_card(card), layers=layers)


def flops(traced: Trace) -> int:
    return sum(count * operation.flops for operation, count in traced.work.micro.items())


def test_checkpointing_computes_the_layers_again(tmp_path: Path) -> None:
    """But for the last product of each, which only the rest of the model needs: early stop."""
    plain, again = traced(tmp_path, CHUNKED_LOSS), traced(tmp_path, CHUNKED_LOSS, GRADIENT_CHECKPOINTING)
    assert 1.2 * flops(plain) < flops(again) < 1.5 * flops(plain)
    seen = [seconds(traced.work) for traced in (plain, again)]
    assert seen[0].card < seen[1].card
    assert seen[0].host < seen[1].host


def test_modules_within_those_of_peft_are_counted_apart(tmp_path: Path) -> None:
    """Each adapted layer calls its base, its dropout and its two matrices; computed again, once more."""
    plain, again = traced(tmp_path), traced(tmp_path, GRADIENT_CHECKPOINTING)
    adapted = 6 * 7
    assert plain.work.tuned == plain.micro_batches * (4 * adapted + 1), "and the model within peft's"
    assert plain.work.calls > plain.work.tuned
    assert again.work.tuned == again.micro_batches * (2 * 4 * adapted + 1)


def test_a_shortened_model_takes_its_share(tmp_path: Path) -> None:
    """Work is affine in the number of layers: what two and four take tells what six do."""
    two, four, six = (traced(tmp_path, GRADIENT_CHECKPOINTING, layers=n) for n in (2, 4, None))
    assert flops(six) - flops(four) == flops(four) - flops(two) > 0
    took = [seconds(traced.work).card for traced in (two, four, six)]
    assert took[2] - took[1] == pytest.approx(took[1] - took[0], rel=1e-6)


def test_lists_of_the_configuration_are_shortened_too(tmp_path: Path) -> None:
    model = built(recipe_of(tmp_path, "gemma2", changes={"num_hidden_layers": 6}))
    shorten(model, 2)
    config: Any = model.config
    assert len(model.model.layers) == config.num_hidden_layers == len(config.layer_types) == 2


def test_a_model_whose_layers_are_not_found_is_refused(tmp_path: Path) -> None:
    model = built(recipe_of(tmp_path, "llama"))
    with pytest.raises(ModelError, match="no list of 2 layers that could be shortened"):
        shorten(model, 4)
