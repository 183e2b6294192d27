"""What a run's directory holds, by name, and how it is read where it may be damaged, or of a run of long ago.

Beside these files it holds what was trained, under the adapter's own name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli

from fitune.plugin import reading

RECIPE = "recipe.toml"
"""The recipe, every choice explicit; `ft run` takes it as it is."""

IDENTITY = "identity.json"
"""What makes it this run and no other."""

ENVIRONMENT = "environment.json"
"""Versions, plugins, devices, and the state of the recipe's git."""

RECORD = "run.json"
"""What became of it, over all of its starts."""

MANIFEST = "manifest.json"
"""In a checkpoint, and in what a run ends with: its files, their sizes and digests, and after which step it is."""

METRICS = "metrics.jsonl"
"""A line for each step, and each evaluation."""

ANSWERS = "examples.json"
"""Held-out answers, before training and after."""

MEMORY = "memory.json"
"""On a GPU, what was forecast beside what was measured."""

LARGEST_RECIPE = 1 << 22
"""Bytes of a recipe that is looked at."""

TRACKER = "tracker.json"
"""The experiment tracker's own name for the run."""

CHECKPOINTS = "checkpoints"
"""A directory for each checkpoint, `step-N`."""


def read_json(file: Path) -> dict[str, Any]:
    """A file of one JSON object; nothing where it is not there or is damaged."""
    try:
        found = reading.read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file; nothing where it is not there or is damaged."""
    try:
        return tomli.loads(reading.read_file(file, LARGEST_RECIPE).decode())
    except (OSError, ValueError, RecursionError):
        return {}
