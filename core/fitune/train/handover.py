"""Memory that runs out amid a layer which processes share: all are ended, and started again with less.

The others wait within the layer, and nobody can meet them there. Where `ft run --gpus` has started them, the process
whose memory ran out leaves word in a file of what was used so far, and ends; the others are ended, and all of them are
started again: they find in that file that they go on, from the newest checkpoint, with what takes less.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fitune.compose.processes import StartAgain, again_file
from fitune.compose.together import together
from fitune.memory.fit.refit import Composition
from fitune.plugin.events import MemoryForecast
from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe_text
from fitune.runs.atomic import write_file
from fitune.runs.layout import IDENTITY, RECIPE
from fitune.train.context import RunContext
from fitune.train.out_of_memory import OutOfMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What processes that are started again are told."""

    directory: Path
    """Of the run."""
    doing: str
    """What memory was asked for in."""
    said: str
    """By the GPU's libraries, in a line."""
    step: int
    """Steps that had been made."""
    at: float
    """When it ran out, in seconds of the epoch."""
    used: tuple[Mapping[str, Any], ...]
    """All compositions that were used, as `table_of` has them; the last ran out."""

    def shortage(self, registry: Registry) -> tuple[list[Composition], OutOfMemory]:
        """The compositions, and the memory that ran out in the last of them. Raises the errors of `fitune.errors`."""
        used = [composition_of(table, self.directory, registry) for table in self.used]
        since = time.perf_counter() - max(0.0, time.time() - self.at)
        shortage = OutOfMemory(
            doing=self.doing, said=self.said, composition=used[-1], undone=True, since=since, step=self.step
        )
        return used, shortage


def can_be_handed_over(context: RunContext) -> bool:
    """Whether memory that ran out is met by starting all processes again: others wait amid a layer, someone would start
    them, and the run has begun, so that it can go on.
    """
    return together().is_cut_off and again_file() is not None and (context.directory / IDENTITY).is_file()


def hand_over(context: RunContext, said: str) -> StartAgain:
    """Leave word for all processes, which are started again; gives what this one ends by. Raises `OSError`."""
    file = again_file()
    assert file is not None
    told = Handover(
        directory=context.directory,
        doing=context.position.doing,
        said=said,
        step=context.position.step,
        at=time.time(),
        used=tuple(map(table_of, context.compositions)),
    )
    write_file(file, json.dumps({**asdict(told), "directory": str(told.directory)}))
    return StartAgain(f"out of GPU memory amid a layer: {said} All processes are started again")


def handed_over() -> Handover | None:
    """What this process is started again for, if it is."""
    file = again_file()
    if file is None or not file.exists():
        return None
    told = json.loads(file.read_text(encoding="utf-8"))
    return Handover(**{**told, "directory": Path(told["directory"]), "used": tuple(told["used"])})


def table_of(composition: Composition) -> dict[str, Any]:
    """A composition as values of JSON."""
    forecast = composition.forecast
    return {
        "recipe": tomli_w.dumps(composition.recipe.to_toml()),
        "forecast": None if forecast is None else asdict(forecast),
        "lines": list(composition.lines),
    }


def composition_of(table: Mapping[str, Any], run: Path, registry: Registry) -> Composition:
    """The composition of a run's directory that a table holds. Raises the errors of `fitune.errors`."""
    forecast = table["forecast"]
    if forecast is not None:
        ledger = tuple((kind, size) for kind, size in forecast["ledger"])
        forecast = MemoryForecast(**{**forecast, "ledger": ledger})
    recipe = read_recipe_text(run / RECIPE, table["recipe"], registry)
    return Composition(recipe=recipe, forecast=forecast, lines=tuple(table["lines"]))
