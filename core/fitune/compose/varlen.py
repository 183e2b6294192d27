"""Attention that reads where documents begin and end, instead of a mask: `torch.nn.attention.varlen`.

A mask of a packed row costs `length` squared bytes and the fast kernels; this costs nothing, and leaves out the work
between documents. It comes with torch, so the flash-attn package is not needed. Shapes: B rows, S tokens, H heads,
K heads of keys and values, D head size, T = B x S tokens of all rows, N documents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fitune.compose import flash_attention

NAME = "fitune_documents"
"""Name under which transformers finds this attention. It must not hold "flash": transformers looks for that."""

Kernel = Callable[..., Tensor]
"""`(query_THD, key_TKD, value_TKD, ends_N1, longest, *, scale, window) -> out_THD`, causal within each document."""

TYPES = (torch.bfloat16, torch.float16)
"""What the kernel computes in."""


class UnsupportedError(Exception):
    """The kernel cannot compute this model's attention; says why, as the end of a sentence."""


def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a device. Raises `UnsupportedError` if it is no NVIDIA GPU."""
    if device.type != "cuda" or torch.version.cuda is None:
        raise UnsupportedError("it needs an NVIDIA GPU")
    return torch.cuda.get_device_capability(device)


def check(capability: tuple[int, int]) -> None:
    """Raise `UnsupportedError` if the kernel cannot run on a card of this compute capability."""
    if capability < (8, 0):
        raise UnsupportedError("it needs a GPU of compute capability 8.0 or higher")


def kernel_of(varlen_attn: Callable[..., Any]) -> Kernel:
    """The kernel by torch's function. From torch 2.12 on, grouped heads must be allowed, which 2.11 just does."""
    known = inspect.signature(varlen_attn).parameters
    gqa = "enable_gqa" in known
    whole = {"num_splits": 1} if "num_splits" in known else {}  # sums in one order, and no memory for parts of them

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, *, scale: float, window: int | None
    ) -> Tensor:
        more: dict[str, Any] = {"enable_gqa": True} if gqa and query.shape[1] != key.shape[1] else {}
        if flash_attention.current() != flash_attention.OWN:
            more |= whole
        back = -1 if window is None or window >= longest else window - 1  # the token itself is not counted here
        out: Tensor = varlen_attn(
            query, key, value, ends, ends, longest, longest, scale=scale, window_size=(back, 0), **more
        )
        return out

    return kernel


KERNEL = kernel_of(varlen_attn)
"""Made once: a layer that is compiled need not look at signatures."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **named: Any,
) -> tuple[Tensor, None]:
    """An attention of transformers' interface, `[B, H, S, D]` to `[B, S, H, D]`.

    Rows that are not packed (generation, evaluation) come without the ends of documents and go to torch's scaled
    dot-product attention, with transformers' mask. Raises `UnsupportedError`.
    """
    ends = named.get("cu_seq_lens_q")
    if ends is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **named
        )
    if query.dtype not in TYPES:
        raise UnsupportedError(f"it needs bfloat16 or float16, and the model computes in {str(query.dtype)[6:]}")
    if dropout:
        raise UnsupportedError("the model has attention dropout")
    for name in ("softcap", "s_aux", "position_bias"):
        if named.get(name) is not None:
            raise UnsupportedError(f'the model\'s attention has a "{name}"')
    if named.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise UnsupportedError("the model's attention is not causal")
    size = query.shape[-1]
    if max(size, value.shape[-1]) > 256:
        raise UnsupportedError(f"heads of {size} numbers are over 256")
    width = -(-max(size, value.shape[-1]) // 8) * 8  # one width for all, as the kernel wants; zeros change nothing
    out_THD = KERNEL(
        *(_flat(tensor, width) for tensor in (query, key, value)),
        ends,
        named["max_length_q"],
        scale=size**-0.5 if scaling is None else scaling,
        window=named.get("sliding_window"),
    )
    rows, _, tokens, _ = query.shape
    return out_THD[..., : value.shape[-1]].unflatten(0, (rows, tokens)), None


def _flat(tensor_BHSD: Tensor, width: int) -> Tensor:
    """`[B, H, S, D]` as `[T, H, width]`, with zeros behind."""
    flat = tensor_BHSD.transpose(1, 2).flatten(0, 1)
    return flat if flat.shape[-1] == width else F.pad(flat, (0, width - flat.shape[-1]))


def switch_on(inner: PreTrainedModel, capability: tuple[int, int] | None = None) -> Callable[[], None]:
    """Give a model that computes attention by `sdpa` this one; gives what undoes it. Raises `UnsupportedError`.

    The compute capability is that of the model's device, unless it is given.
    """
    before = inner.config._attn_implementation
    if before != "sdpa":
        raise UnsupportedError(f'the model computes its attention by "{before}"')
    check(capability_of(inner.device) if capability is None else capability)
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    inner.set_attn_implementation(NAME)
    handle = inner.base_model.register_forward_pre_hook(_without_mask, with_kwargs=True)

    def undo() -> None:
        handle.remove()
        inner.set_attn_implementation(before)

    if inner.config._attn_implementation != NAME:
        undo()
        raise UnsupportedError(f"{type(inner).__name__} does not take transformers' attention interface")
    return undo


def _without_mask(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Keep transformers from making a mask of a packed batch, which also waits for the GPU.

    It takes a mask of four dimensions as given. This one has no element, so that an attention which does not know
    the ends of documents, and would need a mask, fails rather than lets documents see each other.
    """
    if named.get("cu_seq_lens_q") is None or named.get("attention_mask") is not None:
        return args, named
    return args, {**named, "attention_mask": named["cu_seq_lens_q"].new_empty((1, 1, 0, 0), dtype=torch.bool)}
