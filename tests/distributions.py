"""Installed distributions, written by hand: what importlib.metadata sees of one, without pip."""

from __future__ import annotations

import textwrap
from pathlib import Path

STRATEGY = """\
from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl

@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="{name}", summary="For a test", options=NoOptions, make=lambda options: Strategy())
"""


def install(site: Path, distribution: str, source: str, *, entry: str | None = None, version: str = "1.0") -> str:
    """Write a distribution that announces a plugin of this source; gives the name of its module."""
    module = distribution.replace("-", "_")
    (site / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    metadata = site / f"{module}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[fitune]\n{entry or distribution} = {module}\n")
    return module
