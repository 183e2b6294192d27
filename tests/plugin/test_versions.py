"""A plugin that was built for another fitune is told so before it is imported; all else is left to its import."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fitune._version import __version__
from fitune.plugin.provided import Plugin
from fitune.plugin.registry import Registry
from support.made_plugins import STRATEGY, install

BREAKS = "raise RuntimeError('this was imported')\n"


def found(site: Path, monkeypatch: pytest.MonkeyPatch, *requires: str, source: str = BREAKS) -> Plugin:
    """What becomes of a distribution that asks for this, of which no other test has imported anything."""
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "fitune_other", raising=False)
    install(site, "fitune-other", source, requires=requires)
    return Registry.open().plugins["fitune-other"]


@pytest.mark.parametrize("requires", ["fitune>=99.2", "fitune<0.0.1", "Fitune (==99)", "fitune>=99,<100"])
def test_it_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requires: str) -> None:
    cause = found(tmp_path, monkeypatch, requires).cause
    assert cause is not None
    assert cause.startswith("built for fitune ")
    assert f"and this is {__version__}. Install a version of it that is for this one" in cause
    assert "imported" not in cause


@pytest.mark.parametrize(
    "requires",
    [(), ("fitune",), (f"fitune=={__version__}",), ("fitune-tools>=99",), ("fitune>=99; python_version < '3'",),
     ("fitune>=99; extra == 'new'",), ("fitune >= ???",), ("numpy>=1", "fitune>=0.0.1")],
)  # fmt: skip
def test_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requires: tuple[str, ...]) -> None:
    plugin = found(tmp_path, monkeypatch, *requires, source=STRATEGY.format(name="other"))
    assert plugin.cause is None


def test_what_its_import_raises_is_told_where_the_version_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "this was imported" in str(found(tmp_path, monkeypatch, f"fitune=={__version__}").cause)
