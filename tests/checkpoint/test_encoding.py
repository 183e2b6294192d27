"""Nested values as JSON and tensors: what comes back is what went in, and nothing else goes in."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fitune.checkpoint.encoding import MARKS, decode, encode


def there_and_back(value: Any) -> Any:
    """Through the text that a file holds."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(encode(value, tensors, "v"), allow_nan=False)
    return decode(json.loads(text), tensors)


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
keys = st.sampled_from([*MARKS, "a", ""]) | st.integers(0, 3) | st.tuples(st.integers(0, 1), st.text(max_size=1))
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def typed(value: Any) -> Any:
    """With the types of numbers, which == does not tell apart."""
    if isinstance(value, dict):
        return {key: typed(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(typed, value))
    return type(value), value


@settings(derandomize=True, deadline=None, max_examples=100)
@given(values)
def test_every_value_comes_back(value: Any) -> None:
    assert typed(there_and_back(value)) == typed(value)


def test_a_number_that_is_none_comes_back() -> None:
    found = there_and_back([math.nan, math.inf, -math.inf, -0.0])
    assert math.isnan(found[0])
    assert found[1:3] == [math.inf, -math.inf]
    assert math.copysign(1, found[3]) == -1


@pytest.mark.parametrize("mark", sorted(MARKS))
def test_a_dict_that_looks_like_a_mark_is_none(mark: str) -> None:
    examples: list[Any] = [{mark: "x"}, {mark: ["x"]}, {mark: "x", "other": 1}, {"outer": {mark: {mark: []}}}]
    for value in examples:
        assert there_and_back(value) == value


def test_keys_keep_their_type_and_order() -> None:
    found = there_and_back({1: "a", "1": "b", (0, "x"): "c"})
    assert list(found.items()) == [(1, "a"), ("1", "b"), ((0, "x"), "c")]
    assert list(there_and_back(OrderedDict([("b", 1), ("a", 2)]))) == ["b", "a"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool])
def test_tensors_keep_type_shape_and_bits(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    value = there_and_back({"state": {0: {"exp_avg": tensor, "step": torch.tensor(3.0)}}, "empty": tensor[:0]})
    found = value["state"][0]["exp_avg"]
    assert (found.dtype, found.shape) == (dtype, (2, 3))
    assert torch.equal(found, tensor)
    assert value["state"][0]["step"].shape == ()
    assert value["empty"].shape == (0, 3)


def test_what_is_stored_is_whole_and_needs_no_gradient() -> None:
    """Files of tensors hold them in one piece."""
    parameter = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    tensors: dict[str, Tensor] = {}
    assert encode([parameter.T], tensors, "v") == [{"tensor": "v.0"}]
    assert tensors["v.0"].is_contiguous()
    assert not tensors["v.0"].requires_grad
    assert torch.equal(tensors["v.0"], parameter.detach().T)


def test_names_tell_where_a_tensor_is() -> None:
    tensors: dict[str, Tensor] = {}
    encode({"a": [torch.ones(1), (torch.ones(1), {"b": np.ones(1)})], 3: torch.ones(1)}, tensors, "optimizer")
    assert sorted(tensors) == ["optimizer.3", "optimizer.a.0", "optimizer.a.1.0", "optimizer.a.1.1.b"]


def test_arrays_come_back_as_arrays_and_are_copied() -> None:
    array = np.arange(624, dtype=np.uint64)
    tensors: dict[str, Tensor] = {}
    encoded = encode(("MT19937", array, 3, 0, 0.0), tensors, "v")
    array[:] = 0
    name, found, *rest = decode(encoded, tensors)
    assert (name, rest) == ("MT19937", [3, 0, 0.0])
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.uint64
    assert found.tolist() == list(range(624))


def test_numpys_numbers_become_pythons() -> None:
    found = there_and_back([np.float32(0.5), np.int64(3), np.bool_(True)])
    assert typed(found) == typed([0.5, 3, True])


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", 1j, print])
def test_what_a_checkpoint_cannot_hold_is_named(value: object) -> None:
    with pytest.raises(TypeError) as raised:
        encode({"a": [1, value]}, {}, "optimizer")
    assert str(raised.value) == f"optimizer.a.1 is of type {type(value).__qualname__}, which a checkpoint cannot hold"


def test_a_tensor_that_is_missing() -> None:
    for mark in ("tensor", "array"):
        with pytest.raises(KeyError, match=r"v\.0"):
            decode([{mark: "v.0"}], {})
