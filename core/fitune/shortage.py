"""Memory that ran out: what is noted of it, and what is told of it."""

from __future__ import annotations

import contextlib
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from fitune.errors import FtError
from fitune.events import Recovery
from fitune.fitting import Composition
from fitune.processes import is_main_process
from fitune.registry import Registry
from fitune.secrets import redacted

LOG = "error.txt"
"""torch's message, for `ft explain-oom`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Memory that ran out."""

    doing: str
    """What it was asked for in: "loading", "rehearsal", "step" or "evaluation"."""
    said: str
    """By the GPU's libraries, in a line."""
    composition: Composition
    """What ran out."""
    undone: bool
    """Whether everything is as it was before."""
    since: float
    """When it was, in seconds of `time.perf_counter`."""


def log(error: BaseException, directory: Path) -> None:
    """Leave the message in the run's directory; where that cannot be, it is told anyway."""
    if is_main_process():
        with contextlib.suppress(OSError):
            text = "".join(traceback.format_exception(error))
            (directory / LOG).write_text(redacted(text), encoding="utf-8")


def recovery_of(shortage: Shortage, now: Composition, step: int) -> Recovery:
    """That a run goes on with another composition."""
    before = shortage.composition
    return Recovery(
        step=step,
        phase=shortage.doing,
        error=shortage.said,
        before=before.tables,
        after=now.tables,
        micro_batch=(before.recipe.train.micro_batch, now.recipe.train.micro_batch),
        forecast=now.forecast,
        seconds=time.perf_counter() - shortage.since,
    )


def explained(directory: Path, registry: Registry) -> tuple[str, ...]:
    """What `ft explain-oom` says of this run; nothing where it cannot tell."""
    from fitune.forecast.explain import explain
    from fitune.forecast.oom_message import read_message
    from fitune.forecast.oom_report import lines
    from fitune.reader import read_recipe

    try:
        message = read_message((directory / LOG).read_bytes(), LOG)
        said = lines(explain(read_recipe(directory / "recipe.toml", registry), registry, message))
        return tuple(line for line in said if line.strip())
    except (FtError, OSError):
        return ()
