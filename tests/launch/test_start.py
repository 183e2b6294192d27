"""What begins a job in the background and asks after it: its limit of time, its packages, its end without a word."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fitune.launch import start
from fitune.testing.launchers import light_bundle

SYSTEMD_RUN = """\
#!/bin/sh
echo "$@" > "$FAKE_UNITS/asked"
[ -f "$FAKE_UNITS/fails" ] && exit 1
while :; do case "$1" in -*) shift;; *) break;; esac; done
"$@" > "$FAKE_UNITS/log" 2>&1 &
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A job of a hundred thousand steps."""
    light_bundle(tmp_path / "job" / "bundle", steps=100_000)
    return tmp_path / "job"


def script(root: Path, name: str, *words: str, given: str = "{}", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one of the scripts that were sent."""
    command = [sys.executable, str(root / "bundle" / name), *words]
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, input=given, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def begun(root: Path, *words: str, given: str = "{}", **variables: str) -> None:
    """Begin it in the background."""
    done = script(root, "start.py", "begin", str(root), *words, given=given, **variables)
    assert done.returncode == 0, done.stderr


def wait(root: Path, state: str) -> str:
    """What is said of it once it is so."""
    end = time.monotonic() + 60
    while not (said := start.status(root)).startswith(state):
        assert time.monotonic() < end, said
        time.sleep(0.05)
    return said


def process_of(root: Path) -> int:
    """The number of the process that does the work."""
    return int(json.loads((root / "job.json").read_text(encoding="utf-8"))["process"])


def test_it_is_stopped_at_its_limit(root: Path) -> None:
    done = script(root, "work.py", str(root), "--seconds", "0.5")
    assert done.returncode == 3, done.stderr
    assert start.status(root) == "stopped it was stopped by its limit of time, and has saved"
    assert (root / "run" / "step").is_file()


def steps(root: Path) -> int:
    """Made so far."""
    file = root / "run" / "step"
    return int(file.read_text(encoding="utf-8") or 0) if file.is_file() else 0


def until(so: Callable[[], bool]) -> None:
    """Wait."""
    end = time.monotonic() + 60
    while not so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_one_that_was_killed_is_told_and_goes_on_when_it_is_begun_again(root: Path) -> None:
    begun(root)
    until(lambda: steps(root) > 1)
    begun(root)  # once
    os.kill(process_of(root), signal.SIGKILL)
    assert "its process is gone" in wait(root, "failed")

    def has_ended() -> bool:  # what trains is told by the kernel to save and end
        before = steps(root)
        time.sleep(0.5)
        return steps(root) == before

    until(has_ended)
    made = steps(root)
    begun(root)
    until(lambda: steps(root) > made)
    start.stop(root)
    wait(root, "stopped")
    lines = (root / "log.txt").read_text(encoding="utf-8").splitlines()
    assert f"step {made + 1}" in lines


def test_it_is_a_unit_of_systemd_s_where_the_user_has_that_and_no_secret_is_on_a_command_line(
    root: Path, tmp_path: Path
) -> None:
    units = tmp_path / "units"
    units.mkdir()
    (units / "systemd-run").write_text(SYSTEMD_RUN, encoding="utf-8")
    (units / "systemd-run").chmod(0o755)
    path = os.pathsep.join([str(units), os.environ["PATH"]])
    begun(root, given='{"FT_TEST_SECRET": "s3cret-of-a-test"}', PATH=path, FAKE_UNITS=str(units))
    asked = (units / "asked").read_text(encoding="utf-8")
    assert f"--user --collect --quiet --unit=fitune-{root.name}" in asked
    assert "--setenv=FT_TEST_SECRET" in asked
    assert "s3cret-of-a-test" not in asked
    start.stop(root)
    wait(root, "stopped")
    (units / "fails").write_text("", encoding="utf-8")
    begun(root, PATH=path, FAKE_UNITS=str(units))  # without a manager of the user's, it is a process of its own
    start.stop(root)
    wait(root, "stopped")


def test_packages_that_cannot_be_installed_are_the_cause(root: Path) -> None:
    requirements = root / "bundle" / "requirements.txt"
    requirements.write_text("no-such-package-of-anybody==1.0\n", encoding="utf-8")
    bundle = json.loads((root / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    del bundle["files"]["requirements.txt"]
    (root / "bundle" / "bundle.json").write_text(json.dumps(bundle), encoding="utf-8")
    done = script(root, "work.py", str(root), "--install", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert done.returncode == 2
    said = start.status(root)
    assert said.startswith("failed the packages cannot be installed: ")
    assert "no-such-package-of-anybody" in said
    assert not (root / "run").exists()


def test_packages_go_into_an_environment_of_their_own(root: Path, tmp_path: Path) -> None:
    done = script(root, "work.py", str(root), "--install", "--venv", str(tmp_path / "venv"), "--seconds", "0.001")
    assert done.returncode == 3, done.stdout
    assert "before it trained" in start.status(root)
    light_bundle(tmp_path / "short" / "bundle", steps=1)
    short = tmp_path / "short"
    done = script(short, "work.py", str(short), "--install", "--venv", str(tmp_path / "venv"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "venv" / "bin" / "python").exists()


def test_what_was_never_begun_is_told(root: Path, tmp_path: Path) -> None:
    assert start.status(root) == "failed it has never begun"
    assert start.status(tmp_path / "nothing") == "absent"
