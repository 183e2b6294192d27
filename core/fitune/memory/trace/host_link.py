"""Copies between the card and the host, where tensors without values stand for those on the card.

A third party's offload is forecast because its code runs: what it copies to the host gets a tensor there that has a
shape and a type, takes no memory of this machine, and leaves none behind on the card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

TO = "aten._to_copy.default"
"""`tensor.to(...)`, `.cpu()`."""

INTO = "aten.copy_.default"


def crossing(operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation copies from the card to the host, or back."""
    if operation == INTO:
        return isinstance(args[1], Tensor) and args[0].is_meta != args[1].is_meta
    if operation == TO:
        device = kwargs.get("device")
        return device is not None and args[0].is_meta != (torch.device(device).type == "meta")
    return False


def cross(func: Any, operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The result of such a copy; values that come from the card are zeros, where they are not what was there before."""
    to_host = args[0].is_meta if operation == TO else args[1].is_meta
    if not to_host:
        return func(*args, **kwargs)  # type: ignore[no-any-return]
    if operation == INTO:
        return args[0]  # type: ignore[no-any-return]
    dtype = kwargs.get("dtype") or args[0].dtype
    return torch.zeros((), dtype=dtype).expand(args[0].shape)
