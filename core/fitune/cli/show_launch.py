"""What `ft launch` prints of what was sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fitune.launch.settings import Chosen
from fitune.plugin.contract import blame
from fitune.runs.history.words import NOTHING, aligned, duration_text, when_text
from fitune.runs.launched import Launched

HEAD = ("RUN", "STATE", "ON", "MACHINE", "COST SO FAR", "LAUNCHED", "LAST HEARD OF")


def told(directory: Path, launched: Launched) -> Iterator[str]:
    """A job in a few lines."""
    status = launched.status
    yield f"{directory}: {status.state}{f': {status.what}' if status.what else ''}"
    spot = " (spot)" if launched.spot else ""
    yield f"  job      {launched.job} on {launched.launcher}, {launched.machine.name}{spot}"
    if status.billed is not None:
        yield f"  cost     {_cost(launched)} for {duration_text(status.billed)}"
    if launched.seconds is not None:
        yield f"  limit    {duration_text(launched.seconds)}"


def table(noted: Sequence[tuple[Path, Launched]]) -> list[str]:
    """A line a job."""
    return aligned([HEAD, *(_cells(place, launched) for place, launched in noted)])


def known(chosen: Chosen, noted: Sequence[tuple[Path, Launched]]) -> list[str]:
    """All jobs that a launcher knows, with the run of each that is noted here. Raises `RunError`."""
    name = chosen.launcher.name
    with blame(f'launcher "{name}"'):
        jobs = list(chosen.launcher.jobs(chosen.options))
    if not jobs:
        return [f"{name} knows no job of fitune's"]
    runs = {launched.job: str(place) for place, launched in noted if launched.launcher == name}
    head = ("JOB", "STATE", "RUN", "WHAT")
    return aligned([head, *((job.name, job.state, runs.get(job.name, NOTHING), job.what or NOTHING) for job in jobs)])


def as_values(directory: Path, launched: Launched) -> dict[str, Any]:
    """A job for programs: seconds, US dollars, times in UTC."""
    return {"directory": str(directory), **asdict(launched), "cost": launched.cost}


def _cells(place: Path, launched: Launched) -> tuple[str, ...]:
    machine = f"{launched.machine.name}{' (spot)' if launched.spot else ''}"
    when = (when_text(launched.launched), when_text(launched.heard))
    return (str(place), launched.status.state, launched.launcher, machine, _cost(launched), *when)


def _cost(launched: Launched) -> str:
    """What it has cost so far; of a spot machine, at most that."""
    cost = launched.cost
    return NOTHING if cost is None else f"{'up to ' if launched.spot else ''}${cost:,.2f}"
