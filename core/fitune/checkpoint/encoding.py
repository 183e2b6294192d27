"""Nested values with tensors in them, as JSON and a set of named tensors: nothing that is read can run code.

JSON has no tuples, no keys but strings, no bytes and no infinity. Each such value is an object with one key that says
what it is: `{"tuple": [...]}`, `{"dict": [[key, value], ...]}`, `{"tensor": NAME}`, `{"array": NAME}`,
`{"float": "inf"}`. A dict with strings alone for its keys is an object, wrapped if it has one of these keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

MARKS = frozenset({"tuple", "dict", "tensor", "array", "float"})


def encode(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """The value as JSON; its tensors are added to `tensors`, under names that begin with `name`.

    Raises `TypeError`, with the name, for what is neither plain nor a tensor.
    """
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu").contiguous()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(value.copy())
        return {"array": name}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [encode(one, tensors, f"{name}.{at}") for at, one in enumerate(value)]}
    if isinstance(value, list):
        return [encode(one, tensors, f"{name}.{at}") for at, one in enumerate(value)]
    if isinstance(value, Mapping):
        return _encoded(value, tensors, name)
    raise TypeError(f"{name} is of type {type(value).__qualname__}, which a checkpoint cannot hold")


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that was encoded. Raises `KeyError` where a tensor is missing."""
    if isinstance(value, list):
        return [decode(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((mark, inner),) = value.items()
        if mark == "tensor":
            return tensors[inner]
        if mark == "array":
            return tensors[inner].numpy()
        if mark == "float":
            return float(inner)
        if mark == "tuple":
            return tuple(decode(one, tensors) for one in inner)
        if mark == "dict":
            return {decode(key, tensors): decode(one, tensors) for key, one in inner}
    return {key: decode(one, tensors) for key, one in value.items()}


def _encoded(value: Mapping[Any, Any], tensors: dict[str, Tensor], name: str) -> Any:
    inner = {key: encode(one, tensors, f"{name}.{key}") for key, one in value.items()}
    if all(isinstance(key, str) for key in inner) and not MARKS & inner.keys():
        return inner
    return {"dict": [[encode(key, tensors, f"{name}.key"), one] for key, one in inner.items()]}
