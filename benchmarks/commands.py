"""What benchmarks that run `ft` as a command share: the command, a tokenizer for a shape, and what a run wrote."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WARM_UP = 3
"""Steps of a run whose time is not counted."""
PATIENCE = 300
"""Seconds for one run."""


def ft(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `ft`."""
    return subprocess.run(
        [sys.executable, "-m", "fitune", *words], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def give_tokenizer(model: Path) -> None:
    """Put a tokenizer of single bytes into a model's directory, where there is none."""
    if (model / "tokenizer.json").exists():
        return
    from fitune.testing import write_tiny_tokenizer

    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory) / "tokenizer"
        write_tiny_tokenizer(made)
        for file in made.iterdir():
            (model / file.name).write_bytes(file.read_bytes())


def figures(run: Path) -> dict[str, Any]:
    """Of a run's steps."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line.get("event") == "step"][WARM_UP:]
    seconds = [step["seconds"] for step in steps]
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return {
        "seconds": statistics.median(seconds),
        "all": seconds,
        "tokens": steps[-1]["tokens"],
        "allocated": record["memory"]["peak"],
    }
