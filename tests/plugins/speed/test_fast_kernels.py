"""The fast path's operations against the formulas of transformers and peft: in plain torch, and without values."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fitune_plugins.speed import kernels
from fitune_plugins.speed.kernels.library import RANKS
from support.kernel_cases import CASES, Case, called, copied, relative

HALVES = (torch.bfloat16, torch.float16)


def _found(case: Case, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return called(getattr(kernels, case.operation), copied(inputs))


def test_every_operation_has_cases() -> None:
    assert {case.operation for case in CASES} >= set(kernels.__all__)
    assert len({str(case) for case in CASES}) == len(CASES) > 200


def _of(operation: str) -> list[Case]:
    return [case for case in CASES if case.operation == operation]


@pytest.mark.parametrize("operation", kernels.__all__)
def test_it_is_the_formula_and_its_gradient(operation: str) -> None:
    for case in _of(operation):
        _is_the_truth(case)


def _is_the_truth(case: Case) -> None:
    inputs = case.inputs(torch.float64)
    found, truth = _found(case, inputs), case.truth(inputs)
    assert len(found) == len(truth)
    for one, other in zip(found, truth, strict=True):
        assert one.shape == other.shape
        exact = one.dtype == torch.float64
        assert exact or case.operation == "cross_entropy_"  # whose losses are float32
        assert relative(one, other) < (1e-13 if exact else 1e-7), str(case)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("operation", kernels.__all__)
def test_its_error_is_no_larger_than_a_plain_run_s(operation: str, dtype: torch.dtype) -> None:
    for case in _of(operation):
        _is_as_near(case, dtype)


def _is_as_near(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    found, truth, plain = _found(case, inputs), case.truth(inputs), case.plainly(inputs)
    for one, other, exact in zip(found, plain, truth, strict=True):
        # Of few numbers the luckier rounding wins; half a unit in the last place is nobody's mistake.
        assert relative(one, exact) <= 1.02 * relative(other, exact) + torch.finfo(dtype).eps * (
            1 if dtype == torch.float32 else 0.25
        ), str(case)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_without_adapters_results_are_those_of_transformers_to_the_bit(dtype: torch.dtype) -> None:
    alike = 0
    for case in CASES:
        inputs = case.inputs(dtype)
        lows = {"norm": (), "gated": inputs[2:6], "rope": inputs[4:8]}.get(case.operation)
        if inputs[-1] == "gelu":  # whose error function is another's in each of torch's types
            continue
        if lows is not None and all(low is None for low in lows):
            alike += 1
            for one, other in zip(_found(case, inputs), case.plainly(inputs), strict=True):
                assert torch.equal(one, other), str(case)
    assert alike > 20


def test_formulas_are_those_of_transformers() -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
    from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
    from transformers.models.olmo2.modeling_olmo2 import apply_rotary_pos_emb as olmo2_rotary

    case = next(case for case in CASES if case.operation == "norm")
    x, weight, eps, *_ = case.inputs(torch.bfloat16)
    for kind, unit, first in ((LlamaRMSNorm, False, True), (Olmo2RMSNorm, False, False), (Gemma3RMSNorm, True, False)):
        layer = kind(len(weight), eps).bfloat16()
        layer.weight.data.copy_(weight)
        assert torch.equal(layer(x), kernels.norm(x, weight, eps, unit, first))
    for rotary, width in ((apply_rotary_pos_emb, 16), (olmo2_rotary, 24)):
        case = next(case for case in CASES if case.operation == "rope" and f"width={width}/{width} r=0" in case.label)
        q, k, cos, sin, *rest = case.inputs(torch.bfloat16)
        assert (cos.dtype == torch.bfloat16) == (width == 16)
        heads = [x.unflatten(1, (-1, width)) for x in (q, k)]
        tables = [table.repeat(len(q), 1)[: len(q)] for table in (cos, sin)]
        plain = [None] * 6
        found = kernels.rope(q, k, cos, sin, *plain, *rest[6:])  # type: ignore[arg-type]
        for one, other in zip(found, rotary(*heads, *tables), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_what_is_made_again_is_what_was_made(dtype: torch.dtype) -> None:
    for case in CASES:
        inputs = case.inputs(dtype)
        if case.operation == "norm_backward" and inputs[-1]:
            again, made = _found(case, inputs)[1], kernels.norm(*inputs[3:8])
        elif case.operation == "gated_backward" and inputs[-1]:
            again, made = _found(case, inputs)[1], kernels.gated(*inputs[3:-1])
        else:
            continue
        assert torch.equal(again, made), str(case)


@pytest.mark.parametrize("operation", kernels.__all__)
def test_without_values_results_are_alike(operation: str) -> None:
    for case in _of(operation):
        _is_alike_without_values(case)


def _is_alike_without_values(case: Case) -> None:
    inputs = case.inputs(torch.bfloat16)
    wanted = [(one.shape, one.stride(), one.dtype) for one in _found(case, inputs)]
    found = called(getattr(kernels, case.operation), copied(inputs, "meta"))
    assert [(one.shape, one.stride(), one.dtype) for one in found] == wanted
    assert all(one.is_meta for one in found)
    with FakeTensorMode() as mode:
        faked = tuple(mode.from_tensor(one) if isinstance(one, Tensor) else one for one in inputs)
        fakes = called(getattr(kernels, case.operation), faked)
    assert [(one.shape, one.stride(), one.dtype) for one in fakes] == wanted
    assert all(one.device.type == "cpu" for one in fakes)


@pytest.mark.parametrize("operation", kernels.__all__)
def test_the_schema_says_what_is_changed(operation: str) -> None:
    case = next(case for case in CASES if case.operation == operation)
    packet = getattr(torch.ops.fitune, operation)
    checks = torch.library.opcheck(
        packet.default, case.inputs(torch.float32), test_utils=("test_schema", "test_faketensor")
    )
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("gap", [12.0, 20.0, 60.0])
def test_digits_stay_where_the_probability_is_near_one(gap: float) -> None:
    """p - 1 in float32 is 0 from a gap of 17 on, and a multiple of 6e-8 before."""
    logits = torch.zeros(3, 1000)
    logits[:, 7] = gap
    labels = torch.tensor([7, 8, -100])
    truth = logits.double()
    wanted = torch.nn.functional.cross_entropy(truth.requires_grad_(), labels, reduction="none")
    (slope,) = torch.autograd.grad(wanted.sum(), truth)
    others = 999 * torch.exp(torch.tensor(-gap, dtype=torch.float64))  # of which float64 would lose digits as well
    losses = kernels.cross_entropy_(logits, labels, 0.0)
    assert losses[0].item() == pytest.approx(torch.log1p(others).item(), rel=1e-6)
    assert logits[0, 7].item() == pytest.approx((-others / (1 + others)).item(), rel=1e-6)
    assert losses[1].item() == pytest.approx(wanted[1].item(), rel=1e-6)
    assert logits[1, 8].item() == pytest.approx(slope[1, 8].item(), rel=1e-6)
    assert losses[2].item() == 0
    assert not logits[2].any()


def test_a_label_that_is_no_column_has_an_infinite_loss() -> None:
    losses = kernels.cross_entropy_(torch.zeros(3, 5), torch.tensor([5, -1, 4]), 0.0)
    assert losses.isinf().tolist() == [True, True, False]


def test_low_rank_parts_that_cannot_be_added() -> None:
    x, wide = torch.zeros(2, 8), RANKS + 1
    with pytest.raises(ValueError, match="one half of a low-rank part is missing"):
        kernels.gated(x, x, torch.zeros(2, 4), None, None, None, "silu")
    with pytest.raises(ValueError, match="4 and 3 ranks"):
        kernels.gated(x, x, torch.zeros(2, 4), torch.zeros(3, 8), None, None, "silu")
    with pytest.raises(ValueError, match="at most 16"):
        kernels.gated(x, x, torch.zeros(2, wide), torch.zeros(wide, 8), None, None, "silu")


def test_a_second_copy_of_the_package_has_the_first_s_operations() -> None:
    spec = importlib.util.spec_from_file_location("somebody_s_norm", Path(kernels.__file__).parent / "norm.py")
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert copy.norm is not kernels.norm
    assert copy._norm is torch.ops.fitune.norm.default


def test_an_activation_that_is_not_known() -> None:
    x = torch.zeros(2, 8)
    with pytest.raises(ValueError, match="activation 'relu' is not known; known are silu, gelu_tanh, gelu"):
        kernels.gated(x, x, None, None, None, None, "relu")
