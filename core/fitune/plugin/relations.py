"""How providers go together in a recipe: what records say of each other, to be found before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fitune.plugin.deprecation import Marked

Role = Literal["optimizer", "loss", "quantization", "gradients"]
"""What of a run a memory strategy may make in place of the plain one, and one alone."""

ROLES: Mapping[Role, str] = {
    "optimizer": "make the optimizer",
    "loss": "compute the loss in their own way",
    "quantization": "quantise the base model",
    "gradients": "take gradients as they come",
}
"""What is said of two that do the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Related(Marked):
    """What every provider's record may say of others that stand in the same recipe."""

    conflicts_with: Mapping[str, str] = field(default_factory=dict)
    """Names of providers, of any kind, that no recipe may have beside this one, each with why: a clause, as in
    `{"none": "it trains every weight, and 4-bit ones have no gradient"}`. One of two says it."""
    requires: Mapping[str, str] = field(default_factory=dict)
    """Names of providers, of any kind, that a recipe must have beside this one, each with why. A memory strategy that
    another one requires works before it, in whatever order the recipe, or a fit, names them."""
