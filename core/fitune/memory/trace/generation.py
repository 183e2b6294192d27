"""The memory of generated answers: what transformers' `generate` keeps and copies, on tensors without values.

`generate` itself asks values when to stop, so its steps are made here: the prompts of a micro-batch at once, then a
token at a time. Each token makes the cache anew, one layer after the other (`DynamicLayer.update`), so that the peak is
the whole cache and the copy of a layer, and the blocks in between grow. Shapes: B rows, P tokens of the longest prompt.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from fitune.memory.trace.tracer import Tracer
from fitune.plugin.model import unwrapped

STRIDES = 64
"""The cache grows in so many strides at most: each takes the time of a copy of it."""


@torch.no_grad()
def generate(
    model: nn.Module, rows: int, prompt: int, new_tokens: int, tracer: Tracer, device: torch.device
) -> DynamicCache:
    """Trace `Evaluator._generate`: answers of `new_tokens` tokens to `rows` prompts, the longest of `prompt` tokens.

    Gives the cache as it is at the end. The model must be in evaluation mode.
    """
    inner = unwrapped(model)
    ids = torch.empty((rows, prompt), dtype=torch.int64).to(device)
    mask = torch.empty((rows, prompt), dtype=torch.int64).to(device)
    cache = DynamicCache(config=inner.config.get_text_config(decoder=True))
    positions = (mask.cumsum(-1) - 1).clamp_(min=0)
    chosen = _next(inner, ids.clone(), mask, positions, cache)
    _tag(cache, tracer)
    if new_tokens > 1:
        _grow(cache, new_tokens - 2)
        _tag(cache, tracer)
        known = prompt + new_tokens - 1
        mask = mask.new_ones((rows, known))
        positions = positions.new_full((rows, 1), known - 1)
        _next(inner, chosen[:, None].clone(), mask, positions, cache)
        _tag(cache, tracer)
    return cache


def _next(model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """The next token of each row, `[B]`, by greedy decoding."""
    named: dict[str, Any] = {"logits_to_keep": 1, "position_ids": positions}
    known = inspect.signature(model.forward).parameters
    named = {name: value for name, value in named.items() if name in known}
    logits = cast(Any, model)(
        input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, return_dict=True, **named
    ).logits
    return logits[:, -1].to(copy=True, dtype=torch.float32).argmax(-1)  # type: ignore[no-any-return]


def _grow(cache: DynamicCache, tokens: int) -> None:
    """Add so many tokens to each layer's keys and values, as decoding does, but several at a time."""
    done = 0
    for stride in range(1, STRIDES + 1):
        more = tokens * stride // STRIDES - done
        if more:
            for number, layer in enumerate(cache.layers):
                keys, values = _kept(layer)
                if keys is not None and values is not None:  # a layer with a state of one size does not grow
                    cache.update(_tokens(keys, more), _tokens(values, more), number)
                del keys, values
        done += more


def _kept(layer: object) -> tuple[Tensor | None, Tensor | None]:
    return getattr(layer, "keys", None), getattr(layer, "values", None)


def _tokens(kept: Tensor, number: int) -> Tensor:
    rows, heads, _, size = kept.shape
    return kept.new_empty((rows, heads, number, size))


def _tag(cache: DynamicCache, tracer: Tracer) -> None:
    tracer.retag((tensor for layer in cache.layers for tensor in _kept(layer)), "key-value cache")
