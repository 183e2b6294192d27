"""The files of a model's weights are brought into the system's cache while a run is still being prepared.

What comes before the weights are loaded (imports, rows that are prepared, a search for strategies) is work for the
processor, in which the disk would be idle; so this imports nothing that takes long. Files that are in the cache already
are not read again. Nothing that is learnt depends on it: whatever keeps a file from being read ahead is left to the
loader to tell.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fitune.compose.processes import is_main_process
from fitune.errors import ModelError
from fitune.plugin.contract import blame, wrong_gift
from fitune.plugin.recipe import Recipe
from fitune.plugin.units import MIB

BLOCK = 8 * MIB
"""Bytes that are read at a time."""

PAGE = 4096
"""Bytes at the end of a block by which it is told whether it is in the cache: the system reads ahead of whoever reads,
so that its first ones say little.
"""

LEAST = 64 * MIB
"""Weights of fewer bytes are not read ahead: nobody waits for them."""

SHARE = 0.5
"""Of the host's memory that is free, what weights may be; of larger ones the first might be gone when they are due."""


@contextlib.contextmanager
def reading_ahead(recipe: Recipe | None) -> Iterator[None]:
    """A context within which a recipe's weights are read ahead, in one process of a run, where the system can tell what
    is in its cache (Linux): enter it as soon as there is a recipe; None is for a run that needs none. Raises
    `PluginError` for a loader that breaks its contract.
    """
    can = is_main_process() and hasattr(os, "RWF_NOWAIT")
    files = _files(recipe) if can and recipe is not None else ()
    if not LEAST <= sum(size for _, size in files) <= SHARE * _free():
        yield
        return
    stop = threading.Event()
    reader = threading.Thread(target=_read, args=(files, stop), name="weights that are read ahead", daemon=True)
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join(timeout=1)  # of a disk that hangs nobody need wait for more


def _files(recipe: Recipe) -> Sequence[tuple[Path, int]]:
    """The files that the loader names, each with its bytes; none where it cannot find them, which it tells later."""
    loader = recipe.model.record
    who = f'model loader "{loader.name}"'
    try:
        with blame(who):
            named: object = loader.files(recipe.model.options)
            found: list[object] = list(named) if isinstance(named, Iterable) else [named]
        files = [file for file in found if isinstance(file, Path)]
        if len(files) < len(found):
            raise wrong_gift(f"{who}: files", named, "paths")
        return [(file, file.stat().st_size) for file in files if file.is_file()]
    except (ModelError, OSError):
        return ()


def _free() -> int:
    """Bytes of the host's memory that files may stay in; 0 where the system does not tell."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0


def _read(files: Sequence[tuple[Path, int]], stop: threading.Event) -> None:
    """Read what is not in the cache, until it is to stop."""
    block, page = [bytearray(BLOCK)], [bytearray(PAGE)]
    for file, size in files:
        with contextlib.suppress(OSError), file.open("rb", buffering=0) as opened:
            for at in range(0, size, BLOCK):
                if stop.is_set():
                    return
                if not _is_cached(opened.fileno(), max(at, min(at + BLOCK, size) - PAGE), page):
                    os.preadv(opened.fileno(), block, at)


def _is_cached(file: int, at: int, page: Sequence[bytearray]) -> bool:
    try:
        return os.preadv(file, page, at, os.RWF_NOWAIT) > 0
    except OSError:  # it would have to wait; or the file's system cannot tell
        return False
