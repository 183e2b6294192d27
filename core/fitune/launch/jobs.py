"""What was sent, asked after: its state, its lines, its end, and the run as it comes back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fitune.errors import RunError
from fitune.launch.settings import Chosen, again
from fitune.plugin.contract import blame
from fitune.plugin.launching import ENDED, JobStatus
from fitune.plugin.registry import Registry
from fitune.runs import atomic
from fitune.runs.history.summary import is_run, summarise
from fitune.runs.launched import LAUNCH, Launched, read_launched, write_launched
from fitune.runs.lock import is_locked


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A run that was sent, with the launcher that knows it."""

    directory: Path
    launched: Launched
    chosen: Chosen

    def ask(self) -> Sent:
        """How it is now, kept. Raises `RunError`."""
        with blame(f'launcher "{self.launched.launcher}"'):
            found: JobStatus = self.chosen.launcher.status(self.chosen.options, self.launched.job)
        now = self.launched.now(found)
        write_launched(self.directory, now)
        return Sent(directory=self.directory, launched=now, chosen=self.chosen)


def sent(directory: Path, registry: Registry) -> Sent:
    """What was sent of a run's directory, by this user or by somebody who is trusted. Raises `RunError` if nothing was,
    and `fitune.plugin.trust.UnknownCode`.
    """
    launched = read_launched(directory, registry.trust)
    if launched is None:
        raise RunError(
            f"{directory} was not launched: there is no {LAUNCH} in it. ft launch list lists what was, and ft launch "
            "list --on NAME what a launcher knows"
        )
    return Sent(directory=directory, launched=launched, chosen=again(registry, launched.launcher, launched.options))


def all_sent(directory: Path) -> list[tuple[Path, Launched]]:
    """All that was sent of the runs in a directory, the last first. One that cannot be read is left out."""
    found = []
    for place in sorted(directory.iterdir()) if directory.is_dir() else []:
        try:
            launched = read_launched(place)
        except (RunError, OSError):
            continue
        if launched is not None:
            found.append((place, launched))
    return sorted(found, key=lambda one: one[1].launched, reverse=True)


def logs(one: Sent) -> Iterator[str]:
    """The lines that the job has printed. Raises `RunError`."""
    with blame(f'launcher "{one.launched.launcher}"'):
        yield from one.chosen.launcher.logs(one.chosen.options, one.launched.job)


def stop(one: Sent) -> Sent:
    """Ask the job to save and end. Raises `RunError`."""
    with blame(f'launcher "{one.launched.launcher}"'):
        one.chosen.launcher.stop(one.chosen.options, one.launched.job)
    return one.ask()


def fetch(one: Sent) -> Sent:
    """Bring the run's directory here, whole or not at all. Raises `RunError`, for a run that has not begun too."""
    if Path.cwd().is_relative_to(one.directory.absolute().resolve()):
        raise RunError(f"{one.directory}: you are in it, and it is replaced as a whole. Leave it first: cd ..")
    one, directory = one.ask(), one.directory
    if one.launched.status.state == "absent":
        raise RunError(f"{directory}: its job is not there: {one.launched.status.what or 'it was never submitted'}")
    if (holder := is_locked(directory)) is not None:
        raise RunError(f"{directory} is being written by {holder}: it cannot be replaced. Wait for it")
    try:
        partial = atomic.begin(directory)
        try:
            with blame(f'launcher "{one.launched.launcher}"'):
                one.chosen.launcher.fetch(one.chosen.options, one.launched.job, partial)
            _must_be_news(directory, partial, one.launched)
            shutil.copyfile(directory / LAUNCH, partial / LAUNCH)
            atomic.publish(partial, directory)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise RunError(f"{directory} cannot be written: {error.strerror or error}") from error
    return one


def _must_be_news(directory: Path, partial: Path, launched: Launched) -> None:
    if not is_run(partial):
        state = launched.status
        ended = f"its job has {state.state}: {state.what}" if state.state in ENDED else "its job has not begun to train"
        raise RunError(f"{directory}: there is nothing to fetch: {ended}. See: ft launch logs {directory}")
    here, there = summarise(directory), summarise(partial)
    if here.steps_made is not None and (here.steps_made, here.updated or "") > (
        there.steps_made or 0,
        there.updated or "",
    ):
        raise RunError(
            f"{directory} has gone on since it was fetched ({here.steps_made} steps here, {there.steps_made} there): "
            "that would be lost. Move it away first"
        )
