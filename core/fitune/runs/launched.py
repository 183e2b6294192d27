"""What is known here of a run that was sent to another machine: `launch.json` in the directory where it will come to.

It is written before anything is submitted, with the name that the job will have: where this process dies in between,
the job is found by that name. It holds no variable of the environment, and no credential.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

from fitune.errors import RunError, described
from fitune.plugin.launching import JobState, JobStatus, Machine, Price
from fitune.plugin.reading import read_json
from fitune.runs.atomic import write_file

LAUNCH = "launch.json"

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A job, as it was sent and as it was last heard of."""

    name: str
    """The recipe's."""
    job: str
    """By which the launcher knows it."""
    launcher: str
    options: Mapping[str, Any]
    """The launcher's, as a table."""
    machine: Machine
    spot: bool
    seconds: int | None
    """After which it is stopped."""
    hours: tuple[float, float] | None
    """That training will take, forecast."""
    launched: str
    """When, in ISO 8601, UTC."""
    status: JobStatus
    heard: str | None = None
    """When it was last asked after; None for one that was not yet submitted, or nobody knows."""

    def now(self, status: JobStatus) -> Launched:
        """As it is heard of now."""
        return replace(self, status=status, heard=utc_now())

    @property
    def cost(self) -> float | None:
        """US dollars so far; None where that is not known."""
        price, billed = self.machine.price, self.status.billed
        return None if price is None or billed is None else price.hour * billed / 3600


def utc_now() -> str:
    """This moment, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_launched(directory: Path, launched: Launched) -> None:
    """Keep it. Raises `RunError`."""
    try:
        write_file(directory / LAUNCH, json.dumps({"format": FORMAT, **asdict(launched)}, indent=1) + "\n")
    except OSError as error:
        raise RunError(f"{directory / LAUNCH} cannot be written: {error.strerror}") from error


def read_launched(directory: Path) -> Launched | None:
    """What was sent of a run's directory; None if nothing was. Raises `RunError` where it cannot be read."""
    try:
        values = read_json(directory / LAUNCH)
        if values.pop("format") != FORMAT:
            raise ValueError(f"this release reads format {FORMAT}")
        price, hours = values["machine"].pop("price"), values.pop("hours")
        machine = Machine(**values.pop("machine"), price=None if price is None else Price(**price))
        status = JobStatus(**values.pop("status"))
        if status.state not in get_args(JobState):
            raise ValueError(f'a job is never "{status.state}"')
        return Launched(**values, machine=machine, status=status, hours=None if hours is None else (hours[0], hours[1]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise RunError(f"{directory / LAUNCH} cannot be read: {described(error)}") from error
