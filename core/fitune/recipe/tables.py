"""TODO-DOC fitune.plugin.recipe.tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from fitune.plugin.records import Provider
from fitune.recipe.source import Key

T = TypeVar("T")

P = TypeVar("P", bound=Provider)


def _without(table: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in names}


def _absolute(base: Path, path: Path) -> Path:
    try:
        return base / path.expanduser()
    except RuntimeError:  # the home of a user that there is not
        return base / path


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _split(key: str) -> Key:
    return tuple(int(p) if p.isdigit() else p for p in key.split(".")) if key else ()
