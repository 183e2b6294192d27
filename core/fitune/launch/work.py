"""A job's work, on the machine that it was sent to: installs what it needs, trains, and says how it ended.

    python3 ROOT/bundle/work.py ROOT [--run DIR] [--model DIR] [--failure FILE] [--seconds N] [--install]

`ROOT/bundle` is what was sent, `ROOT/job.json` says how the job is; the run is `ROOT/run`, if nothing else is said.
Needs Linux or macOS, and Python 3.8 and nothing else. A job that was killed and is begun again goes on with what it
finds.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

DONE, STOPPED, WRONG = 0, 3, 2
"""Exit codes: it has trained to its end, it was asked to stop and can go on, it has failed."""

TAIL = 30
"""Lines of what was printed last, of which a failure is told."""

LONGEST = 1000
"""Characters of a failure that is told: SageMaker keeps 1024."""


DEATH_SIGNAL = 1
"""Linux's PR_SET_PDEATHSIG (man 2 prctl)."""

OLDEST = (3, 10)
"""Python that can train."""


class Stopped(Exception):
    """The job was asked to end."""


class Failed(Exception):
    """The job cannot go on; the text says why."""


class Job:
    """One job, at work in this process."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.root = Path(asked.root)
        self.bundle = self.root / "bundle"
        self.run = Path(asked.run or self.root / "run")
        self.asked, self.python = asked, asked.python or sys.executable
        self.child: subprocess.Popen[bytes] | None = None
        self.ending, self.why = threading.Event(), ""
        """Whether it was asked to end, and why."""
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL)

    def work(self) -> int:
        """Do all of it; gives the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda given, frame: self.stop(signal.Signals(given).name))
        try:
            with locked(self.root):
                timer = None
                if self.asked.seconds:
                    timer = threading.Timer(self.asked.seconds, self.stop, ["its limit of time"])
                    timer.daemon = True
                    timer.start()
                self.tell("running", "prepares")
                code, said = self._work()
                if timer is not None:
                    timer.cancel()
                self.tell({DONE: "done", STOPPED: "stopped"}.get(code, "failed"), said)
        except Failed as error:  # another is at work
            print(f"error: {error}", file=sys.stderr, flush=True)
            return WRONG
        return code

    def _work(self) -> tuple[int, str]:
        try:
            must_be_whole(self.bundle)
            if not self.asked.python and sys.version_info < OLDEST:
                found = ".".join(map(str, sys.version_info[:2]))
                raise Failed(
                    f"the Python here is {found}, and fitune needs {'.'.join(map(str, OLDEST))}: take another image"
                )
            if self.asked.install:
                self._install()
            set_aside(self.run)
            self.tell("running", "")
            code = self._do(self._command(), self._environment())
            if code == DONE:
                self._hand_over()
                return DONE, ""
            if code == -signal.SIGTERM and self.ending.is_set():  # it had not yet begun to take signals
                raise Stopped
            if code == STOPPED:
                return STOPPED, f"it was stopped by {self.why or 'a plugin'}, and has saved"
            raise Failed(self._cause(code))
        except Stopped:
            return STOPPED, f"it was stopped by {self.why}, before it trained"
        except (Failed, OSError) as error:
            said = " ".join(str(error).split())[:LONGEST]
            print(f"error: {said}", file=sys.stderr, flush=True)
            if self.asked.failure:
                with contextlib.suppress(OSError):
                    Path(self.asked.failure).parent.mkdir(parents=True, exist_ok=True)
                    Path(self.asked.failure).write_text(said, encoding="utf-8")
            return WRONG, said

    def stop(self, why: str) -> None:
        """Ask the run to save and end. What installs packages is ended."""
        if not self.ending.is_set():
            self.why = why
            self.ending.set()
            if self.child is not None:
                with contextlib.suppress(OSError):
                    self.child.terminate()

    def tell(self, state: str, what: str) -> None:
        """Keep how it is."""
        values = {"state": state, "what": what, "process": os.getpid(), "time": time.time()}
        partial = self.root / ".job.json"
        with contextlib.suppress(OSError):  # a full disk
            partial.write_text(json.dumps(values), encoding="utf-8")
            partial.replace(self.root / "job.json")

    def _install(self) -> None:
        """The exact versions, into a virtual environment of their own where one is named."""
        if self.asked.venv:
            place = Path(self.asked.venv).absolute()
            if self._do([self.python, "-m", "venv", "--system-site-packages", str(place)], dict(os.environ)) != 0:
                if self.ending.is_set():
                    raise Stopped
                raise Failed(f"no virtual environment can be made in {place}: {self._last()}")
            self.python = str(place / "bin" / "python")
        command = [self.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        if self._do([*command, "-r", str(self.bundle / "requirements.txt")], dict(os.environ)) != 0:
            if self.ending.is_set():
                raise Stopped
            raise Failed(f"the packages cannot be installed: {self._last()}")

    def _command(self) -> list[str]:
        said = json.loads((self.bundle / "bundle.json").read_text(encoding="utf-8"))
        recipe = str(self.bundle / "recipe.toml")
        remote = ["--remote", self.asked.remote] if self.asked.remote else []
        return [
            self.python,
            "-m",
            "fitune",
            "run",
            recipe,
            "--out",
            str(self.run),
            "--resume",
            *said["arguments"],
            *remote,
        ]

    def _environment(self) -> dict[str, str]:
        """The code that was sent comes before what is installed, and its plugins were allowed where it was sent."""
        paths = [str((self.bundle / "code").absolute()), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "FT_ALLOW_PLUGINS": "1", "PYTHONUNBUFFERED": "1"}

    def _do(self, command: list[str], environment: dict[str, str]) -> int:
        """Run a command, print what it prints, and give its exit code. It has a session of its own: what this process
        is sent, it is sent once. Raises `Stopped` if the job is to end already.
        """
        if self.ending.is_set():
            raise Stopped
        self.child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        if self.ending.is_set():  # asked meanwhile
            self.child.terminate()
        assert self.child.stdout is not None
        for line in iter(self.child.stdout.readline, b""):
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
            self.tail.append(line.decode(errors="replace").strip())
        return self.child.wait()

    def _cause(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            memory = " The host may have had no memory left" if name == "SIGKILL" else ""
            return f"the run was killed by {name}.{memory} It said last: {self._last()}"
        return self._last()

    def _last(self) -> str:
        """What was printed of an error; the last line, where nothing says it is one."""
        lines = [line for line in self.tail if line]
        errors = [line for line in lines if line.lower().startswith("error: ")]
        return " ".join(line[len("error: ") :] for line in errors) or (lines[-1] if lines else "nothing was printed")

    def _hand_over(self) -> None:
        """Copy what was trained, and what it came from, to where the machine's keeper fetches it."""
        if self.asked.model:
            leave = shutil.ignore_patterns("checkpoints", ".*")
            shutil.copytree(str(self.run), self.asked.model, ignore=leave, dirs_exist_ok=True)


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process, which trains, where the one that watches over it is killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGTERM)


@contextlib.contextmanager
def locked(root: Path) -> Any:
    """Held while the job is at work, and freed however its process ends. Raises `Failed` where another holds it."""
    with (root / ".at-work").open("a") as file:
        for _ in range(20):  # who asks whether it is at work holds it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
        else:
            raise Failed(f"{root}: this job is at work already")
        yield


def must_be_whole(bundle: Path) -> None:
    """Raise `Failed` where what has arrived is not what was sent."""
    said = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["files"]
    for name, digest in said.items():
        place = bundle / name
        if not place.is_file():
            raise Failed(f"{name} of what was sent is missing: send it again")
        found = hashlib.sha256()
        with place.open("rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                found.update(part)
        if found.hexdigest() != digest:
            raise Failed(f"{name} is not what was sent (its SHA-256 differs): send it again")


def set_aside(run: Path) -> None:
    """Move away a directory that holds pieces of a run that nothing can go on with: its beginning was not kept."""
    if (
        run.is_dir()
        and any(run.iterdir())
        and not any((run / name).exists() for name in ("identity.json", "recipe.toml"))
    ):
        run.rename(run.with_name(f"{run.name}.incomplete-{time.strftime('%Y%m%d-%H%M%S')}"))


def main(arguments: list[str]) -> int:
    """Do the work; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--run", help="where the run is, if not in ROOT/run")
    parser.add_argument("--remote", help="object storage that the run is kept on, and goes on from")
    parser.add_argument("--model", help="where to copy what was trained")
    parser.add_argument("--failure", help="a file to tell a failure in")
    parser.add_argument("--seconds", type=float, help="after which it is stopped")
    parser.add_argument("--install", action="store_true", help="install the exact versions of all packages first")
    parser.add_argument("--venv", help="a virtual environment to install them into, made where it is not there")
    parser.add_argument("--python", help="the Python that trains")
    return Job(parser.parse_args(arguments)).work()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
