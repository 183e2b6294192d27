"""Checkpoints of a run that hold what was trained: which there are, which are whole, which is the best."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from fitune.checkpoint.manifest import damage
from fitune.errors import RunError
from fitune.runs.layout import CHECKPOINTS

LAST, BEST = "last", "best"
"""What stands for the newest checkpoint, and for that of the best evaluation."""

STEP = re.compile(r"step-(\d+)")


def checkpoints(directory: Path, kind: str) -> list[str]:
    """Names of a run's checkpoints that hold what was trained, those of steps last and in their order."""
    place = directory / CHECKPOINTS
    names = [p.name for p in place.iterdir() if has_weights(p / kind)] if place.is_dir() else []
    steps = {name: int(match[1]) if (match := STEP.fullmatch(name)) else -1 for name in names}
    return sorted((name for name in names if not name.startswith(".")), key=lambda name: (steps[name], name))


def sound(directory: Path, names: Sequence[str]) -> tuple[str, list[str]]:
    """The last of these checkpoints whose files are as they were written, and what is wrong with those behind it.

    Raises `RunError` if none is.
    """
    notices: list[str] = []
    for name in reversed(names):
        wrong = damage(directory / CHECKPOINTS / name)
        if wrong is None:
            return name, notices
        notices.append(f"the checkpoint {name} is damaged, and left out: {wrong}")
    raise RunError(f"{directory}: {'; '.join(notices)}. Give another --checkpoint")


def best(directory: Path, names: Sequence[str]) -> str:
    """The checkpoint of the best evaluation, as the newest whole one knows it. Raises `RunError` if there was none."""
    name, _ = sound(directory, names)
    try:
        state = json.loads((directory / CHECKPOINTS / name / "state.json").read_text(encoding="utf-8"))
        step = state["progress"]["best_step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{directory}: {name} does not tell which is the best: {error}. Name another") from error
    if step is None:
        raise RunError(f"{directory}: nothing was evaluated until {name}, so none is the best. Name another")
    return f"step-{step}"


def has_weights(directory: Path) -> bool:
    """Whether a directory holds weights that may be read: in safetensors, which run no code."""
    return directory.is_dir() and any(directory.glob("*.safetensors"))


def nothing_there(directory: Path, kind: str) -> str:
    places = (directory / kind, *(directory / CHECKPOINTS).glob(f"*/{kind}"))
    if any(file for place in places for file in place.glob("*.bin")):
        return f"what is in {kind} is a .bin file, which may run code and is not read, and no .safetensors is there"
    return f"nothing is trained yet: it has neither {kind} nor a checkpoint with one"
