"""Which weights lie in files: those that were mapped into memory, and are read as somebody looks at them."""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

MAPS = Path("/proc/self/maps")
"""Where Linux lists what a process has in its memory, by ascending addresses."""


def mapped_weights(model: nn.Module) -> frozenset[str]:
    """Names, as of `named_parameters`, of a model's weights that lie in a file which is mapped into memory, as
    safetensors are on the host: the system reads of them what is looked at, when it is, and may forget it again.

    None of another type or form than in the file, which were made in memory; none where the system does not list its
    files (it is Linux that does).
    """
    files = _files()
    starts = [first for first, _ in files]
    found = []
    for name, parameter in model.named_parameters():
        tensor = parameter.data
        if tensor.device.type != "cpu" or hasattr(tensor, "to_local") or not tensor.is_contiguous():
            continue
        first = tensor.data_ptr()
        at = bisect.bisect_right(starts, first) - 1
        if at >= 0 and first + tensor.numel() * tensor.element_size() <= files[at][1]:
            found.append(name)
    return frozenset(found)


def _files() -> list[tuple[int, int]]:
    """The first address and the one behind the last of each part of memory that a plain file is in, ascending."""
    try:
        lines = MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    found, plain = [], dict[str, bool]()
    for line in lines:
        fields = line.split(maxsplit=5)
        name = fields[5] if len(fields) == 6 else ""
        if name not in plain:
            plain[name] = name.startswith("/") and Path(name).is_file()
        if plain[name]:
            first, _, last = fields[0].partition("-")
            found.append((int(first, 16), int(last, 16)))
    return found
