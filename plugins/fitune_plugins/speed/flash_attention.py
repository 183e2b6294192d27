"""Memory strategy `flash-attention`: FlashAttention 3 or 4 in place of torch's own, where their packages are installed.

torch computes packed rows by FlashAttention 2, on every card. FlashAttention 3 (the package flash_attn_3) is made for
Hopper, and 4 (flash-attn-4) for Hopper and Blackwell; torch takes them through a registry of its own. Rows that are not
packed stay with cuDNN there, which torch prefers. Differs from the plain run by rounding.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fitune import Fit, MemoryStrategy, ModelError, Plan, Strategy, has_values, hookimpl, unwrapped

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "flash-attention"

MODULES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
"""Which torch's registry imports for each, the faster on Hopper first."""

MAJORS = {"FA3": (9,), "FA4": (9, 10)}
"""Major compute capabilities of their cards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashAttentionOptions:
    """Options of the strategy `flash-attention`."""

    implementation: Literal["installed", "FA3", "FA4"] = "installed"
    """"FA3" or "FA4", which must be installed and for the card; "installed" is the first of these that is, or torch's
    own."""


def installed() -> tuple[str, ...]:
    """The implementations whose packages are there; none is imported for that."""
    return tuple(name for name, module in MODULES.items() if _is_there(module))


def _is_there(module: str) -> bool:
    """Whether a module, or a package within one, is installed: to ask for the inner one would import the outer."""
    outer, *inner = module.split(".")
    try:
        found = importlib.util.find_spec(outer)
    except (ImportError, ValueError):  # what stands under its name is broken
        return False
    if found is None or not inner:
        return found is not None
    return any(Path(place, *inner).is_dir() for place in found.submodule_search_locations or ())


@dataclass(slots=True)
class FlashAttention(Strategy):
    """Says which is wanted; what composes the run has torch take it, and proves it on packed rows."""

    options: FlashAttentionOptions

    def plan(self, plan: Plan) -> Plan:
        """Want it, or say that there is none."""
        named = self.options.implementation
        if not plan.gpu:
            notice = f"{NAME} has no effect: it is for NVIDIA GPUs"
            return replace(plan, notices=(*plan.notices, notice))
        wanted = installed() if named == "installed" else (named,)
        if wanted:
            return replace(plan, flash_attention=wanted)
        notice = f"{NAME} has no effect: neither flash_attn_3 nor flash-attn-4 is installed here"
        return replace(plan, notices=(*plan.notices, notice))

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Raise `ModelError` where one that was named is not to be had; else nothing is done."""
        import torch

        named, device = self.options.implementation, unwrapped(model).device
        if named == "installed" or not has_values(model) or device.type != "cuda":
            return model
        else_do = f'Leave "implementation" out, or remove [[memory.strategy]] "{NAME}"'
        if not _is_there(MODULES[named]):
            raise ModelError(f"{NAME}: {named} is not installed ({MODULES[named]} is not found). {else_do}")
        if torch.cuda.get_device_capability(device)[0] not in MAJORS[named]:
            raise ModelError(f"{NAME}: {torch.cuda.get_device_name(device)} does not take {named}. {else_do}")
        return model


def _suits(config: PreTrainedConfig) -> bool:
    """Whether there is one, and the model's attention has no dropout, of which they have none."""
    return bool(installed()) and not getattr(config.get_text_config(), "attention_dropout", 0.0)


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[FlashAttentionOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="FlashAttention 3 or 4 for packed rows, where it is installed (Hopper, Blackwell)",
        options=FlashAttentionOptions,
        make=FlashAttention,
        exact=True,
        fit=Fit(free=True, suits=_suits),
    )
