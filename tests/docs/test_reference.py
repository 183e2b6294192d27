"""docs/reference.md is made from the code, and says what the code says."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Annotated

import pytest

from fitune import Deprecation, Formerly
from fitune.plugin import deprecation
from fitune.plugin.options import describe
from fitune.plugin.registry import Registry
from support.paths import ROOT
from support.scripts import loaded

DOCS = ROOT / "docs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    """Two options that are not what they were."""

    slow: Annotated[bool, Deprecation(since="0.1", removed_in="0.3", instead="Write rate = 1")] = False
    """Whether it is slow."""
    rate: Annotated[int, Formerly(name="speed", since="0.1", removed_in="0.4")] = 1
    """How fast."""


@pytest.fixture(scope="module")
def make() -> ModuleType:
    return loaded(DOCS / "make_reference.py")


def test_it_is_up_to_date(make: ModuleType) -> None:
    assert (DOCS / "reference.md").read_text(encoding="utf-8") == make.page(), "run docs/make_reference.py"


def test_every_option_is_there_with_its_meaning(registry: Registry) -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    for provided in registry.provided:
        section = page.partition(f"### `{provided.record.name}` ({provided.kind})\n")[2].partition("\n### ")[0]
        assert provided.record.summary in section, provided.record.name
        for option in describe(provided.record.options):
            assert f"- `{option.name}`: {option.type}; " in section
            assert option.doc
            assert option.doc in section


def test_every_command_is_there(make: ModuleType) -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    for command in ("ft", "ft run", "ft check", "ft data", "ft plugins", "ft plugins show"):
        assert f"### `{command}`\n\n```text\nUsage: {command} " in page


def test_what_is_deprecated_is_said(make: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, rate = make.options(Aged)
    assert slow.endswith("**Deprecated**: it is deprecated since fitune 0.1 and gone in 0.3. Write rate = 1.")
    assert rate.endswith("How fast. Formerly `speed`.")
    assert "- `[log] every`: since 0.2, gone in 0.4; in its place `every` of the listener `metrics`.\n" in make.page()
    monkeypatch.setattr(deprecation, "__version__", "0.4")
    (rate,) = make.options(Aged)
    assert rate.endswith("How fast.")
    assert "Deprecated keys" not in make.page()
