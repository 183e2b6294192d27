"""A decoder layer that is computed in three pieces, in place of transformers' own `forward`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fitune_plugins.speed.families import Parts, parts_of
from fitune_plugins.speed.grouping import join, rejoin
from fitune_plugins.speed.pieces import mlp, output, project

CHECKPOINTED_OUTSIDE = "__call__" in GradientCheckpointingLayer.__dict__
"""Whether transformers checkpoints a layer around its `forward`; from 5.23 on it does so in that of the class."""


class FastLayer:
    """Stands for a layer's `forward`; attention itself is computed as the model is told to.

    Where the layer is asked for something else than training or judging rows (with a cache, or for a gradient with its
    adapters off), its own `forward` answers, from the same weights.
    """

    def __init__(self, layer: Any) -> None:
        """Take a layer apart. Raises `CannotGroup`; nothing is changed before `join`."""
        self.layer = layer
        self.parts: Parts = parts_of(layer)
        self._adapted: Any = next((m for m in layer.modules() if hasattr(m, "lora_A")), None)
        self._names = [] if self._adapted is None else list(self._adapted.active_adapters)

    def join(self) -> None:
        """Put the adapters of each group side by side, and take the layer's `forward` over."""
        for one in self.parts.groups:
            join(one)
        self.layer.__dict__["forward"] = self

    def recompute_mlp(self) -> bool:
        """Have gate and up computed again in the backward pass; False where the MLP is not computed here."""
        if self.parts.mlp is not None:
            self.parts.mlp.recompute = True
        return self.parts.mlp is not None

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: Any = None,
        **named: Any,
    ) -> Tensor:
        """What the layer gives of hidden states `[B, S, H]`."""
        layer = self.layer
        if past_key_values is not None or self._is_plain():
            plain: Callable[..., Tensor] = type(layer).forward
            return plain(
                layer,
                hidden_states=hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **named,
            )
        for one in self.parts.groups:
            rejoin(one)
        forward = partial(self._forward, attention_mask, position_ids, position_embeddings, named)
        if self._is_off():
            return self._without_adapters(forward, hidden_states)
        if layer.gradient_checkpointing and layer.training and not CHECKPOINTED_OUTSIDE:
            made: Tensor = layer._gradient_checkpointing_func(forward, hidden_states)
            return made
        return forward(hidden_states)

    def _forward(
        self, mask: Tensor | None, ids: Tensor | None, position_embeddings: Any, named: dict[str, Any], hidden: Tensor
    ) -> Tensor:
        parts, training = self.parts, self.layer.training
        cos, sin = (None, None) if position_embeddings is None else position_embeddings
        q, k, v, residual = project(hidden, cos, sin, parts.projections, training=training)
        attended = self._attend(q, k, v, mask, ids, named)
        between = output(attended, residual, parts.output, training=training)
        if parts.mlp is not None:
            return mlp(between, parts.mlp, training=training)
        return self._plain_mlp(between)

    def _is_plain(self) -> bool:
        """Whether adapters are part of the weights, others than those known here, or switched off where somebody may
        want a gradient, just now.
        """
        one = self._adapted
        if one is None:
            return False
        unknown = bool(one.merged) or list(one.active_adapters) != self._names
        return unknown or (self._is_off() and torch.is_grad_enabled())

    def _is_off(self) -> bool:
        return self._adapted is not None and bool(self._adapted.disable_adapters)

    def _without_adapters(self, forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """By the same kernels, so that what differs from a pass with adapters is what these do."""
        for one in self.parts.groups:
            one.off = True
        try:
            return forward(hidden)
        finally:
            for one in self.parts.groups:
                one.off = False

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, ids: Any, named: dict[str, Any]) -> Tensor:
        """Attention as the model's configuration names it, `[B, S, heads, D]`."""
        attention, family = self.layer.self_attn, self.parts.family
        more: dict[str, Any] = {}
        if family.window is not None:
            more["sliding_window"] = family.window(attention)
        if family.softcap is not None:
            more["softcap"] = getattr(attention, family.softcap)
        compute: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention.config._attn_implementation, self.parts.eager
        )
        attended: Tensor = compute(
            attention,
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            mask,
            dropout=attention.attention_dropout if attention.training else 0.0,
            scaling=attention.scaling,
            position_ids=ids,
            **more,
            **named,
        )[0]
        return attended

    def _plain_mlp(self, x: Tensor) -> Tensor:
        """The MLP by its own modules, which another strategy has changed."""
        layer, family, factor = self.layer, self.parts.family, self.parts.output.multiplier
        hidden = x if family.before_mlp is None else getattr(layer, family.before_mlp)(x)
        made = layer.mlp(hidden)
        if family.after_mlp is not None:
            made = getattr(layer, family.after_mlp)(made)
        return x + (made if factor == 1 else made * factor)  # type: ignore[no-any-return]
