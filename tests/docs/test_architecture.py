"""docs/architecture.md: what it names is there, every wing is told of, and its picture is that of import-linter."""

from __future__ import annotations

import importlib
import importlib.util
import re

import pytest
import tomli

from support.paths import ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(fitune(?:_plugins)?(?:\.\w+)+)`", TEXT)))
WINGS = sorted(path.parent.name for path in (ROOT / "core" / "fitune").glob("*/__init__.py"))
LAYERS = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"][0]


def found(dotted: str) -> object:
    """What a dotted name stands for: a module, or what is in one. Raises `AttributeError`, with the name."""
    parts = dotted.split(".")
    depth = max(n for n in range(1, len(parts) + 1) if is_module(".".join(parts[:n])))
    value: object = importlib.import_module(".".join(parts[:depth]))
    for part in parts[depth:]:
        value = getattr(value, part)
    return value


def is_module(dotted: str) -> bool:
    """Whether there is a module of this name."""
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError:  # of something that is no package
        return False


@pytest.mark.parametrize("name", NAMES)
def test_what_is_named_is_there(name: str) -> None:
    assert found(name) is not None


@pytest.mark.parametrize("name", ["fitune.recipe.reader.read_recip", "fitune.nowhere.read", "fitune.Batch.input"])
def test_what_is_not_there_is_seen(name: str) -> None:
    with pytest.raises(AttributeError):
        found(name)


def test_names_are_found_at_all() -> None:
    assert len(NAMES) > 60


def test_every_wing_is_on_the_way_of_something() -> None:
    assert len(WINGS) == 12
    ways = {name.split(".")[1] for name in NAMES}
    assert set(WINGS) - ways == {"testing"}  # which no run passes


def test_the_picture_is_what_import_linter_holds() -> None:
    picture = TEXT.partition("```text\n")[2].partition("\n\n")[0]
    drawn = [set(re.findall(r"\w+", line[:29])) for line in picture.splitlines()]
    assert drawn == [set(re.findall(r"\w+", layer)) for layer in LAYERS["layers"]]
    assert set().union(*drawn) == {*WINGS, "errors"}
