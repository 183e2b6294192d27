"""What is known here of a run that was sent to another machine: `launch.json` in the directory where it will come to.

It is written before anything is submitted, with the name that the job will have: where this process dies in between,
the job is found by that name. It holds no variable of the environment, and no credential.

Its launcher's options say which programs are started to reach the job, and with which words: a file that this user has
not written, as its seal tells (`fitune.data.seal`), is shown as it is, and followed only once it was asked about.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

from fitune.data.seal import is_sealed, seal_of, users_key
from fitune.errors import RunError, described
from fitune.plugin.launching import JobState, JobStatus, Machine, Price
from fitune.plugin.reading import json_of, read_file
from fitune.plugin.trust import Trust
from fitune.runs.atomic import write_file

LAUNCH = "launch.json"

FORMAT = 1

LARGEST = 1 << 20
"""Bytes of it, at most."""

SEAL = "seal"
"""The key of the seal of all the rest."""

FOLLOWED = "its launcher would be started with its options, which may name programs"
"""What would come of one that somebody else has written."""


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
    said = json.loads(json.dumps({"format": FORMAT, **asdict(launched)}))  # as it is read back
    try:
        with contextlib.suppress(OSError):  # without a key it is asked about
            said = {**said, SEAL: seal_of(users_key(), LAUNCH, said)}
        write_file(directory / LAUNCH, json.dumps(said, indent=1) + "\n")
    except OSError as error:
        raise RunError(f"{directory / LAUNCH} cannot be written: {error.strerror}") from error


def read_launched(directory: Path, trust: Trust | None = None) -> Launched | None:
    """What was sent of a run's directory; None if nothing was. With `trust`, to follow it: raises `UnknownCode` if it
    is somebody else's, and that is not allowed. Raises `RunError` where it cannot be read.
    """
    try:
        content = read_file(directory / LAUNCH, LARGEST)
        values = json_of(content)
        seal = values.pop(SEAL, None)
        if trust is not None and not _is_own(values, seal):
            trust.must_know(directory / LAUNCH, content, FOLLOWED)
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


def _is_own(said: Mapping[str, Any], seal: object) -> bool:
    """Whether this user has written it."""
    try:
        return is_sealed(users_key(), LAUNCH, said, seal)
    except OSError:
        return False
