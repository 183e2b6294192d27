"""One bad record ends nothing but itself: `ft runs` lists the others, whatever stands in the place of one's files.

On 0.1 each of these ended the list with a traceback, or waited for ever.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fitune.plugin.reading import DEEPEST, json_of, open_file, read_file
from fitune.runs.history import summary
from fitune.runs.history.summary import find_runs
from fitune.runs.provenance import write_recipe
from fitune.runs.recorder import RecordFile
from support.commands import ft
from support.told import made_run, step

Capture = pytest.CaptureFixture[str]

FILES = ("run.json", "metrics.jsonl", "recipe.toml", "identity.json", "environment.json", "memory.json", ".lock",
         ".lock.json", "checkpoints", "adapter", "examples.json")  # fmt: skip

TEXTS = {
    "NaN": '{"loss": NaN}',
    "infinity": '{"loss": 1e999, "seconds": -1e999}',
    "nested deep": '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested as deep as Python goes": '{"x": ' + '{"x": ' * 700 + "0" + "}" * 700 + "}",
    "a lone surrogate": '{"name": "\\ud800", "event": "\\udfff", "step": 1, "error": "\\ud800"}',
    "a huge integer": '{"steps_made": ' + "9" * 5000 + "}",
    "large integers": json.dumps({"event": "step", "step": 10**350, "loss": 10**350, "seconds": 10**350}),
    "no UTF-8": "\udcff\udcfe",
    "nothing": "",
    "a list": "[]",
    "zeros": "\0" * 300,
}


def record(**changes: object) -> str:
    """A record that is right, but for these values."""
    good = {
        "schema": 1, "name": "bad", "state": "failed", "steps_made": 1, "steps": 2, "started": "2026-01-01T00:00:00",
        "updated": "2026-01-01T00:00:00+00:00", "starts": [], "device": "cpu", "model": "m", "adapter": "a",
        "trainable": 1, "parameters": 2,
    }  # fmt: skip
    return json.dumps({**good, **changes})


RECORDS = {
    "no finite loss": record(loss=float("nan")),
    "no finite seconds": record(seconds=1e300).replace("1e+300", "1e999"),
    "seconds beyond counting": record(seconds=1e300),
    "bytes beyond counting": record(memory={"kind": "gpu", "peak": 10**350}),
    "steps beyond counting": record(steps_made=10**300),
    "a surrogate in a name": record(name="\ud800", error="\udfff", model="\ud83d"),
    "a year that no calendar has": record(updated="9999-12-31T23:59:59-23:59", started="0001-01-01T00:00:00+23:59"),
    "a list in a list": record(starts=[[[]]]),
    "a date that is none": record(updated="yesterday"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is as it should be."""
    run = made_run(tmp_path_factory.mktemp("made"))
    write_recipe(run.recipe, run.directory)
    keeper = RecordFile()
    keeper.ft_run_started(run)
    keeper.ft_step_done(step(1, 2.0))
    keeper.ft_run_finished(None)
    return run.directory


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A directory with that run."""
    shutil.copytree(made, tmp_path / "runs" / "good")
    return tmp_path / "runs"


def bad_run(runs: Path, name: str = "bad", text: str | None = None) -> Path:
    """Another run there, with this record or a good one."""
    place = runs / name
    place.mkdir()
    (place / "run.json").write_text(record() if text is None else text)
    return place


def pipe(file: Path) -> None:
    os.mkfifo(file)


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def directory(file: Path) -> None:
    (file / "inner").mkdir(parents=True)


def link_to_itself(file: Path) -> None:
    file.symlink_to(file.name)


def unreadable(file: Path) -> None:
    file.touch(mode=0o000)


def enormous(file: Path) -> None:
    file.touch()
    os.truncate(file, 1 << 40)


def of_another_age(file: Path) -> None:
    file.write_text("{}")
    os.utime(file, (1e11 * 30, 1e11 * 30))


KINDS: dict[str, Callable[[Path], None]] = {
    kind.__name__: kind for kind in (pipe, device, directory, link_to_itself, unreadable, enormous, of_another_age)
}


def must_be_told(runs: Path, capsys: Capture) -> None:
    """All three commands tell of the good run, and end."""
    assert "good" in ft("runs", str(runs), capsys=capsys)
    listed = json.loads(ft("runs", str(runs), "--json", capsys=capsys))
    assert "good" in [Path(one["directory"]).name for one in listed]
    for bad in (place for place in runs.iterdir() if place.name != "good" and len(listed) > 1):
        ft("runs", "show", str(bad), capsys=capsys)
        ft("runs", "show", str(bad), "--json", capsys=capsys)
        ft("runs", "compare", str(bad), str(runs / "good"), capsys=capsys)
        ft("runs", "compare", str(bad), str(runs / "good"), "--json", capsys=capsys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_in_the_place_of_one(runs: Path, capsys: Capture, name: str, kind: str) -> None:
    bad = bad_run(runs)
    (bad / name).unlink(missing_ok=True)
    KINDS[kind](bad / name)
    must_be_told(runs, capsys)


@pytest.mark.parametrize("name", [name for name in FILES if "." in name and name != ".lock"])
@pytest.mark.parametrize("text", TEXTS)
def test_what_no_file_should_say(runs: Path, capsys: Capture, name: str, text: str) -> None:
    (bad_run(runs) / name).write_bytes((TEXTS[text] + "\n").encode("utf-8", "surrogateescape"))
    must_be_told(runs, capsys)


@pytest.mark.parametrize("text", RECORDS)
def test_records_of_another_kind(runs: Path, capsys: Capture, text: str) -> None:
    bad_run(runs, text=RECORDS[text])
    must_be_told(runs, capsys)
    assert len(find_runs(runs)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_utf_8(runs: Path, capsys: Capture) -> None:
    bad_run(runs, os.fsdecode(b"bad-\xff\x1b[31m"))
    must_be_told(runs, capsys)
    assert "bad-\\udcff\\x1b[31m" in ft("runs", str(runs), capsys=capsys)


def test_pipes_and_devices_among_the_runs(runs: Path, capsys: Capture) -> None:
    for kind in (pipe, device, link_to_itself):
        kind(runs / kind.__name__)
    must_be_told(runs, capsys)


def test_what_nobody_has_thought_of_is_a_note(runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of our own in one run hides no other."""
    bad_run(runs)
    of_record = summary._of_record

    def failing(place: Path, *rest: object) -> object:
        return 1 / 0 if place.name == "bad" else of_record(place, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(summary, "_of_record", failing)
    said = ft("runs", str(runs), capsys=capsys)
    assert "note:" in said
    assert "ZeroDivisionError" in said
    assert "good" in said


def test_only_a_file_is_opened(tmp_path: Path) -> None:
    pipe(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no file"):
        open_file(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no file"):
        open_file(Path("/dev/zero"))
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_file(tmp_path / "file", 4)


def test_json_that_can_be_worked_with() -> None:
    deepest = "[" * DEEPEST + "]" * DEEPEST
    assert json_of(deepest.encode()) == json_of(deepest) == json.loads(deepest)
    assert len(json_of("[" + "[]," * 500 + "[]]")) == 501  # many, and not deep
    for text in ("[" + deepest + "]", "NaN", "-Infinity", "1" * 401, "[" * 10**6, "{", b"\xff"):
        with pytest.raises(ValueError, match=r"."):
            json_of(text)
