"""FlashAttention 3 and 4 in place of torch's own FlashAttention 2, by torch's registry (`torch.nn.attention`).

What a packed row's variable-length attention computes, and any attention that torch gives to FlashAttention, is then
computed by an installed package. It is asked for by a strategy (`Plan.flash_attention`). The registry is the
process's, so each composition says anew what it wants.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import attention
from torch.nn.attention._fa4 import register_flash_attention_fa4

from fitune.errors import described
from fitune.plugin.model import unwrapped
from fitune.plugin.recipe import Recipe
from fitune.plugin.strategy import Plan

if TYPE_CHECKING:
    from torch import nn

OWN = "FA2"
"""torch's own."""

MAJORS = {"FA3": (9,), "FA4": (9, 10)}
"""Major compute capabilities for which torch's registry calls each (`torch/nn/attention/_fa3.py`, `_fa4.py`)."""

attention.register_flash_attention_impl(
    "FA4", register_fn=partial(register_flash_attention_fa4, module_path="fitune.compose.flash_attention_4")
)


def taken(wanted: Sequence[str], capability: tuple[int, int], *, deterministic: bool = False) -> str:
    """The first of those wanted that a card of this compute capability can take; "FA2" where none can, and where the
    run is to be deterministic, which the others are not at every head size.
    """
    if deterministic:
        return OWN
    return next((name for name in wanted if capability[0] in MAJORS.get(name, ())), OWN)


def possible(
    wanted: Sequence[str], capability: tuple[int, int], *, deterministic: bool = False, here: bool = True
) -> tuple[str, ...]:
    """Those that may compute it on a card of this compute capability: the one that is taken of those wanted; where the
    card is of another machine, not `here`, whose packages nobody knows, any that such a card takes.
    """
    if here or deterministic:
        return (taken(wanted, capability, deterministic=deterministic),)
    return (OWN, *(name for name, majors in MAJORS.items() if capability[0] in majors))


def current() -> str:
    """What torch's FlashAttention is computed by now."""
    look = getattr(attention, "current_flash_attention_impl", None)
    return (None if look is None else look()) or OWN


def switch(name: str) -> str:
    """Have torch's FlashAttention computed by this one; gives why that cannot be, as the end of a sentence, and leaves
    torch's own, or an empty text.
    """
    if name == current():
        return ""
    registry: Any = attention  # in torch 2.11 and later
    if not hasattr(registry, "activate_flash_attention_impl"):
        return f"torch {torch.__version__} has no registry of them"
    if current() != OWN:
        registry.restore_flash_attention_impl()
    if name == OWN:
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kernels that are overridden: that is what is asked for
            registry.activate_flash_attention_impl(name)
    except Exception as error:  # whatever the package's import, or its kernels' registration, may raise
        if current() != OWN:
            registry.restore_flash_attention_impl()
        return described(error)
    return "" if current() == name else "torch does not say that it is at work"


def put(plan: Plan, recipe: Recipe, model: nn.Module) -> Plan:
    """Have FlashAttention computed by what the plan wants, where the model's card takes it, or else by torch's own; a
    notice says why it could not be.
    """
    wanted, inner = OWN, unwrapped(model)
    if plan.flash_attention and inner.device.type == "cuda" and not drops(inner.config):
        capability = torch.cuda.get_device_capability(inner.device)
        wanted = taken(plan.flash_attention, capability, deterministic=recipe.general.deterministic)
    why = switch(wanted)
    return replace(plan, notices=(*plan.notices, f"{wanted} is not used: {why}")) if why else plan


def take_out(plan: Plan, why: str) -> Plan:
    """Go back to torch's own, and say why."""
    notice = f"{current()} is not used, but torch's own: {why}"
    switch(OWN)
    return replace(plan, notices=(*plan.notices, notice))


def drops(config: Any) -> bool:
    """Whether a model's attention has dropout, of which these packages have none."""
    return bool(getattr(config.get_text_config(), "attention_dropout", 0.0))
