"""What a mistake is: a change of the good recipe, and what is printed of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from support.light import LIGHT

NAME = 'name = "light"'
HF = 'use = "hf"\npath = "model"'
LORA = 'use = "lora"'
TRAIN = "[train]"
STEPS = "steps = 3"

Change = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe's mistake, and what is printed of it."""

    name: str
    changes: Sequence[Change]
    errors: Sequence[str]
    """One line each; {here} is the recipe's directory, {name} that directory's name."""
    sets: Sequence[str]

    def recipe(self) -> str:
        """The good recipe with the mistake in it."""
        text = LIGHT
        for old, new in self.changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        return text


def case(name: str, changes: Sequence[Change], errors: Sequence[str], *, sets: Sequence[str] = ()) -> Case:
    """One of a table."""
    return Case(name=name, changes=changes, errors=errors, sets=sets)


def below(line: str, added: str) -> Change:
    """Lines are added below this one."""
    return line, f"{line}\n{added}"


def above(line: str, added: str) -> Change:
    """Lines are added above this one."""
    return line, f"{added}\n\n{line}"
