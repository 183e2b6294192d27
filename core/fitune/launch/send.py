"""The way of `ft launch RECIPE`: all that can be known is looked at before anything costs money, then it is sent."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from fitune.data.prepare import UNWATCHED, Watch
from fitune.errors import FtError, RunError
from fitune.launch.bundle import job_name, make_bundle
from fitune.launch.estimate import Estimate, estimate, lines, span
from fitune.launch.settings import Chosen
from fitune.plugin.contract import blame
from fitune.plugin.launching import Job, JobStatus, Machine, Price
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.recipe.checks import FLAG
from fitune.runs.history.words import duration_text, size_text
from fitune.runs.launched import LAUNCH, Launched, utc_now, write_launched
from fitune.train.start import Start, make_directory, remove_if_empty, start_of

Say = Callable[[str], None]

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

OF_HERE = frozenset({"HOME", "LD_LIBRARY_PATH", "PATH", "PWD", "PYTHONHOME", "PYTHONPATH", "SHELL", "TMPDIR", "USER"})
"""Variables with which a program does not find its own on another machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What `ft launch` is asked for beside a recipe and a launcher."""

    instance: str | None = None
    spot: bool = False
    hours: float | None = None
    max_cost: float | None = None
    price: float | None = None
    """US dollars an hour, in place of what the launcher knows."""
    environment: tuple[str, ...] = ()
    """Names of variables that the run is to have as they are here."""
    install: bool = True
    dry_run: bool = False
    out: Path | None = None


def send(
    path: Path,
    registry: Registry,
    overrides: Sequence[str],
    chosen: Chosen,
    asked: Asked,
    say: Say,
    watch: Watch = UNWATCHED,
) -> Path | None:
    """Send a recipe's run to another machine; gives the directory that it will come to, None for a dry run. Raises the
    errors of `fitune.errors`; then nothing is left that costs money, or the error names what is.
    """
    if path.is_dir():
        raise RunError(f"{path} is a directory. Give a recipe: ft launch sends a run that is yet to begin")
    start = start_of(path, registry, overrides, out=asked.out, resume=False, allowed=())
    if start.named:  # all that follows takes longer
        remove_if_empty(make_directory(start)[1])
    environment = _environment(asked.environment)
    launcher, name = chosen.launcher, chosen.launcher.name
    with _blamed(name):
        machine = launcher.machine(chosen.options, asked.instance)
    if asked.price is not None:
        machine = replace(machine, price=Price(hour=asked.price, source="--price", date=date.today().isoformat()))
    _must_allow_spot(chosen, start.recipe, asked.spot)
    _limit_of_money(machine, asked)
    found = estimate(start.recipe, registry, launcher, machine, watch)
    seconds = limit(found, asked, paid=launcher.paid)
    with tempfile.TemporaryDirectory(prefix="ft-launch-") as place:
        bundle = Path(place) / "bundle"
        size = make_bundle(found.recipe, registry, bundle, words_for(registry, machine))
        job = Job(
            name=job_name(found.recipe.general.name),
            bundle=bundle,
            machine=machine,
            seconds=seconds,
            spot=asked.spot,
            install=asked.install,
            environment=environment,
        )
        say(f"{found.recipe.general.name} on {name}, {machine.name}{' (spot)' if asked.spot else ''}")
        with _blamed(name):
            prepared = list(launcher.prepare(chosen.options, job))
        told = [*lines(found, seconds, date.today(), paid=launcher.paid), *(f"job      {line}" for line in prepared)]
        told += [f"note     {notice}" for notice in start.recipe.notices]
        for line in [*told, f"sent     {size_text(size)}: recipe, data, code, versions"]:
            say(f"  {line}")
        if asked.dry_run:
            say("nothing was sent: --dry-run")
            return None
        return _submit(replace(start, recipe=found.recipe), chosen, job, found)


def _submit(start: Start, chosen: Chosen, job: Job, found: Estimate) -> Path:
    """Write down that it is sent, and send it."""
    start, made = make_directory(start)
    launched = Launched(
        name=start.recipe.general.name,
        job=job.name,
        launcher=chosen.launcher.name,
        options=chosen.table(),
        machine=job.machine,
        spot=job.spot,
        seconds=job.seconds,
        hours=found.hours,
        launched=utc_now(),
        status=JobStatus(name=job.name, state="absent", what="it was being submitted"),
    )
    write_launched(start.directory, launched)  # where this process dies now, the job is found by its name
    try:
        with _blamed(chosen.launcher.name):
            chosen.launcher.submit(chosen.options, job)
    except FtError as error:
        state, run = _state_of(chosen, job.name), shlex.quote(str(start.directory))
        if state is not None and state.state != "absent":
            write_launched(start.directory, launched.now(state))
            raise RunError(
                f"{error.message}. The job is there all the same: ft launch status {run}, or end it with ft launch "
                f"stop {run}"
            ) from error
        if state is None:
            raise RunError(
                f"{error.message}. Whether the job is there cannot be told now: ft launch status {run}"
            ) from error
        (start.directory / LAUNCH).unlink()
        remove_if_empty(made)
        raise
    write_launched(start.directory, launched.now(JobStatus(name=job.name, state="waiting", what="submitted")))
    return start.directory


def _state_of(chosen: Chosen, name: str) -> JobStatus | None:
    """How a job is; None where that cannot be told."""
    with contextlib.suppress(Exception):
        found: JobStatus = chosen.launcher.status(chosen.options, name)
        return found
    return None


def limit(found: Estimate, asked: Asked, *, paid: bool) -> int | None:
    """Seconds after which the job is stopped. Raises `RunError` where it cannot be done by then, or has no limit."""
    price = found.machine.price
    limits = [] if asked.hours is None else [(asked.hours * 3600, f"--hours {asked.hours:g}")]
    if asked.max_cost is not None and price is not None:
        said = f"--max-cost {asked.max_cost:g}, at ${price.hour:,.2f} an hour"
        limits.append((asked.max_cost / price.hour * 3600, said))
    if not limits and not paid:
        return None
    if not limits:
        if found.seconds is None:
            raise RunError("the time of this run is not forecast, so its cost has no limit. Give --hours or --max-cost")
        return int(2 * found.seconds[1] + 3600)
    seconds, why = min(limits)
    if seconds < 60:
        raise RunError(f"{why}: that is {seconds:.0f} s, in which nothing is trained. Give more")
    if found.seconds is not None and seconds < found.seconds[0]:
        raise RunError(
            f"the run would be stopped before its end: by forecast it trains for {span(found.seconds)}, and the limit "
            f"is {duration_text(seconds)} ({why}). Give more, or fewer steps: --set train.steps=N"
        )
    return int(seconds)


def _limit_of_money(machine: Machine, asked: Asked) -> None:
    """Raise `RunError` for a limit that cannot be kept."""
    if asked.max_cost is not None and machine.price is None:
        raise RunError(
            f"--max-cost is no limit where no price is known, and none is known of {machine.name}. Give its price an "
            "hour, --price, or --hours"
        )


def _must_allow_spot(chosen: Chosen, recipe: Recipe, spot: bool) -> None:
    """Raise `RunError` for a machine that may be taken back where that would lose the run."""
    if not spot:
        return
    if not chosen.launcher.spot:
        raise RunError(f'launcher "{chosen.launcher.name}" has no machines that are taken back. Leave --spot out')
    if recipe.checkpoint.steps is None and recipe.checkpoint.minutes == 0:
        raise RunError(
            "a spot machine is taken back at any time, and the recipe writes no checkpoints on the way ([checkpoint] "
            "minutes = 0 and no steps): the run would begin again each time. Give --set checkpoint.minutes=15"
        )


def _environment(names: Sequence[str]) -> dict[str, str]:
    """Variables as they are here. Raises `RunError` for one that is not, or that tells where things are here."""
    for name in names:
        if "=" in name:  # a secret may stand behind it
            raise RunError(
                f"--environment takes the name of a variable alone, and its value from here: --environment "
                f"{name.partition('=')[0]}"
            )
        if VARIABLE.fullmatch(name) is None:
            raise RunError(
                f'--environment "{name}": that is no name of a variable. Use letters, digits and underscores'
            )
        if name in OF_HERE:
            raise RunError(f"--environment {name}: it says where things are on this machine. Leave it out")
        if name not in os.environ:
            raise RunError(f"--environment {name}: there is no such variable here. Set it, or leave it out")
    return {name: os.environ[name] for name in names}


def words_for(registry: Registry, machine: Machine) -> list[str]:
    """More words for `ft run` on the machine."""
    return [
        *([FLAG] if registry.trusts_remote_code else []),
        *(["--gpus", str(machine.gpus)] if machine.gpus > 1 else []),
    ]


def _blamed(name: str) -> Any:
    return blame(f'launcher "{name}"')
