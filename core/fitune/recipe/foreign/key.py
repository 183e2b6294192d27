"""What is known of a key of another tool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tool = Literal["trl", "axolotl", "llama-factory"]

Outcome = Literal["converted", "not needed", "could not"]
"""What became of a key: it is said in the recipe, a recipe need not say it, or nothing here is like it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A key of other tools."""

    says: str
    """What a recipe says in its place, or why nothing."""
    fate: Outcome = "converted"
    to: tuple[str, str] | None = None
    """Table and key that its value is copied to, as it is; None where it takes more than that."""
    kind: type = str
    """Of the value that is copied."""
    but: str = ""
    """Of one that is not needed: what is different where it is false or 0; empty where that changes nothing."""


def copied(table: str, key: str, kind: type) -> Known:
    """A key whose value a recipe has under another name."""
    return Known(says=f"[{table}] {key}" if table else f"{key}, above the first table", to=(table, key), kind=kind)


def read(says: str) -> Known:
    """A key that takes more than a copy."""
    return Known(says=says)


def needless(why: str, but: str = "") -> Known:
    """A key that a recipe need not say."""
    return Known(says=f"nothing: {why}", fate="not needed", but=but)


def lacking(what: str = "nothing here is like it") -> Known:
    """A key that nothing here is like; `what` says what may come nearest."""
    return Known(says=what, fate="could not")
