"""Launcher `ssh`: a host that one can log in to without a password, by the `ssh` that is installed here.

Who one is, ports, keys and jump hosts are `~/.ssh/config`'s. Files go by rsync where both sides have it, else by tar.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fitune import Job, Launcher, Machine, Problem, RunError, hookimpl, sentences
from fitune_plugins.launchers.host import BUNDLE, LOG, RUN, Host, launcher_of

CANNOT = 255
"""The exit code of ssh itself."""

ASKS = "nvidia-smi --query-gpu=name --format=csv,noheader"
"""Names of the cards, one a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SshOptions:
    """Options of `ssh`."""

    host: str
    """As ssh takes it: a name of ~/.ssh/config, or user@host."""
    root: str = "fitune"
    """Where jobs are kept there, a directory for each: from the home directory, or absolute."""
    python: str = "python3"
    """The Python there, 3.10 or later, whose packages a run may use."""
    gpu: str = ""
    """Its card, as ft plan --gpu takes it; by default nvidia-smi is asked there. "none" for a host without one."""
    ssh: tuple[str, ...] = ()
    """More words for ssh, e.g. ["-p", "2222"]."""


def check(options: SshOptions) -> Iterator[Problem]:
    """What would be read as something else."""
    if options.host.startswith("-") or not options.host.strip():
        yield Problem(key="host", what=f'"{options.host}" is no host', fix="Give a name of ~/.ssh/config, or user@host")
    if options.root.startswith(("~", "-")) or not options.root.strip("/"):
        yield Problem(key="root", what=f'"{options.root}" cannot be', fix="Give a path from the home directory: fitune")


class There(Host):
    """The other host."""

    def __init__(self, options: SshOptions) -> None:
        self.options, self.python = options, options.python
        self.ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", *options.ssh]

    def place(self, *parts: str) -> str:
        """In the directory of all jobs."""
        return "/".join([self.options.root.rstrip("/"), *parts])

    def run(self, words: Sequence[str], given: str = "") -> tuple[int, str, str]:
        """There, by its shell."""
        done = self._call([*self.ssh, self.options.host, "--", shlex.join(words)], given.encode())
        return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")

    def send(self, bundle: Path, name: str) -> None:
        """By rsync, which goes on where it was cut off, or as one archive."""
        self.must(["mkdir", "-p", self.place(name, BUNDLE)], f"{self.options.host}: no directory can be made")
        if self._has_rsync():
            self._rsync(f"{bundle}/", self._remote(f"{self.place(name, BUNDLE)}/"))
        else:
            unpack = shlex.join(["tar", "-C", self.place(name, BUNDLE), "-xf", "-"])
            self._pipe(["tar", "-C", str(bundle), "-cf", "-", "."], [*self.ssh, self.options.host, "--", unpack])

    def bring(self, name: str, into: Path) -> None:
        """The other way round."""
        if self._has_rsync():
            self._rsync(self._remote(f"{self.place(name, RUN)}/"), f"{into}/")
        else:
            pack = shlex.join(["tar", "-C", self.place(name, RUN), "-cf", "-", "."])
            self._pipe([*self.ssh, self.options.host, "--", pack], ["tar", "-C", str(into), "-xf", "-"])

    def read(self, name: str) -> str:
        """From its file."""
        code, printed, _ = self.run(["cat", self.place(name, LOG)])
        return printed if code == 0 else ""

    def names(self) -> list[str]:
        """The directories."""
        code, printed, _ = self.run(["ls", "-1", self.options.root])
        return [name for name in printed.split() if name.startswith("fitune-")] if code == 0 else []

    def cards(self) -> list[str]:
        """The names of its cards; none where it has no NVIDIA driver."""
        code, printed, _ = self.run(shlex.split(ASKS))
        return [line.strip() for line in printed.splitlines() if line.strip()] if code == 0 else []

    def must_be_quiet(self) -> None:
        """Raise `RunError` if the host prints something to whoever runs a command there: neither rsync nor anything
        else that is read from it could be told from that.
        """
        _, printed, _ = self.run(["true"])
        if printed:
            said = " ".join(printed.split())[:60]
            raise RunError(
                f'{self.options.host} prints "{said}" whatever is run there, which rsync and tar cannot take. Have its '
                "~/.bashrc, or what else prints it, do so for terminals alone: [[ $- == *i* ]] || return, at its top"
            )

    def _call(self, command: list[str], given: bytes) -> subprocess.CompletedProcess[bytes]:
        """Run a program here. Raises `RunError` where ssh itself fails."""
        try:
            done = subprocess.run(command, input=given, capture_output=True, check=False)
        except FileNotFoundError:
            raise RunError(f"there is no program {command[0]} here. Install it") from None
        if done.returncode == CANNOT and command[0] == "ssh":
            said = " ".join(done.stderr.decode(errors="replace").split()) or "ssh failed"
            by_hand = shlex.join(["ssh", *self.options.ssh, self.options.host])
            why = f"{self.options.host} cannot be reached: {said.rstrip('.')}"
            raise RunError(sentences(why, f"It must be possible to log in without a password: try {by_hand}"))
        return done

    def _pipe(self, source: list[str], target: list[str]) -> None:
        """Run two programs, the second on what the first prints. Raises `RunError` if either fails."""
        with subprocess.Popen(source, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as first:
            second = subprocess.run(target, stdin=first.stdout, capture_output=True, check=False)
        self._must_have_gone(first.returncode or second.returncode, second.stderr)

    def _has_rsync(self) -> bool:
        return shutil.which("rsync") is not None and self.run(["rsync", "--version"])[0] == 0

    def _rsync(self, source: str, target: str) -> None:
        done = self._call(["rsync", "-a", "--partial", "-e", shlex.join(self.ssh), source, target], b"")
        self._must_have_gone(done.returncode, done.stderr)

    def _remote(self, place: str) -> str:
        return f"{self.options.host}:{place}"

    def _must_have_gone(self, code: int, said: bytes) -> None:
        if code:
            why = " ".join(said.decode(errors="replace").split()) or f"exit code {code}"
            raise RunError(f"the files cannot be copied between here and {self.options.host}: {why}")


def machine(options: SshOptions, instance: str | None) -> Machine:
    """The host, with the card that it says it has."""
    if instance is not None:
        raise RunError(f"--instance {instance}: {options.host} is one machine. Leave it out")
    if options.gpu:
        return Machine(
            name=options.host, gpu="" if options.gpu == "none" else options.gpu, gpus=int(options.gpu != "none")
        )
    there = There(options)
    there.must_be_quiet()
    cards = there.cards()
    return Machine(name=options.host, gpu=cards[0] if cards else "", gpus=len(cards[:1]))


def prepare(options: SshOptions, job: Job) -> Iterator[str]:
    """Look whether the host is there, and has a Python that can run what is sent."""
    there = There(options)
    there.must_be_quiet()
    asked = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
    version = there.must([options.python, "-c", asked], f"{options.host}: {options.python} cannot be run").strip()
    if tuple(map(int, version.split("."))) < (3, 10):
        raise RunError(
            f"{options.host}: {options.python} is Python {version}, and fitune needs 3.10. Give --option "
            "python=python3.12"
        )
    if job.install and there.run([options.python, "-c", "import venv, ensurepip"])[0] != 0:  # as Debian splits it
        raise RunError(
            f"{options.host}: {options.python} cannot make virtual environments, where packages go. Install its venv "
            f"there, e.g. apt install python{version}-venv, or give --no-install where all packages are there"
        )
    yield f"{job.name}: on {options.host}, Python {version}, in {there.place(job.name)}"


def words(options: SshOptions, job: Job) -> list[str]:
    """For its beginning there: in a virtual environment that all jobs of that host share."""
    venv = ["--install", "--venv", There(options).place("venv")] if job.install else []
    return [*venv, "--python", options.python]


@hookimpl
def ft_launchers() -> Iterable[Launcher[SshOptions]]:
    """Offer `ssh`."""
    yield launcher_of(
        There,
        name="ssh",
        summary="A host that one can log in to, in the background",
        options=SshOptions,
        machine=machine,
        prepare=prepare,
        words=words,
        check=check,
    )
