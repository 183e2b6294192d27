"""A machine with a shell and a disk that stay: what `local` and `ssh` do alike.

A job is a directory there: what was sent, what it has printed, its run. `bundle/start.py`, which was sent too, begins
it in the background, and says how it is.
"""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from fitune import Job, JobState, JobStatus, Launcher, Machine, Problem, RunError

O = TypeVar("O")  # noqa: E741 - options, as in every provider's docstring

BUNDLE, LOG, RUN = "bundle", "log.txt", "run"
"""What a job's directory holds."""


class Host(ABC):
    """One machine."""

    python = "python3"
    """Begins jobs."""

    @abstractmethod
    def place(self, *parts: str) -> str:
        """The path of a job's directory there, or of what is in it."""

    @abstractmethod
    def run(self, words: Sequence[str], given: str = "") -> tuple[int, str, str]:
        """Run a command: its exit code, and what it printed on both streams. Raises `RunError` if it could not be."""

    @abstractmethod
    def send(self, bundle: Path, name: str) -> None:
        """Copy what is sent to a job's directory, which is made. Raises `RunError`."""

    @abstractmethod
    def bring(self, name: str, into: Path) -> None:
        """Copy a job's run into an empty directory. Raises `RunError`."""

    @abstractmethod
    def read(self, name: str) -> str:
        """What a job has printed. Raises `RunError`."""

    @abstractmethod
    def names(self) -> list[str]:
        """The jobs that are there. Raises `RunError`."""

    def must(self, words: Sequence[str], what: str, given: str = "") -> str:
        """What a command prints. Raises `RunError` if it fails."""
        code, printed, complained = self.run(words, given)
        if code != 0:
            said = " ".join(complained.split()).removeprefix("error: ") or f"exit code {code}"
            raise RunError(f"{what}: {said}")
        return printed

    def start(self, verb: str, name: str, *more: str, given: str = "") -> str:
        """What `bundle/start.py` of a job prints. Raises `RunError`."""
        script = self.place(name, BUNDLE, "start.py")
        return self.must([self.python, script, verb, self.place(name), *more], f"{name}: {verb} failed", given)

    def submit(self, job: Job, more: Sequence[str]) -> None:
        """Send a job and begin it; nothing if it is there. Raises `RunError`; what was sent is deleted then."""
        if self.status(job.name).state != "absent":
            return
        try:
            self.send(job.bundle, job.name)
            limit = [] if job.seconds is None else ["--seconds", str(job.seconds)]
            self.start("begin", job.name, *limit, *more, given=json.dumps(dict(job.environment)))
        except BaseException:
            with contextlib.suppress(RunError):  # where it cannot be told, nothing is deleted
                if not self._is_at_work(job.name):
                    self.run(["rm", "-rf", self.place(job.name)])
            raise

    def _is_at_work(self, name: str) -> bool:
        """Whether a job has begun, by what it says of itself. Raises `RunError` if the machine cannot be asked."""
        code, printed, _ = self.run([self.python, self.place(name, BUNDLE, "start.py"), "status", self.place(name)])
        return code == 0 and printed.startswith("running")

    def status(self, name: str) -> JobStatus:
        """How a job is. Raises `RunError` if the machine cannot be asked."""
        code, _, _ = self.run(["test", "-e", self.place(name, BUNDLE, "start.py")])
        if code != 0:
            return JobStatus(name=name, state="absent", what="nothing of it is there")
        state, _, what = self.start("status", name).strip().partition(" ")
        known = {one: one for one in get_args(JobState)}
        if state not in known:
            raise RunError(f'{name}: it says "{state} {what}", which is no state of a job')
        return JobStatus(name=name, state=known[state], what=what)

    def logs(self, name: str) -> Iterator[str]:
        """The lines that a job has printed."""
        self.must_be_there(name)
        yield from self.read(name).splitlines()

    def stop(self, name: str) -> None:
        """Ask a job to end."""
        if self.status(name).state == "running":
            self.start("stop", name)

    def fetch(self, name: str, into: Path) -> None:
        """Bring a job's run."""
        self.must_be_there(name)
        if self.run(["test", "-d", self.place(name, RUN)])[0] == 0:
            self.bring(name, into)

    def jobs(self) -> Iterator[JobStatus]:
        """All jobs that are there."""
        yield from (self.status(name) for name in self.names())

    def must_be_there(self, name: str) -> None:
        """Raise `RunError` for a job that is not."""
        if self.status(name).state == "absent":
            raise RunError(f"{name}: there is no such job at {self.place(name)}")


def launcher_of(
    host: Callable[[O], Host],
    *,
    name: str,
    summary: str,
    options: type[O],
    machine: Callable[[O, str | None], Machine],
    prepare: Callable[[O, Job], Iterable[str]],
    words: Callable[[O, Job], Sequence[str]],
    check: Callable[[O], Iterable[Problem]] = lambda options: (),
) -> Launcher[O]:
    """The launcher of machines that are reached so; `words` are more of them for `start.py`'s `begin`."""
    return Launcher(
        name=name,
        summary=summary,
        options=options,
        machine=machine,
        prepare=prepare,
        submit=lambda options, job: host(options).submit(job, words(options, job)),
        status=lambda options, name: host(options).status(name),
        logs=lambda options, name: host(options).logs(name),
        stop=lambda options, name: host(options).stop(name),
        fetch=lambda options, name, into: host(options).fetch(name, into),
        jobs=lambda options: host(options).jobs(),
        check=check,
    )
