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
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.run import Trace, trace
from fitune.memory.trace.shorten import shorten
from fitune.memory.trace.step_time import (
    ATTENTION,
    BANDWIDTH,
    CAUSAL,
    GAP,
    LAUNCH,
    LINK,
    MATMUL,
    Work,
    flops_of,
    kind_of,
    rate_of,
)
from support.architectures import CHUNKED_LOSS, GRADIENT_CHECKPOINTING, recipe_of

aten: Any = torch.ops.aten
A10G = find_card("a10g")  # 70 TFLOP/s in bfloat16, 600 GB/s, 31.5 GB/s to the host


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def kind(operation: Any, *arguments: Any) -> tuple[str, str, int, int] | None:
    results = operation(*arguments)
    flops = flops_of(operation, str(operation), arguments, {}, results)
    return kind_of(operation, str(operation), arguments, results, flops)


X = empty(1024, 4096)


@pytest.mark.parametrize(
    ("operation", "arguments", "family", "flops", "size"),
    [
        (aten.mm.default, (X, empty(4096, 64)), "matmul", 2 * 1024 * 4096 * 64, 2 * (1024 * 4160 + 4096 * 64)),
        (aten.mul.Tensor, (X, X), "", 0, 2 * 1024 * 4096 * 3),
        (aten.mul_.Tensor, (X, 2.0), "", 0, 2 * 1024 * 4096 * 2),
        (aten.cat.default, ([X, X],), "", 0, 2 * 1024 * 4096 * 4),
        (aten._foreach_mul_.Scalar, ([X, X], 2.0), "", 0, 2 * 1024 * 4096 * 2),
        (aten._to_copy.default, (X,), "", 0, 2 * 1024 * 4096 * 2),
        (
            aten.embedding.default,
            (empty(102400, 4096), empty(512, dtype=torch.int64)),
            "",
            0,
            2 * (2 * 512 * 4096),  # as much is read as written: not the whole table
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, torch._ops.OpOverload) else "",
)
def test_what_an_operation_takes(operation: Any, arguments: Any, family: str, flops: int, size: int) -> None:
    assert kind(operation, *arguments) == (family, "bfloat16" if family else "", flops, size)


def test_attention_is_a_family_of_its_own() -> None:
    query = empty(1, 8, 256, 64)
    found = kind(aten._scaled_dot_product_flash_attention.default, query, query, query, 0.0, True)
    assert found is not None
    assert found[:3] == ("attention", "bfloat16", 2 * 2 * 8 * 256 * 256 * 64)


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
    assert kind(operation, *arguments) is None


def test_what_is_on_the_host_takes_nothing_of_the_card() -> None:
    assert kind(aten.mul.Tensor, torch.ones(4), torch.ones(4)) is None


def seconds(work: Work, card: Card = A10G, *, traced: int = 1, accumulation: int = 1) -> Any:
    return work.seconds(card, traced=traced, accumulation=accumulation)


def test_an_operation_takes_the_longer_of_computing_and_copying() -> None:
    work = Work()
    work.micro["matmul", "bfloat16", 7 * 10**12, 10**6] = 1  # a tenth of a second at 70 TFLOP/s
    work.micro["", "", 0, 6 * 10**9] = 1  # a hundredth at 600 GB/s
    assert seconds(work).card == pytest.approx(0.1 / MATMUL + 0.01 / BANDWIDTH + 2 * GAP)
    work = Work()
    work.micro["matmul", "bfloat16", 7 * 10**9, 60 * 10**9] = 1  # bound by memory
    assert seconds(work).card == pytest.approx(0.1 / BANDWIDTH + GAP)


def test_causal_attention_computes_half_of_the_square() -> None:
    work = Work()
    work.micro["attention", "bfloat16", 7 * 10**12, 0] = 1
    assert seconds(work).card == pytest.approx(CAUSAL * 0.1 / ATTENTION + GAP)


def test_micro_batches_are_multiplied_and_the_rest_of_a_step_is_not() -> None:
    work = Work(moved=630 * 10**6)
    work.micro["", "", 0, 6 * 10**9] = 2  # in two micro-batches that were traced
    work.rest["", "", 0, 6 * 10**9] = 3
    found = seconds(work, traced=2, accumulation=8)
    assert found.card == pytest.approx((8 + 3) * (0.01 / BANDWIDTH + GAP))
    assert found.host == pytest.approx((8 + 3) * LAUNCH)
    assert found.link == pytest.approx(4 * 0.02 / LINK)
    assert found.step == max(found.card, found.host, found.link)


def test_small_operations_wait_for_the_host() -> None:
    work = Work()
    work.micro["", "", 0, 1000] = 10_000
    found = seconds(work, find_card("h100"))
    assert found.step == found.host == pytest.approx(10_000 * LAUNCH)


def test_a_type_without_units_computes_as_float32() -> None:
    assert rate_of(find_card("t4"), "bfloat16") == 8.1e12
    assert rate_of(find_card("t4"), "float16") == 65e12


def traced(directory: Path, *strategies: str, layers: int | None = None, card: str = "a10g") -> Trace:
    recipe = recipe_of(directory, "llama", *strategies, changes={"num_hidden_layers": 6})
    return trace(recipe, shapes_of_recipe(recipe, 1), find_card(card), layers=layers)


def flops(traced: Trace) -> int:
    return sum(count * kind[2] for kind, count in traced.work.micro.items())


def test_checkpointing_computes_the_layers_again(tmp_path: Path) -> None:
    """But for the last product of each, which only the rest of the model needs: early stop."""
    plain, again = traced(tmp_path, CHUNKED_LOSS), traced(tmp_path, CHUNKED_LOSS, GRADIENT_CHECKPOINTING)
    assert 1.2 * flops(plain) < flops(again) < 1.5 * flops(plain)
    seen = [seconds(traced.work) for traced in (plain, again)]
    assert seen[0].card < seen[1].card
    assert seen[0].host < seen[1].host


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
