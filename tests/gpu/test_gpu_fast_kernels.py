"""The fast path's Triton kernels on a card: as near to float64 as a plain run, and the same to the bit each time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fitune_plugins.speed import kernels
from support.kernel_cases import CASES, LARGE, Case, called, copied, relative

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REPEATS = 50


def _of(operation: str) -> list[Case]:
    return [case for case in (*CASES, *LARGE) if case.operation == operation]


def _found(case: Case, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Results in memory that was full of NaN, so that what a kernel leaves out, or reads before it is there, shows."""
    operation = getattr(kernels, case.operation)
    results = called(operation, copied(inputs, "meta"))
    spoilt = [torch.full(one.shape, torch.nan, dtype=one.dtype, device="cuda") for one in results for _ in range(3)]
    del spoilt
    return called(operation, copied(inputs))


def _luck(case: Case, dtype: torch.dtype) -> float:
    """What an error may be larger by: of few numbers the luckier rounding wins; of many none does."""
    eps = torch.finfo(dtype).eps
    if dtype == torch.float32:  # exponentials are the card's own, of 22 bits
        return 32 * eps
    return eps / 400 if case in LARGE else eps / 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", kernels.__all__)
def test_errors_are_no_larger_than_a_plain_run_s(operation: str, dtype: torch.dtype) -> None:
    for case in _of(operation):
        inputs = case.inputs(dtype, "cuda")
        found, truth, plain = _found(case, inputs), case.truth(inputs), case.plainly(inputs)
        for one, other, exact in zip(found, plain, truth, strict=True):
            assert one.dtype == other.dtype
            assert relative(one, exact) <= 1.02 * relative(other, exact) + _luck(case, dtype), str(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", kernels.__all__)
def test_results_are_laid_out_as_forecasts_have_them(operation: str, dtype: torch.dtype) -> None:
    for case in _of(operation):
        inputs = case.inputs(dtype, "cuda")
        found = _found(case, inputs)
        traced = called(getattr(kernels, operation), copied(inputs, "meta"))
        as_traced = [(one.shape, one.stride(), one.dtype) for one in traced]
        assert [(one.shape, one.stride(), one.dtype) for one in found] == as_traced


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_fifty_calls_give_the_same_to_the_bit(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype, "cuda")
    first = _found(case, inputs)
    for _ in range(REPEATS):
        for one, other in zip(_found(case, inputs), first, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_made_again_is_what_was_made(dtype: torch.dtype) -> None:
    for case in (*_of("norm_backward"), *_of("gated_backward")):
        inputs = case.inputs(dtype, "cuda")
        if not inputs[-1]:
            continue
        norm = case.operation == "norm_backward"
        made = kernels.norm(*inputs[3:8]) if norm else kernels.gated(*inputs[3:-1])
        assert torch.equal(_found(case, inputs)[1], made), str(case)


@pytest.mark.parametrize("operation", kernels.__all__)
def test_nothing_is_allocated_but_results(operation: str) -> None:
    for case in _of(operation):
        inputs = copied(case.inputs(torch.bfloat16, "cuda"))
        _found(case, inputs)  # a first launch compiles
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        results = getattr(kernels, operation)(*inputs)
        taken = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
        made = () if results is None else results if isinstance(results, tuple) else (results,)
        assert taken == sum(one.numel() * one.element_size() for one in made), str(case)
        del results, made


@pytest.mark.parametrize("gap", [12.0, 20.0, 60.0])
def test_digits_stay_where_the_probability_is_near_one(gap: float) -> None:
    logits = torch.zeros(2, 1000, device="cuda")
    logits[:, 7] = gap
    losses = kernels.cross_entropy_(logits, torch.tensor([7, -100], device="cuda"), 0.0)
    others = 999 * torch.exp(torch.tensor(-gap, dtype=torch.float64))
    assert losses[0].item() == pytest.approx(torch.log1p(others).item(), rel=1e-4)
    assert logits[0, 7].item() == pytest.approx((-others / (1 + others)).item(), rel=1e-4)
    assert losses[1].item() == 0
    assert not logits[1].any()


def test_more_than_two_to_the_31_numbers() -> None:
    """Offsets of the last rows need 64 bits."""
    rows, columns = 21_500, 102_400
    if torch.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("needs 8 GiB of free memory on the card")
    assert rows * columns > 1 << 31
    logits = torch.zeros(rows, columns, dtype=torch.bfloat16, device="cuda")
    logits[-1, 5] = 4.0
    labels = torch.full((rows,), 5, device="cuda")
    losses = kernels.cross_entropy_(logits, labels, 0.0)
    even = torch.tensor(float(columns)).log().item()
    assert losses[0].item() == pytest.approx(even, rel=1e-6)
    assert losses[-1].item() == pytest.approx((columns - 1 + torch.tensor(4.0).exp()).log().item() - 4.0, rel=1e-6)
    assert logits[-1, 5].item() == pytest.approx(-1.0, abs=0.01)
    assert logits[-2, 5].item() == pytest.approx(-1.0, abs=0.01)
    assert logits[-1, 6].item() == pytest.approx(1 / columns, rel=0.01)


def test_a_graph_of_launches_is_replayed() -> None:
    case = LARGE[3]
    inputs = case.inputs(torch.bfloat16, "cuda")
    wanted = _found(case, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernels.norm_backward(*inputs)
    for one in captured:
        one.fill_(torch.nan)
    graph.replay()
    for one, other in zip(captured, wanted, strict=True):
        assert torch.equal(one, other)
