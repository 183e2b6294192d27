"""Launcher `sample`: a run in the background of this machine, a directory for each job."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fitune import Job, JobState, JobStatus, Launcher, Machine, RunError, hookimpl

MACHINE = Machine(name="this machine")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """Options of `sample`."""

    root: Path
    """Where jobs are kept."""


def machine(options: SampleOptions, instance: str | None) -> Machine:
    """Give the only one."""
    if instance is not None:
        raise RunError(f'--instance {instance}: "sample" has this machine alone. Leave it out')
    return MACHINE


def prepare(options: SampleOptions, job: Job) -> Iterable[str]:
    """Say what will be done."""
    yield f"{job.name}: in {options.root / job.name}"


def submit(options: SampleOptions, job: Job) -> None:
    """Copy what is sent, and have its `start.py` begin it; once."""
    if status(options, job.name).state != "absent":
        return
    place = options.root / job.name
    try:
        shutil.copytree(job.bundle, place / "bundle")
        limit = [] if job.seconds is None else ["--seconds", str(job.seconds)]
        _start(options, "begin", job.name, *limit, given=json.dumps(dict(job.environment)))
    except (OSError, RunError) as error:
        shutil.rmtree(place, ignore_errors=True)
        raise RunError(f"{job.name} cannot be started in {place}: {error}") from error


def status(options: SampleOptions, name: str) -> JobStatus:
    """Ask its `start.py`."""
    if not (options.root / name / "bundle" / "start.py").is_file():
        return JobStatus(name=name, state="absent", what="nothing of it is there")
    state, _, what = _start(options, "status", name).strip().partition(" ")
    return JobStatus(name=name, state=cast(JobState, state), what=what)


def logs(options: SampleOptions, name: str) -> Iterable[str]:
    """Give what it has printed."""
    _must_be_there(options, name)
    file = options.root / name / "log.txt"
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def stop(options: SampleOptions, name: str) -> None:
    """Ask it to save and end."""
    if status(options, name).state == "running":
        _start(options, "stop", name)


def fetch(options: SampleOptions, name: str, into: Path) -> None:
    """Copy its run."""
    _must_be_there(options, name)
    if (options.root / name / "run").is_dir():
        shutil.copytree(options.root / name / "run", into, dirs_exist_ok=True)


def _must_be_there(options: SampleOptions, name: str) -> None:
    if status(options, name).state == "absent":
        raise RunError(f"{name}: there is no such job in {options.root}")


def _start(options: SampleOptions, verb: str, name: str, *more: str, given: str = "") -> str:
    """What the job's own `start.py` prints. Raises `RunError`."""
    place = options.root / name
    command = [sys.executable, str(place / "bundle" / "start.py"), verb, str(place), *more]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"{name}: {verb} failed: {' '.join(done.stderr.split())}")
    return done.stdout


@hookimpl
def ft_launchers() -> Iterable[Launcher[SampleOptions]]:
    """Offer the launcher."""
    yield Launcher(
        name="sample",
        summary="This machine, in the background",
        options=SampleOptions,
        machine=machine,
        prepare=prepare,
        submit=submit,
        status=status,
        logs=logs,
        stop=stop,
        fetch=fetch,
    )
