"""`ssh` against a real sshd: its client, its shell, rsync and tar, and a run of ft's, from a command and back."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fitune import Job, Launcher, Machine, RunError
from fitune.cli.main import main
from fitune.testing import assert_launcher, open_registry, write_recipe
from fitune_plugins.launchers.ssh import SshOptions
from support.commands import Capture
from support.sshd import SSHD, Sshd, start_sshd

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs sshd: apt-get install openssh-server")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """It."""
    made = start_sshd(tmp_path_factory.mktemp("sshd") / "home")
    yield made
    made.stop()


@pytest.fixture
def options(sshd: Sshd, tmp_path: Path) -> SshOptions:
    """Jobs in a directory whose name a shell would take apart."""
    there = tmp_path / "it's there"
    return SshOptions(host="gpu-box", root=str(there), python=sys.executable, gpu="none", ssh=("-F", str(sshd.config)))


@pytest.fixture
def launcher() -> Launcher[Any]:
    """`ssh`."""
    return open_registry().find(Launcher, "ssh")


@pytest.mark.parametrize("by", ["rsync", "tar"])
def test_it_keeps_the_contract(
    options: SshOptions, launcher: Launcher[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "rsync" and shutil.which("rsync") is None:
        pytest.skip("needs rsync")
    if by == "tar":
        programs = tmp_path / "programs"
        programs.mkdir()
        for name in ("ssh", "tar"):
            (programs / name).symlink_to(str(shutil.which(name)))
        monkeypatch.setenv("PATH", str(programs))
    assert_launcher(launcher, dataclasses.replace(options, host="kept"), tmp_path / "suite")


def test_a_run_is_sent_stopped_and_fetched(options: SshOptions, tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"train": {"steps": 100_000, "epochs": 100_000}})
    given = [f"{name}={getattr(options, name)}" for name in ("host", "root", "python", "gpu")]
    given.append(f'ssh=["-F", "{options.ssh[1]}"]')
    main(("launch", str(recipe), "--on", "ssh", "--no-install", "--out", "a run",
          *(word for one in given for word in ("--option", one))))  # fmt: skip
    assert "sent: a run" in capsys.readouterr().out

    def asked(verb: str) -> str:
        main(("launch", verb, "a run"))
        return capsys.readouterr().out

    try:
        _until(lambda: "\nstep " in asked("logs"))
        assert "a run: running" in asked("status")
    finally:
        asked("stop")
    _until(lambda: "a run: stopped: it was stopped by SIGTERM, and has saved" in asked("status"))
    assert "fetched: a run" in asked("fetch")
    (kept,) = (Path("a run") / "checkpoints").iterdir()
    steps = int(kept.name.removeprefix("step-"))
    assert steps >= 1
    main(("runs", "show", "a run"))
    assert f"{steps}" in capsys.readouterr().out
    main(("launch", "list", "."))
    assert "stopped" in capsys.readouterr().out


def _until(true: Any) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """One that is never begun."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    return Job(name="fitune-a-0", bundle=bundle, machine=Machine(name="gpu-box"))


def test_a_host_that_greets_whoever_comes_is_told(options: SshOptions, launcher: Launcher[Any], job: Job) -> None:
    chatty = dataclasses.replace(options, host="chatty")
    said = 'chatty prints "Welcome to the box" whatever is run there'
    with pytest.raises(RunError, match=said):
        list(launcher.prepare(chatty, job))
    with pytest.raises(RunError, match=said):  # before its greeting is taken for a card
        launcher.machine(dataclasses.replace(chatty, gpu=""), None)


def test_one_that_does_not_let_in_is_told_with_what_to_try(
    sshd: Sshd, options: SshOptions, launcher: Launcher[Any], job: Job, tmp_path: Path
) -> None:
    known, key = f'"{sshd.home}/known"', f'"{sshd.home}/key"'
    config = sshd.config.read_text(encoding="utf-8")
    for name, changed, said in (
        ("stranger", config.replace(known, f'"{tmp_path}/none"'), "Host key verification failed"),
        ("keyless", config.replace(key, f'"{sshd.home}/host"'), r"Permission denied \(publickey\)"),
    ):
        (tmp_path / name).write_text(changed, encoding="utf-8")
        other = dataclasses.replace(options, ssh=("-F", str(tmp_path / name)))
        tried = rf"{said}\. It must be possible .*: try ssh -F .*{name} gpu-box$"
        with pytest.raises(RunError, match=tried):
            list(launcher.prepare(other, job))


def test_a_python_that_makes_no_environments_is_told(
    options: SshOptions, launcher: Launcher[Any], job: Job, tmp_path: Path
) -> None:
    """As Debian's is without python3-venv."""
    split = tmp_path / "split"
    split.mkdir()
    (split / "ensurepip.py").write_text("raise ModuleNotFoundError('ensurepip')\n", encoding="utf-8")
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nPYTHONPATH='{split}' exec '{sys.executable}' \"$@\"\n", encoding="utf-8")
    program.chmod(0o755)
    without = dataclasses.replace(options, python=str(program))
    with pytest.raises(RunError, match=r"cannot make virtual environments, .* apt install python3\.\d+-venv"):
        list(launcher.prepare(without, job))
    assert len(list(launcher.prepare(without, dataclasses.replace(job, install=False)))) == 1
