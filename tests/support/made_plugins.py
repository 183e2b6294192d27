"""Plugins that tests make: records, objects, and distributions as importlib.metadata sees them, without pip or with."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl

STRATEGY = """\
from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl

@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="{name}", summary="For a test", options=NoOptions, make=lambda options: Strategy())
"""


def install(
    site: Path,
    distribution: str,
    source: str,
    *,
    entry: str | None = None,
    version: str = "1.0",
    requires: Sequence[str] = (),
) -> str:
    """Write a distribution that announces a plugin of this source; gives the name of its module."""
    module = distribution.replace("-", "_")
    (site / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    metadata = site / f"{module}-{version}.dist-info"
    metadata.mkdir()
    needed = "".join(f"Requires-Dist: {one}\n" for one in requires)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{needed}")
    (metadata / "entry_points.txt").write_text(f"[fitune]\n{entry or distribution} = {module}\n")
    return module


def pip_install(target: Path, *packages: Path) -> None:
    """Install packages from their sources into a directory, from no index."""
    command = "-m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --target"
    done = subprocess.run(
        [sys.executable, *command.split(), str(target), *map(str, packages)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def strategy(name: str = "mine", **fields: Any) -> MemoryStrategy[Any]:
    """A sound record, or one with other fields."""
    sound: dict[str, Any] = {"summary": "For a test", "options": NoOptions, "make": lambda options: Strategy()}
    return MemoryStrategy(name=name, **{**sound, **fields})


def giving(*records: object) -> object:
    """A plugin that gives these as memory strategies."""

    class Giving:
        @hookimpl
        def ft_memory_strategies(self) -> Iterator[object]:
            yield from records

    return Giving()
