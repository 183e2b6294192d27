"""What `ft plan` is asked for, and all of it that can be wrong before a step is traced: nothing here imports torch, but
where this machine has a GPU.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fitune.errors import RunError
from fitune.memory.cards.cards import Card, budget_card, card_or_budget, find_card, local_card, parse_size
from fitune.memory.cards.several import several
from fitune.memory.fit.write import must_have_place
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What `ft plan` is asked for beside a recipe."""

    gpu: str | None = None
    gpus: int | None = None
    budget: str | None = None
    data: bool = False
    with_levers: bool = False
    fit: bool = False
    write: Path | None = None
    where: bool = False
    as_json: bool = False

    def command(self, recipe: Path, overrides: Sequence[str]) -> str:
        """What was typed, but for what decides only how it is printed."""
        words = ["ft", "plan", str(recipe), *(word for override in overrides for word in ("--set", override))]
        words += [
            word
            for name in ("gpu", "gpus", "budget")
            if getattr(self, name)
            for word in (f"--{name}", str(getattr(self, name)))
        ]
        words += ["--data"] if self.data else []
        return shlex.join([*words, "--fit", *(["--write", str(self.write)] if self.write else [])])


def read(path: Path, registry: Registry, overrides: Sequence[str], asked: Asked) -> Recipe:
    """The recipe, and nothing asked for that cannot be done. Raises `FtError`."""
    if asked.where and (asked.gpu or asked.gpus or asked.budget or asked.with_levers or asked.write):
        raise RunError("--where looks at every known card: --gpu, --gpus, --budget, --levers and --write have no place")
    if asked.write is not None:
        if not asked.fit:
            raise RunError("--write writes what --fit chooses, so it needs that. Give --fit, too")
        must_have_place(asked.write)
    return read_recipe(path, registry, overrides)


def card_of(asked: Asked, fit: bool | str = False) -> Card:
    """The card that is named, a budget of bytes, that of `[memory] fit`, or this machine's; as many as are asked for.
    Raises `FtError`.
    """
    return several(_one(asked.gpu, asked.budget, fit), asked.gpus or 1)


def _one(gpu: str | None, budget: str | None, fit: bool | str) -> Card:
    if gpu and budget:
        raise RunError("--gpu and --budget say two things. Give one of them")
    if gpu:
        return find_card(gpu)
    local = local_card()
    if budget:
        return budget_card(parse_size(budget), local)
    if isinstance(fit, str):
        return card_or_budget(fit, local)
    if local is None:
        raise RunError("this machine has no GPU, so a card must be named. Give --gpu a10g, or --budget 22.3GiB")
    if not fit:
        return local
    from fitune.memory.cards.observed import better_known

    return better_known(local)
