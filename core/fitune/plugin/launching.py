"""What a launcher gives and is given: how a run gets to another machine, and back. No torch here.

A job's name is chosen before anything is submitted, and is all that a job is known by from then on: what was submitted
but not written down is found again by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from fitune.errors import Problem
from fitune.plugin.deprecation import Marked
from fitune.plugin.nothing import no_problems

O = TypeVar("O")  # noqa: E741 - options, as in every provider's docstring

JobState = Literal["absent", "waiting", "running", "stopping", "stopped", "failed", "done"]
"""Of a job: "absent" is one that its launcher does not know, "waiting" has no machine yet, or none any more, and gets
one; "stopped" was asked to end, or has met its limit, and has saved if it could."""

ENDED = frozenset({"absent", "stopped", "failed", "done"})
"""States in which a job costs nothing any more."""

HERE = "here"
"""In place of a card's name: that of the machine that launches."""


def nothing_listed(options: Any) -> Iterable[JobStatus]:
    """The jobs of a launcher that cannot list any."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a machine costs."""

    hour: float
    """US dollars, for a machine that is not taken back."""
    source: str
    """Who says so, and for where."""
    date: str
    """When it was so, as YYYY-MM-DD; one of long ago is told as such."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a job runs on, and what that has and costs."""

    name: str
    """As the launcher's `--instance` takes it."""
    gpu: str = ""
    """Its card, as `ft plan --gpu` takes it; empty without one, `"here"` for that of this machine."""
    gpus: int = 0
    """How many of them it has."""
    price: Price | None = None
    """None where it costs nothing by the hour, or nobody has said how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to run, and for how long."""

    name: str
    """Letters, digits and dashes, at most 63; no other job has it."""
    bundle: Path
    """A directory of plain files that is all the job needs, there only while the launcher is called. `python3
    bundle/start.py begin ROOT` starts it on a machine where it lies at `ROOT/bundle`, and says how in its own help."""
    machine: Machine
    seconds: int | None = None
    """After which it is to be stopped; None for no limit, where that costs nothing."""
    spot: bool = False
    """Whether its machine may be taken back at any time, at a lower price."""
    install: bool = True
    """Whether the exact versions of all packages (`bundle/requirements.txt`) are to be installed first."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the run is to have, secrets among them: for the job alone, to be kept nowhere else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """How a job is, as its launcher tells it."""

    name: str
    state: JobState
    what: str = ""
    """In words and in one line: what it waits for, why it has failed."""
    billed: float | None = None
    """Seconds that are to be paid for so far; None where nobody says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher(Marked, Generic[O]):
    """Runs a recipe somewhere else: `ft launch RECIPE --on NAME`.

    Its options are read from `launch.toml` and `--option`. Each function may raise `RunError`: what, where, why and
    what to do. `fitune.testing.assert_launcher` holds a launcher to all of this.
    """

    name: str
    summary: str
    options: type[O]
    machine: Callable[[O, str | None], Machine]
    """The machine that `--instance` names, or the only one. Costs nothing. Raises `RunError` for a name not known."""
    prepare: Callable[[O, Job], Iterable[str]]
    """Looks for all that would keep the job from being submitted, as far as that costs nothing and leaves nothing
    behind; gives lines that say what will be done."""
    submit: Callable[[O, Job], None]
    """Starts the job under its name. Where it raises, no job is there, or the error says that there may be one; what is
    there already under this name is not started twice."""
    status: Callable[[O, str], JobStatus]
    """How the job of a name is; "absent" for one that is not there."""
    logs: Callable[[O, str], Iterable[str]]
    """The lines that it has printed so far, those of earlier machines first."""
    stop: Callable[[O, str], None]
    """Asks it to save and end, which may take minutes; nothing for one that has ended."""
    fetch: Callable[[O, str, Path], None]
    """Brings the run's directory, as far as it is, into an empty directory."""
    jobs: Callable[[O], Iterable[JobStatus]] = nothing_listed
    """All jobs of fitune's that it knows, whoever has submitted them."""
    machines: tuple[Machine, ...] = ()
    """Those to offer where one is too small, the cheapest first."""
    paid: bool = False
    """Whether machines cost money by the hour: a job then needs a limit."""
    spot: bool = False
    """Whether it has machines that may be taken back."""
    check: Callable[[O], Iterable[Problem]] = no_problems
    """Looks at what types cannot say of the options, asking nobody."""
