"""Hostile inputs are taken, or refused in a line: no other error, whatever is in them (`support/hostile.py`).

On 0.1 rows and recipes nested deep, and headers of GGUF, ended with tracebacks of the libraries that read them.
"""

from __future__ import annotations

import os
from pathlib import Path

from support.hostile import REFUSED, TAKEN, meet

INPUTS = int(os.environ.get("FT_HOSTILE", "40"))
SEED = int(os.environ.get("FT_SEED", "20261127"))


def test_hostile_inputs(tmp_path: Path) -> None:
    found = meet(tmp_path / "hostile", INPUTS, SEED, print)
    assert [one["kind"] for one in found["raw"]] == [
        "recipes in TOML", "rows in JSON Lines", "headers of safetensors", "headers of GGUF"
    ]  # fmt: skip
    for one in found["raw"]:
        assert one.get(REFUSED, 0) > INPUTS // 4, one
        assert one.get(REFUSED, 0) + one.get(TAKEN, 0) >= INPUTS // 2, one
