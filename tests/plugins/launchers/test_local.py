"""`local`, which every launcher is measured by: it keeps the contract of `fitune.testing`."""

from __future__ import annotations

from pathlib import Path

from fitune import Launcher
from fitune.testing import assert_launcher, open_registry
from fitune_plugins.launchers.local import LocalOptions


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    launcher = open_registry().find(Launcher, "local")
    assert_launcher(launcher, LocalOptions(root=tmp_path / "jobs", gpu=False), tmp_path / "suite")
