"""Which decoder layers are known, and where their parts are: those of Llama, and of its relations.

A layer is known by its class in transformers, not by the names of its parts: what its `forward` does between them is
written down here for each. Anything else is left to transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fitune_plugins.speed.grouping import CannotGroup, group
from fitune_plugins.speed.layer_parts import Mlp, Norm, Output, Projections
from fitune_plugins.speed.linears import Group

if TYPE_CHECKING:
    from torch import nn

ACTIVATIONS: Mapping[str, str] = MappingProxyType({
    "SiLU": "silu", "SiLUActivation": "silu", "GELUTanh": "gelu_tanh", "PytorchGELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh", "FastGELUActivation": "gelu_tanh", "GELUActivation": "gelu", "GELU": "gelu",
})  # fmt: skip
"""Classes of activations, and what the kernel calls them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What is particular to a kind of decoder layer; names are those of its attributes."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    unit_offset: bool = False
    round_first: bool = True
    head_norms: bool = False
    whole_norms: bool = False
    one_product: bool = False
    """Whether q, k and v are one linear, and gate and up another."""
    multiplier: str | None = None
    rotary: str | None = None
    """What says of an attention whether it has a rotary embedding; None where each has."""
    window: Callable[[Any], int | None] | None = None
    """The sliding window that an attention passes on; None where it passes none."""
    softcap: str | None = None
    drops: tuple[str, ...] = ()
    """Dropouts of the residual."""


def _own_window(attention: Any) -> int | None:
    return attention.sliding_window  # type: ignore[no-any-return]


def _window_of_config(attention: Any) -> int | None:
    return getattr(attention.config, "sliding_window", None)


_SANDWICH: dict[str, Any] = {
    "after_attention": "post_attention_layernorm",
    "before_mlp": "pre_feedforward_layernorm",
    "after_mlp": "post_feedforward_layernorm",
    "unit_offset": True,
    "round_first": False,
    "window": _own_window,
}

FAMILIES: Mapping[str, Family] = MappingProxyType({
    "LlamaDecoderLayer": Family(),
    "MistralDecoderLayer": Family(window=_window_of_config),
    "Qwen2DecoderLayer": Family(window=_own_window),
    "Qwen3DecoderLayer": Family(window=_own_window, head_norms=True),
    "GemmaDecoderLayer": Family(unit_offset=True, round_first=False),
    "Gemma2DecoderLayer": Family(**_SANDWICH, softcap="attn_logit_softcapping"),
    "Gemma3DecoderLayer": Family(**_SANDWICH, head_norms=True),
    "Phi3DecoderLayer": Family(
        window=_window_of_config, one_product=True, drops=("resid_attn_dropout", "resid_mlp_dropout")
    ),
    "GraniteDecoderLayer": Family(multiplier="residual_multiplier"),
    "Olmo2DecoderLayer": Family(
        before_attention=None,
        after_attention="post_attention_layernorm",
        before_mlp=None,
        after_mlp="post_feedforward_layernorm",
        round_first=False,
        whole_norms=True,
    ),
    "SmolLM3DecoderLayer": Family(window=_own_window, rotary="use_rope"),
})  # fmt: skip
"""By the name of the class."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a layer is made of."""

    family: Family
    projections: Projections
    output: Output
    mlp: Mlp | None
    """None where another strategy has changed it."""
    eager: Callable[..., Any]
    """transformers' attention where no other is chosen."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """All linears."""
        of_mlp = () if self.mlp is None else (self.mlp.group, self.mlp.down)
        return self.projections.group, self.output.group, *of_mlp


def family_of(layer: nn.Module) -> Family | None:
    """What is known of a layer; None for one that is not known."""
    own = type(layer).__module__.startswith("transformers.models.")
    return FAMILIES.get(type(layer).__name__) if own else None


def parts_of(layer: Any) -> Parts:
    """What a layer is made of. Raises `CannotGroup`, where it is not known, or has something that is not."""
    family = family_of(layer)
    if family is None:
        raise CannotGroup(f"{type(layer).__name__} is no decoder layer that is known here")
    if any(getattr(layer, name).p for name in family.drops):
        raise CannotGroup("the model drops parts of its residual")
    attention, mlp = layer.self_attn, layer.mlp
    _must_be_its_own(layer, attention)
    multiplier = 1.0 if family.multiplier is None else float(getattr(layer, family.multiplier))
    names = ("qkv_proj",) if family.one_product else ("q_proj", "k_proj", "v_proj")
    config = attention.config
    projections = Projections(
        group=group([getattr(attention, name) for name in names]),
        norm=_norm(layer, family.before_attention, family),
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        rotary=family.rotary is None or bool(getattr(attention, family.rotary)),
        head_norms=_pair(attention, family) if family.head_norms else None,
        whole_norms=_pair(attention, family) if family.whole_norms else None,
    )
    return Parts(
        family=family,
        projections=projections,
        output=Output(group([attention.o_proj]), _norm(layer, family.after_attention, family), multiplier),
        mlp=None if "forward" in mlp.__dict__ else _mlp(layer, family, multiplier),
        eager=sys.modules[type(attention).__module__].eager_attention_forward,
    )


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _must_be_its_own(layer: nn.Module, attention: nn.Module) -> None:
    """Raise `CannotGroup` if something would be passed by: hooks of parts, or what stands for a `forward`."""
    if any(getattr(part, kind) for part in layer.modules() if part is not layer for kind in HOOKS):
        raise CannotGroup("its parts have hooks, which would not be called")
    if "forward" in layer.__dict__ or "forward" in attention.__dict__:
        raise CannotGroup("another strategy has changed what it computes")


def _mlp(layer: Any, family: Family, multiplier: float) -> Mlp:
    mlp = layer.mlp
    names = ("gate_up_proj",) if family.one_product else ("gate_proj", "up_proj")
    kind = type(mlp.activation_fn if family.one_product else mlp.act_fn).__name__
    if kind not in ACTIVATIONS:
        raise CannotGroup(f"its activation {kind} is none that is known here")
    return Mlp(
        group=group([getattr(mlp, name) for name in names]),
        down=group([mlp.down_proj]),
        norm=_norm(layer, family.before_mlp, family),
        after=_norm(layer, family.after_mlp, family),
        multiplier=multiplier,
        act=ACTIVATIONS[kind],
    )


def _pair(attention: Any, family: Family) -> tuple[Norm, Norm]:
    return _one_norm(attention.q_norm, family), _one_norm(attention.k_norm, family)


def _norm(layer: Any, name: str | None, family: Family) -> Norm | None:
    return None if name is None else _one_norm(getattr(layer, name), family)


def _one_norm(module: Any, family: Family) -> Norm:
    if module.weight.requires_grad:
        raise CannotGroup("its norms train")
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return Norm(module.weight, float(eps), family.unit_offset, family.round_first)
