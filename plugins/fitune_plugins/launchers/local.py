"""Launcher `local`: a run of its own on this machine, in the background. What every launcher does, at its plainest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_state_path

from fitune import Job, Launcher, Machine, RunError, hookimpl
from fitune_plugins.launchers.host import BUNDLE, LOG, RUN, Host, launcher_of

MACHINE = "this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """Options of `local`."""

    root: Path | None = None
    """Where jobs are kept, a directory for each; by default in the user's own state directory."""
    gpu: bool = True
    """Whether the run is forecast for this machine's GPU, where it has one."""


class Here(Host):
    """This machine."""

    python = sys.executable

    def __init__(self, options: LocalOptions) -> None:
        self.root = options.root or user_state_path("fitune", appauthor=False) / "launched"

    def place(self, *parts: str) -> str:
        """In the directory of all jobs."""
        return str(self.root.joinpath(*parts))

    def run(self, words: Sequence[str], given: str = "") -> tuple[int, str, str]:
        """As a process."""
        done = subprocess.run(list(words), input=given, capture_output=True, text=True, errors="replace", check=False)
        return done.returncode, done.stdout, done.stderr

    def send(self, bundle: Path, name: str) -> None:
        """Link what is large, copy the rest."""
        try:
            shutil.copytree(bundle, self.root / name / BUNDLE, copy_function=_copy)
        except (OSError, shutil.Error) as error:
            raise RunError(f"{self.root / name} cannot be written: {error}. Give another --option root=DIR") from error

    def bring(self, name: str, into: Path) -> None:
        """Copy it."""
        try:
            shutil.copytree(self.root / name / RUN, into, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            raise RunError(f"the run of {name} cannot be copied: {error}") from error

    def read(self, name: str) -> str:
        """From its file."""
        file = self.root / name / LOG
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""

    def names(self) -> list[str]:
        """The directories."""
        return sorted(place.name for place in self.root.glob("fitune-*")) if self.root.is_dir() else []


def machine(options: LocalOptions, instance: str | None) -> Machine:
    """This one."""
    if instance is not None:
        raise RunError(f'--instance {instance}: "local" has this machine alone. Leave it out')
    return Machine(name=MACHINE, gpu="here" if options.gpu else "", gpus=1 if options.gpu else 0)


def prepare(options: LocalOptions, job: Job) -> Iterator[str]:
    """Look whether a job can be kept here."""
    if os.name == "nt":
        raise RunError("local runs in the background need Linux or macOS. Use ft run")
    here = Here(options)
    place = here.root
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RunError(
            f"{place} cannot be written to, and jobs are kept in {here.root}. Give another --option root=DIR"
        )
    yield f"{job.name}: a process of its own, which outlives this terminal, in {here.place(job.name)}"


def _copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copyfile(source, target)


@hookimpl
def ft_launchers() -> Iterable[Launcher[LocalOptions]]:
    """Offer `local`."""
    yield launcher_of(
        Here,
        name="local",
        summary="This machine, in the background, with the packages that are here",
        options=LocalOptions,
        machine=machine,
        prepare=prepare,
        words=lambda options, job: [],
    )
