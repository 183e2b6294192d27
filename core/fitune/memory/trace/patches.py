"""What differs between tensors without values and real ones on a card: patched while a forecast is traced.

Functions are replaced where models look them up. A `TorchFunctionMode` would not do: the backward pass leaves it, and
a layer that is computed again there would take other kernels.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers.integrations.moe
import transformers.masking_utils
from torch import Tensor
from transformers import PreTrainedModel

from fitune.memory.kernels.torch_version import Version, torch_version
from fitune.memory.trace.functional import functions
from fitune.memory.trace.meta import DEVICE
from fitune.memory.trace.outputs import prepare

SKIP = "_ignore_bidirectional_mask_sdpa"
"""Asks whether an encoder's mask leaves no token out."""


@contextlib.contextmanager
def replaced(home: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute with another value for a while; nothing is done if there is no such attribute."""
    missing = object()
    before = getattr(home, name, missing)
    if before is missing:
        yield
        return
    setattr(home, name, value)
    try:
        yield
    finally:
        setattr(home, name, before)


@contextlib.contextmanager
def as_on_card(
    capability: tuple[int, int], version: Version | None = None, *, deterministic: bool = False
) -> Iterator[None]:
    """Functional operations as CUDA computes them on a card of this compute capability, with a torch of this version
    (or the one that is there), where they must be deterministic or need not.
    """
    prepare()
    foreach = importlib.import_module("torch.utils._foreach_utils")
    optimizer = importlib.import_module("torch.optim.optimizer")  # torch.optim has a class of that name too
    with contextlib.ExitStack() as stack:
        for name, value in functions(capability, version or torch_version(), deterministic=deterministic).items():
            stack.enter_context(replaced(F, name, value))
        for name in ("_get_fused_kernels_supported_devices", "_get_foreach_kernels_supported_devices"):
            for home in (optimizer, foreach):
                stack.enter_context(replaced(home, name, lambda: ["cuda", "cpu", DEVICE.type]))
        # Experts are multiplied in groups, whatever the routing: no size depends on which token goes where.
        grouped = capability >= (8, 0)
        stack.enter_context(replaced(transformers.integrations.moe, "_can_use_grouped_mm", lambda *given: grouped))
        stack.enter_context(replaced(torch, "autocast", _Autocast))
        yield


class _Autocast(torch.autocast):
    """Autocast that knows the device of tensors without values, where it is switched off: peft does so for experts."""

    def __init__(self, device_type: str, *given: Any, **how: Any) -> None:
        super().__init__("cpu" if device_type == DEVICE.type else device_type, *given, **how)


def _look_for_padding(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """What a model does to warn of padding without a mask, but for the warning."""
    padding = model.config.pad_token_id
    if attention_mask is None and padding is not None:
        ends = input_ids[:, [-1, 0]]
        (padding == ends).any()


@dataclass(slots=True)
class Known:
    """What is known of the values of the batch at hand."""

    packed: bool = False
    """Whether rows hold several documents, one of which begins where its positions do."""
    padded: bool = False
    """Whether the attention mask, if there is one, leaves a token out."""


@contextlib.contextmanager
def as_with_values() -> Iterator[Known]:
    """transformers' masks as it makes them of real tensors; its questions to values are answered by what is given,
    which may be changed from batch to batch.
    """
    known = Known()
    masks = transformers.masking_utils
    find = masks.find_packed_sequence_indices
    skip: Any = getattr(masks, SKIP, None)

    def asked(sequences: Tensor) -> bool:
        (sequences[:, -1] == 0).all()  # the question itself, which takes memory too
        return True

    def documents(position_ids: Tensor) -> Tensor | None:
        with replaced(masks, "is_tracing", asked):
            found = find(position_ids)
        return found if known.packed else None

    def whole(mask: Tensor) -> bool:
        return not known.padded

    def skipped(mask: Tensor | None, *given: Any, **named: Any) -> bool:
        if mask is not None:
            mask.all()  # the question itself
        return not known.padded and bool(skip(None, *given, **named))

    with (
        replaced(masks, "find_packed_sequence_indices", documents),
        replaced(masks, "fast_all", whole),
        replaced(masks, SKIP, skipped),
        replaced(PreTrainedModel, "warn_if_padding_and_no_attention_mask", _look_for_padding),
    ):
        yield known
