"""Streams that are closed, full, unread or of another encoding: no run ends for them, and nothing prints a traceback.

On 0.1 `ft plan | head` and `ft plugins > /dev/full` ended with a traceback or exit code 120, a closed standard output
ended a run, and so did a character that the terminal's encoding has not.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fitune.cli.streams import UNREAD as UNREAD_CODE
from fitune.cli.streams import argument_text, open_streams
from fitune.errors import DataError
from support.after_runs import finished, refused
from support.fault_recipe import write_fault_recipe
from support.fault_suite import outcome
from support.forked import Ended, Forks
from support.terminals import ASCII, CLOSED, FULL, UNREAD, nowhere, streams

KINDS = (CLOSED, FULL, UNREAD, ASCII)
STEPS = 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its name is not ASCII."""
    path = write_fault_recipe(tmp_path_factory.mktemp("streams") / "recipe", STEPS)
    path.write_text(path.read_text(encoding="utf-8").replace('"tiny"', '"tiny-\u00fc\u4f60"'), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain(forks: Forks, recipe: Path) -> dict[str, Any]:
    ended = forks.run(["run", recipe, "--out", recipe.parent / "plain"], cwd=recipe.parent)
    assert ended.code == 0, ended.output
    return outcome(recipe.parent / "plain")


def must_be_clean(ended: Ended) -> None:
    for word in ("Traceback", "Exception ignored", "OSError", "Errno"):
        assert word not in ended.output, ended.output


BOTH = [*((kind, "") for kind in KINDS), *(("", kind) for kind in KINDS), *((kind, kind) for kind in KINDS)]


@pytest.mark.parametrize(("out", "err"), BOTH)
def test_a_run_goes_on(forks: Forks, recipe: Path, plain: dict[str, Any], tmp_path: Path, out: str, err: str) -> None:
    ended = forks.run(["run", recipe, "--out", "run"], cwd=tmp_path, prepare=streams, out=out, err=err)
    must_be_clean(ended)
    assert ended.code == 0
    assert outcome(tmp_path / "run") == plain


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_fails_or_is_done_says_so_by_its_exit_code(
    forks: Forks, recipe: Path, plain: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    for given, code in ((str(recipe.parent / "plain"), 0), ("nothing.toml", 2), ("--nothing", 2)):
        ended = forks.run(["run", given], cwd=tmp_path, prepare=streams, out="", err=kind)
        must_be_clean(ended)
        assert ended.code == code


COMMANDS: tuple[list[str], ...] = (
    ["plugins"], ["plugins", "--json"], ["--help"], ["run", "--help"], ["--version"], ["runs", "RUNS"],
    ["runs", "show", "RUNS/plain"], ["runs", "show", "RUNS/plain", "--json"], ["check", "RECIPE"], ["data", "RECIPE"],
    ["plan", "RECIPE", "--gpu", "a10g"], ["plan", "RECIPE", "--gpu", "a10g", "--json"],
    ["generate", "RUNS/plain", "--prompt", "Count"], ["eval", "RUNS/plain"],
)  # fmt: skip
CODES = {CLOSED: (0,), FULL: (2,), UNREAD: (UNREAD_CODE,), ASCII: (0,)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_cannot_be_written_ends_a_command_in_a_line(
    forks: Forks, recipe: Path, plain: dict[str, Any], tmp_path: Path, command: list[str], kind: str
) -> None:
    given = [one.replace("RUNS", str(recipe.parent)).replace("RECIPE", str(recipe)) for one in command]
    ended = forks.run(given, cwd=tmp_path, prepare=streams, out=kind, err="")
    must_be_clean(ended)
    assert ended.code in CODES[kind], ended.output
    said = [line for line in ended.output.splitlines() if line.startswith("error:")]
    full = ["error: standard output, or a file, cannot be read or written: No space left on device"]
    assert said == (full if kind == FULL else [])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_working_directory_that_is_gone(
    forks: Forks, recipe: Path, plain: dict[str, Any], tmp_path: Path, command: list[str]
) -> None:
    given = [one.replace("RUNS", str(recipe.parent)).replace("RECIPE", str(recipe)) for one in command]
    ended = forks.run(given, cwd=tmp_path, prepare=nowhere)
    assert (ended.code, ended.output) == (2, "error: the working directory is gone. Change to one that is there: cd\n")


def test_a_real_shell(tmp_path: Path) -> None:
    """As a user types it: whatever Python itself does at its beginning and its end."""
    ft = f"{sys.executable} -m fitune"
    script = f"""\
{ft} plugins | head -n 1
echo "${{PIPESTATUS[0]}}"
{ft} plugins > /dev/full
echo $?
{ft} plugins >&-
echo $?
{ft} nothing 2>&-
echo $?
PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C {ft} check $'\\xc3\\xbc\\xff.toml'
echo $?
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, cwd=tmp_path, check=True)
    out, err = done.stdout.decode(), done.stderr.decode()
    codes = [line for line in out.splitlines() if line.isdigit()]
    assert codes[1:] == ["2", "0", "2", "2"]
    assert codes[0] in ("0", str(UNREAD_CODE))  # whoever is faster
    assert len(err.splitlines()) == 2
    assert all(line.startswith("error: ") for line in err.splitlines())


# ----------------------------------------------------------------------------------------------- standard input


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("asked"), "train.steps=1", "eval.exact_match=false")


@pytest.mark.parametrize("interactive", [False, True])
def test_input_that_is_no_text(run: Path, monkeypatch: pytest.MonkeyPatch, interactive: bool) -> None:
    given = ("generate", run, *(["--interactive"] if interactive else []))
    for binary in (b"\xff\xfe\x00\n", bytes(range(256)), b"\xc3"):
        with monkeypatch.context() as patch:
            patch.setattr("support.after_runs.StringIO", lambda text="", b=binary: _stdin(b, text))
            said = refused(*given, stdin="x")
        assert said.strip() == "standard input is not UTF-8. Save the prompt as UTF-8"


def _stdin(binary: bytes, text: str) -> io.StringIO | io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(binary), encoding="ascii") if text == "x" else io.StringIO(text)


def test_input_that_cannot_be_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = os.open(run, os.O_RDONLY)
    directory = io.TextIOWrapper(io.BufferedReader(_Raw(number)))
    monkeypatch.setattr("support.after_runs.StringIO", lambda text="": directory if text == "x" else io.StringIO(text))
    said = refused("generate", run, stdin="x")
    assert said.strip() == "standard input cannot be read: Is a directory. Give the prompt as text"
    os.close(number)


class _Raw(io.RawIOBase):
    """A directory as standard input."""

    def __init__(self, number: int) -> None:
        self.number = number

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        buffer[:] = found = os.read(self.number, len(buffer))
        return len(found)


def test_arguments_of_another_encoding() -> None:
    assert argument_text("\u00fc\u4f60", "--prompt") == "\u00fc\u4f60"
    assert argument_text(os.fsdecode("\u00fc".encode()), "--prompt") == "\u00fc"
    with pytest.raises(DataError, match=r"--prompt is not UTF-8"):
        argument_text("\udcff", "--prompt")


def test_streams_that_are_there_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdin, sys.stdout, sys.stderr
    open_streams()
    assert (sys.stdin, sys.stdout, sys.stderr) == before
    monkeypatch.setattr(sys, "stderr", None)
    open_streams()
    assert sys.stderr is not None
    assert sys.stderr.encoding == "utf-8"
