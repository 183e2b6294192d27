"""Operations that a trace makes by itself, for speed: what they give is what torch gives."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fitune.memory.trace.fast_meta import USUAL, aten


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


TENSORS = (
    empty(2, 3, 4, 5),
    empty(2, 4, 3, 5).transpose(1, 2),
    empty(2, 3, 4, 5, dtype=torch.float32),
    empty(2, 3, 4, 5, dtype=torch.int64),
    empty(1, 1, 4, 5),
    empty(2, 1, 4, 5),
    empty(5),
    empty(),
    empty(2, 3, 4, 1),
    empty(2, 3, 1, 5).expand(2, 3, 4, 5),
    empty(2, 3, 4, 10)[..., ::2],
    empty(2, 3, 4, 5)[..., :3],
)


def facts(result: Any) -> Any:
    """Of each tensor what a trace and later operations see; strides of single elements say nothing."""
    if isinstance(result, tuple):
        return [facts(one) for one in result]
    if result is None:
        return None
    strides = [stride for stride, size in zip(result.stride(), result.shape, strict=True) if size > 1]
    return tuple(result.shape), strides, result.dtype, result.untyped_storage().nbytes(), result.device.type


def original(name: str) -> Any:
    _, packet, overload = name.split(".")
    return getattr(getattr(aten, packet), overload)


@pytest.mark.parametrize("name", ["aten.mul.Tensor", "aten.add.Tensor", "aten.sub.Tensor", "aten.div.Tensor"])
def test_two_tensors_in_every_layout(name: str) -> None:
    compared = 0
    for first, second in itertools.product(TENSORS, [*TENSORS, 2, 2.5]):
        try:
            expected = original(name)(first, second)
        except RuntimeError:
            continue
        assert facts(USUAL[name](first, second)) == facts(expected), (first.shape, first.stride(), second)
        compared += 1
    assert compared > 100


@pytest.mark.parametrize("name", ["neg", "silu", "sigmoid", "rsqrt"])
@pytest.mark.parametrize("tensor", [t for t in TENSORS if t.is_floating_point()], ids=lambda t: str(t.stride()))
def test_one_tensor_in_every_layout(name: str, tensor: Tensor) -> None:
    name = f"aten.{name}.default"
    assert facts(USUAL[name](tensor)) == facts(original(name)(tensor))


@pytest.mark.parametrize("power", [2, 0.5])
def test_powers(power: float) -> None:
    name = "aten.pow.Tensor_Scalar"
    for tensor in TENSORS:
        assert facts(USUAL[name](tensor, power)) == facts(original(name)(tensor, power))


def test_products_of_matrices() -> None:
    left, right = empty(6, 4), empty(8, 4).t()
    assert facts(USUAL["aten.mm.default"](left, right)) == facts(aten.mm.default(left, right))
    total = empty(6, 8)
    assert USUAL["aten.addmm_.default"](total, left, right) is total


@pytest.mark.parametrize("named", [{}, {"beta": -4.775, "alpha": 2.0315}, {"beta": 3}, {"beta": 0.0}], ids=str)
def test_products_with_another_beside_them(named: dict[str, float]) -> None:
    name, matrices = "aten.addmm.default", (empty(6, 4), empty(8, 4).t())
    for beside in (empty(6, 8), empty(8, 6).t(), empty(8), empty(1, 8), empty(6, 16)[:, ::2]):
        assert facts(USUAL[name](beside, *matrices, **named)) == facts(original(name)(beside, *matrices, **named))


@pytest.mark.parametrize("name", ["aten.linalg_vector_norm.default", "aten.mean.dim"])
@pytest.mark.parametrize("tensor", [t for t in TENSORS if t.is_floating_point()], ids=lambda t: str(t.stride()))
def test_what_makes_one_number_of_several(name: str, tensor: Tensor) -> None:
    norm = name.endswith("norm.default")
    dims = range(-tensor.dim(), tensor.dim())
    asked = [(), (2,), (1.0, [-1])] if norm else [([dim], *keep) for dim in dims for keep in ((), (True,), (False,))]
    asked += [] if norm else [([0, 1],), ([0, 1], True), ([],), (None,)]
    for arguments in asked:
        try:
            expected = original(name)(tensor, *arguments)
        except (RuntimeError, IndexError):
            with pytest.raises((RuntimeError, IndexError)):
                USUAL[name](tensor, *arguments)
            continue
        assert facts(USUAL[name](tensor, *arguments)) == facts(expected), arguments


@pytest.mark.parametrize("keys", [5, 7])
@pytest.mark.parametrize("turned", [True, False])
def test_attention(keys: int, turned: bool) -> None:
    forward = "aten._scaled_dot_product_flash_attention.default"

    def heads(tokens: int, number: int) -> Tensor:
        return empty(2, tokens, number, 8).transpose(1, 2) if turned else empty(2, number, tokens, 8)

    query, key, value = heads(5, 4), heads(keys, 2), heads(keys, 2)
    several = (query, empty(2, 4, 5, 16)[..., ::2], empty(1, 4, 5, 8).expand(2, 4, 5, 8))
    for one, rest, scale in itertools.product(several, [(), (0.1,), (0.0, True), (0.0, True, True)], [None, 0.5]):
        expected = original(forward)(one, key, value, *rest, scale=scale)
        results = USUAL[forward](one, key, value, *rest, scale=scale)
        assert [facts(r) if isinstance(r, Tensor) else r for r in results] == [
            facts(e) if isinstance(e, Tensor) else e for e in expected
        ]
        out, lse, _, _, tokens, others, seed, offset, _ = expected
        back = (out, one, key, value, out, lse, None, None, tokens, others, 0.0, True, seed, offset)
        name = "aten._scaled_dot_product_flash_attention_backward.default"
        assert facts(tuple(USUAL[name](*back, scale=scale))) == facts(tuple(original(name)(*back, scale=scale)))


def test_limits() -> None:
    for tensor, limits in itertools.product(TENSORS, [(1e-7,), (None, 1.0), (0, 1), (-0.5, 2)]):
        assert facts(USUAL["aten.clamp.default"](tensor, *limits)) == facts(aten.clamp.default(tensor, *limits))
        if tensor.is_floating_point():
            assert USUAL["aten.clamp_.default"](tensor, *limits) is tensor


@pytest.mark.parametrize("left", [empty(6, 5), empty(6, 4, 1)])
def test_what_cannot_be_multiplied_is_refused_by_torch(left: Tensor) -> None:
    with pytest.raises(RuntimeError):
        USUAL["aten.mm.default"](left, empty(4, 8))
    with pytest.raises(RuntimeError):
        USUAL["aten.addmm_.default"](empty(6, 8), left, empty(4, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norms(dtype: torch.dtype) -> None:
    inputs, weight = empty(2, 3, 8, dtype=dtype), empty(8)
    results = USUAL["aten._fused_rms_norm.default"](inputs, [8], weight, 1e-6)
    expected = aten._fused_rms_norm.default(inputs, [8], weight, 1e-6)
    assert facts(results) == facts(expected)
    for asked in ([True, True], [True, False]):
        arguments = inputs, inputs, [8], expected[1], weight, asked
        back = USUAL["aten._fused_rms_norm_backward.default"](*arguments)
        assert facts(back) == facts(aten._fused_rms_norm_backward.default(*arguments))
