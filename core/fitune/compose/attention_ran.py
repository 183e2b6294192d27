"""Which attention ran: the kernels that torch's dispatcher was asked for, not those that were hoped for.

A forward pass is watched by torch's record of operations (the older profiler, of operations alone: it looks at no GPU,
takes none of its memory, and starts at once). That sees what layers, checkpoints, strategies' kernels and compiled code
call, on any device. One micro-batch of each form is enough: packed or not, and its length to the next power of two.
What a CUDA graph replays was seen as it was computed before it was recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from fitune.compose import flash_attention
from fitune.plugin.model import has_values

if TYPE_CHECKING:
    from torch import nn

    from fitune.plugin.dataflow import Batch

FLASH = {
    "aten::_scaled_dot_product_flash_attention": "flash attention",
    "torch_attn::_varlen_attn": "variable-length flash attention",
}
"""Operations that FlashAttention 2 computes, or what was put in its place, and what they are called."""

KERNELS = {
    **FLASH,
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
    "aten::_scaled_dot_product_efficient_attention": "memory-efficient attention",
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_scaled_dot_product_attention_math_for_mps": "MPS",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash attention on the CPU",
    "aten::_scaled_dot_product_fused_attention_overrideable": "the device's own",
    "flash_attn::_flash_attn_forward": "the package flash-attn",
    "flash_attn::_flash_attn_varlen_forward": "the package flash-attn, variable length",
}
"""All that are looked for, by the names under which the dispatcher knows them."""


class AttentionRan:
    """The attention of a run's micro-batches, as it was computed."""

    def __init__(self, model: nn.Module) -> None:
        """Of a model without values, which a forecast has, nothing is watched."""
        self._model = model
        self._watches = has_values(model)
        self._forms: set[tuple[bool, int]] = set()
        self.kernels: tuple[str, ...] = ()
        """By name, each once, in the order in which they were met: e.g. `cuDNN`. Of a model that calls none of torch's,
        what transformers calls its attention: `eager`."""

    @contextlib.contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """A context for the forward pass of a batch; nothing is done for one of a form that was seen."""
        form = batch.positions is not None, int(batch.input_ids.shape[1]).bit_length()
        if not self._watches or form in self._forms or _is_profiled():
            yield
            return
        self._forms.add(form)
        self._watches = _began()
        if not self._watches:
            yield
            return
        found: list[str] = []
        try:
            yield
        finally:
            found += _ended()
        self._note(found)

    def _note(self, operations: list[str]) -> None:
        met = [self._name(one) for one in operations if one in KERNELS]
        if not met and not self.kernels:
            config: Any = getattr(self._model, "config", None)
            met = [name] if (name := getattr(config, "_attn_implementation", None)) else []
        self.kernels = tuple(dict.fromkeys((*self.kernels, *met)))

    @staticmethod
    def _name(operation: str) -> str:
        name = KERNELS[operation]
        return f"{name} ({flash_attention.current()})" if operation in FLASH else name


def _is_profiled() -> bool:
    """Whether somebody looks at this thread's operations already."""
    look = getattr(torch.autograd, "_profiler_enabled", None)
    return look is None or bool(look())


def _began() -> bool:
    """Have operations of this thread recorded; false where this torch does not: no record is worth a run."""
    try:
        from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

        config = ProfilerConfig(ProfilerState.CPU, False, False, False, False, False, _ExperimentalConfig())
        torch._C._autograd._enable_profiler_legacy(config)
    except (ImportError, AttributeError, TypeError, RuntimeError):  # none of it is torch's public part
        return False
    return True


def _ended() -> list[str]:
    """The names of all operations since then."""
    return [event.name() for events in torch._C._autograd._disable_profiler_legacy() for event in events]
