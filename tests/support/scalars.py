"""What tensorboard's files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What tensorboard holds: (step, value) of each tag."""
    found: dict[str, list[tuple[int, float]]] = {}
    folders = {file.parent for file in directory.rglob("events.out.tfevents.*")}
    for folder in folders:
        events: Any = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return found
