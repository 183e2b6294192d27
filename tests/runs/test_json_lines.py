"""A file of lines on a disk that fills up and is emptied again."""

from __future__ import annotations

import json
import os
from io import FileIO
from pathlib import Path

import pytest

from fitune.runs.json_lines import Complaints, LineFile, finite, json_line


class FullDisk:
    """Lets so many more bytes be written to any file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        write = FileIO.write

        def limited(file: FileIO, data: bytes) -> int:
            taken = min(len(data), self.room)
            if taken == 0:
                raise OSError(28, "No space left on device")
            self.room -= taken
            return write(file, data[:taken]) or 0

        class Limited(FileIO):
            write = limited  # type: ignore[assignment]

        monkeypatch.setattr("fitune.runs.json_lines.FileIO", Limited)


def steps(file: Path) -> list[int]:
    """Of its lines, each of which must be whole."""
    return [json.loads(line)["step"] for line in file.read_text(encoding="utf-8").splitlines()]


def test_what_a_full_disk_took_not_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = FullDisk(monkeypatch, room=20)  # of lines of 12 bytes
    file = LineFile(tmp_path / "m.jsonl")
    for number in range(1, 6):
        file.append({"step": number})
        assert steps(file.path) == [1]  # and no torn line behind it
    told = capsys.readouterr().err
    assert told.count("\n") == 1  # once, not at every line
    assert told.startswith(f"warning: {file.path} cannot be written: No space left on device. Training goes on")
    disk.room = 1000
    file.append({"step": 6})
    assert steps(file.path) == [1, 2, 3, 4, 5, 6]
    assert capsys.readouterr().err == f"note: {file.path} is written again, with the lines that were missing\n"
    file.close()


def test_what_waits_is_bounded_and_its_loss_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = FullDisk(monkeypatch, room=0)
    file = LineFile(tmp_path / "m.jsonl", waiting=2)
    for number in range(1, 5):
        file.append({"step": number})
    disk.room = 12
    file.close()
    assert steps(file.path) == [3]
    assert f"1 lines of {file.path} could not be written" in capsys.readouterr().err


def test_lines_that_are_kept_are_followed_by_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    file = LineFile(path, ['{"step": 1}'])
    assert steps(path) == [1]
    file.append({"step": 2})
    file.close()
    assert steps(path) == [1, 2]


def test_numbers_that_json_does_not_know_are_null(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "m.jsonl")
    file.append({"loss": float("nan"), "norms": [1.0, float("inf")], "of": {"x": -float("inf")}})
    file.close()
    assert file.path.read_text() == '{"loss": null, "norms": [1.0, null], "of": {"x": null}}\n'


def test_lines_are_handed_on_at_once_and_flushed_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    file = LineFile(tmp_path / "m.jsonl")
    monkeypatch.setattr(os, "fsync", flushed.append)
    file.append({"step": 1})
    assert steps(file.path) == [1]  # it is still open
    assert flushed == []
    file.keep()
    assert len(flushed) == 1
    file.close()
    file.keep()  # nothing is open to be flushed
    assert len(flushed) == 1


@pytest.mark.parametrize("kept", [None, [], ['{"step": 1}']])
def test_lines_are_not_written_through_a_link(tmp_path: Path, kept: list[str] | None) -> None:
    """On 0.1 what a planted link led to was emptied, and lines were added to it."""
    precious, path = tmp_path / "precious", tmp_path / "run" / "m.jsonl"
    path.parent.mkdir()
    precious.write_text("mine\n")
    path.symlink_to(precious)
    file = LineFile(path, kept)
    file.append({"step": 2})
    assert steps(path) == ([1, 2] if kept else [2])
    assert precious.read_text() == "mine\n"
    path.unlink()
    path.symlink_to(precious)
    file._shut()  # as after an error, so that it is opened anew
    file.append({"step": 3})
    assert precious.read_text() == "mine\n"
    path.unlink()
    file.close()


def test_a_file_begins_anew_unless_lines_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n')
    LineFile(path).close()
    assert path.read_text() == ""
    path.write_text('{"step": 1}\n')
    LineFile(path, []).close()
    assert path.read_text() == ""


def test_a_directory_that_is_not_there_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = LineFile(tmp_path / "run" / "m.jsonl")
    file.append({"step": 1})
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    file.append({"step": 2})
    assert steps(file.path) == [1, 2]
    file.close()


def test_a_line_is_one_line_and_what_is_finite_stays() -> None:
    assert json_line({"what": "a\nb\u2028"}) == '{"what": "a\\nb\\u2028"}\n'
    assert finite({"a": (1, 2.5, "x", None, True), "b": [{"c": float("nan")}]}) == {
        "a": [1, 2.5, "x", None, True],
        "b": [{"c": None}],
    }


def test_each_complaint_is_told_once_until_it_is_mended(capsys: pytest.CaptureFixture[str]) -> None:
    complaints = Complaints()
    complaints.mended("a", "a is well")  # nobody complained
    complaints.tell("a", "a is ill")
    complaints.tell("a", "a is worse")
    complaints.tell("b", "b is ill")
    complaints.mended("a", "a is well")
    complaints.mended("a", "a is well")
    complaints.tell("a", "a is ill again")
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "warning: a is ill",
        "warning: b is ill",
        "note: a is well",
        "warning: a is ill again",
    ]
