"""docs/reference.md is made from the code, and says what the code says."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from fitune.plugin.options import describe
from fitune.plugin.registry import Registry
from support.paths import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
