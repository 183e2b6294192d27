"""What every launcher must keep to, tried with jobs that do in a second what a run does: they need no torch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from fitune.errors import RunError
from fitune.launch.bundle import job_name, seal
from fitune.plugin.launching import ENDED, Job, JobState, JobStatus, Launcher, Machine, nothing_listed

PATIENCE = 60.0
"""Seconds that a job of a test may take."""

IN_PLACE_OF_A_RUN = '''\
"""Does what `ft run` does, as far as a launcher can see it: prints, takes SIGTERM, goes on, leaves files."""

import os
import pathlib
import signal
import sys
import time

recipe, run = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
steps, fails = (int(word) for word in recipe.read_text().split())
run.mkdir(parents=True, exist_ok=True)
(run / "recipe.toml").write_text(recipe.read_text())
(run / "environment.json").write_text("{}")
print("variable", os.environ.get("FT_TEST_SECRET", "none"), flush=True)
at = int((run / "step").read_text()) if (run / "step").is_file() else 0
for step in range(at + 1, steps + 1):
    time.sleep(0.02)
    (run / "step").write_text(str(step))
    print("step", step, flush=True)
    if asked:
        sys.exit(3)
    if step == fails:
        print("error: the data of step", step, "are bad", file=sys.stderr)
        sys.exit(2)
(run / "adapter").mkdir(exist_ok=True)
(run / "adapter" / "adapter_model.safetensors").write_bytes(bytes(range(256)))
'''


def launcher_keeps_its_contract(
    launcher: Launcher[Any], options: Any, place: Path, instance: str | None, elapse: Callable[[], None]
) -> None:
    """Raise `AssertionError`, which says what of the contract is broken."""
    suite = _Suite(launcher, options, place, elapse)
    suite.machine = suite.named(instance)
    for part in (suite.nothing_is_there, suite.prepares, suite.runs, suite.stops, suite.fails):
        part()


class _Suite:
    def __init__(self, launcher: Launcher[Any], options: Any, place: Path, elapse: Callable[[], None]) -> None:
        self.launcher, self.options, self.place, self.elapse = launcher, options, place, elapse
        self.machine = Machine(name="none")

    def named(self, instance: str | None) -> Machine:
        """It knows its machines, and no others."""
        found = self.launcher.machine(self.options, instance)
        assert isinstance(found, Machine), f"machine gave {found!r}, no Machine"
        assert found.name.strip(), "machine has no name"
        _refuses(
            lambda: self.launcher.machine(self.options, "no-such-machine"), "machine takes a name that it cannot know"
        )
        return found

    def nothing_is_there(self) -> None:
        """A job that was never submitted."""
        name = job_name("absent")
        assert self.status(name).state == "absent", "status knows a job that was never submitted"
        self.launcher.stop(self.options, name)
        into = self.directory("absent")
        _refuses(lambda: self.launcher.fetch(self.options, name, into), "fetch brings a job that was never submitted")
        assert not any(into.iterdir()), "fetch leaves files of a job that was never submitted"
        _refuses(
            lambda: list(self.launcher.logs(self.options, name)), "logs has lines of a job that was never submitted"
        )

    def prepares(self) -> None:
        """To prepare leaves nothing."""
        job = self.job("prepared", steps=1)
        told = [list(self.launcher.prepare(self.options, job)) for _ in range(2)]
        assert told[0] == told[1], "prepare says two things of one job"
        assert all(isinstance(line, str) and len(line.splitlines()) == 1 for line in told[0]), "prepare gives no lines"
        assert self.status(job.name).state == "absent", "prepare has submitted the job"

    def runs(self) -> None:
        """To the end, once."""
        job = replace(self.job("runs", steps=5), environment={"FT_TEST_SECRET": "s3cret-of-a-test"})
        self.launcher.submit(self.options, job)
        assert self.status(job.name).state != "absent", "submit has submitted nothing"
        self.launcher.submit(self.options, job)
        shutil.rmtree(job.bundle)  # it is there only while the launcher is called
        ended = self.wait(job.name, lambda status: status.state in ENDED)
        assert ended.state == "done", f"a job that does all of its work ends as {ended}"
        lines = list(self.launcher.logs(self.options, job.name))
        steps = [line for line in lines if line.startswith("step ")]
        assert steps == [f"step {number}" for number in range(1, 6)], f"logs has {lines}"
        assert "variable s3cret-of-a-test" in lines, "the run does not have the variables that it is to have"
        found = [self.directory(f"runs-{number}") for number in range(2)]
        for into in found:
            self.launcher.fetch(self.options, job.name, into)
            assert (into / "adapter" / "adapter_model.safetensors").read_bytes() == bytes(range(256)), (
                "fetch is not true"
            )
            assert (into / "step").read_text(encoding="utf-8") == "5", "fetch does not bring the run's directory itself"
        self.launcher.stop(self.options, job.name)
        assert self.status(job.name).state == "done", "stop has changed a job that had ended"
        if self.launcher.jobs is not nothing_listed:
            listed = {status.name: status.state for status in self.launcher.jobs(self.options)}
            assert listed.get(job.name) == "done", f"jobs does not list it: {listed}"

    def stops(self) -> None:
        """In the midst, and what it has is fetched."""
        job = self.job("stops", steps=100_000)
        self.launcher.submit(self.options, job)
        self.wait(job.name, lambda status: "step 2" in list(self.launcher.logs(self.options, job.name)))
        self.launcher.stop(self.options, job.name)
        ended = self.wait(job.name, lambda status: status.state in ENDED)
        assert ended.state == "stopped", f"a job that was stopped ends as {ended}"
        into = self.directory("stops")
        self.launcher.fetch(self.options, job.name, into)
        assert int((into / "step").read_text(encoding="utf-8")) >= 2, (
            "fetch does not bring what a stopped job has saved"
        )

    def fails(self) -> None:
        """With its cause."""
        job = self.job("fails", steps=5, fails=3)
        self.launcher.submit(self.options, job)
        ended = self.wait(job.name, lambda status: status.state in ENDED)
        assert ended.state == "failed", f"a job that fails ends as {ended}"
        assert "the data of step 3 are bad" in ended.what, f"status does not say why it failed: {ended.what}"

    def job(self, name: str, *, steps: int, fails: int = 0) -> Job:
        """One that does in a second what a run does."""
        bundle = light_bundle(self.place / f"bundle-{name}", steps=steps, fails=fails)
        return Job(name=job_name(name), bundle=bundle, machine=self.machine, seconds=3600, install=False)

    def directory(self, name: str) -> Path:
        """A new one."""
        made = self.place / name
        made.mkdir(parents=True)
        return made

    def status(self, name: str) -> JobStatus:
        """How a job is, in words that are known."""
        found = self.launcher.status(self.options, name)
        assert isinstance(found, JobStatus), f"status gave {found!r}, no JobStatus"
        assert found.name == name, f"status of {name} is that of {found.name}"
        assert found.state in get_args(JobState), f'no job is ever "{found.state}"'
        assert len(found.what.splitlines()) <= 1, "status says more than a line"
        return found

    def wait(self, name: str, until: Callable[[JobStatus], bool]) -> JobStatus:
        """The status that a job has once it is so."""
        for found in self._statuses(name):
            if until(found):
                return found
        raise AssertionError(f"after {PATIENCE:.0f} s the job is {self.status(name)}")

    def _statuses(self, name: str) -> Iterator[JobStatus]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            yield self.status(name)
            self.elapse()


def light_bundle(directory: Path, *, steps: int, fails: int = 0) -> Path:
    """What is sent, with a program in place of a run: of so many steps, one of which may fail. Its recipe is these two
    numbers. Gives the directory, which is made.
    """
    code = directory / "code" / "fitune"
    code.mkdir(parents=True)
    (code / "__init__.py").write_text("", encoding="utf-8")
    (code / "__main__.py").write_text(IN_PLACE_OF_A_RUN, encoding="utf-8")
    (directory / "recipe.toml").write_text(f"{steps} {fails}\n", encoding="utf-8")
    (directory / "requirements.txt").write_text("", encoding="utf-8")
    seal(directory, "light")
    return directory


def _refuses(call: Callable[[], object], otherwise: str) -> None:
    said = None
    try:
        call()
    except RunError as error:
        said = error.message.strip()
    assert said is not None, otherwise
    assert said, "a RunError says nothing"
