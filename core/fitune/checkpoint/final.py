"""What a run ended with, in its directory: whole, and as it was written, or not to be used."""

from __future__ import annotations

from pathlib import Path

from fitune.checkpoint.manifest import NAME, damage
from fitune.runs.layout import IDENTITY, read_json


def final_damage(run: Path, kind: str) -> str | None:
    """What is wrong with what a run has trained (`kind`, its adapter's directory), the first thing found; None if it is
    as it was written. Runs of 0.1 have no manifest of it: there it is enough that weights are there.
    """
    trained = run / kind
    if not trained.is_dir():
        return "it is not there"
    if (trained / NAME).exists():
        return damage(trained)
    if isinstance(read_json(run / IDENTITY).get("place"), str):  # which older runs do not keep either
        return f"{NAME} is missing"
    return None if any(trained.glob("*.safetensors")) else "it holds no weights"
