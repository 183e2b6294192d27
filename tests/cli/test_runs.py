"""`ft runs`: what became of runs, also of those that were killed, are older than records, or are damaged."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitune.errors import Interrupted, RunError
from fitune.runs.history.show import spread
from fitune.runs.history.summary import find_runs, is_run
from fitune.runs.history.values import differing
from fitune.runs.history.words import duration_text, size_text
from fitune.runs.identity import recipe_differences
from fitune.runs.layout import RECORD
from fitune.runs.lock import RunLock
from fitune.runs.metrics import MetricsFile
from fitune.runs.provenance import write_recipe
from fitune.runs.record import read_record, write_record
from fitune.runs.recorder import RecordFile
from support.commands import ft, refused
from support.told import evaluation, forecast, made_run, notice, step

Capture = pytest.CaptureFixture[str]


def leave(
    place: Path, *overrides: str, losses: tuple[float, ...] = (3.0, 2.0), ended: BaseException | bool | None = None
) -> Path:
    """Leave a run in `place/run`, which is given: with steps of these losses, and ended by an error, or None for done;
    True for one that was killed.
    """
    place.mkdir(exist_ok=True)
    run = made_run(place, *overrides, forecast=forecast())
    write_recipe(run.recipe, run.directory)
    listeners = (RecordFile(), MetricsFile())
    for listener in listeners:
        listener.ft_run_started(run)
    record, metrics = listeners
    for number, loss in enumerate(losses, 1):
        record.ft_step_done(step(number, loss))
        metrics.ft_step_done(run, step(number, loss))
    record.ft_evaluated(evaluation(len(losses), 1.5, "yes", "no"))
    metrics.ft_evaluated(run, evaluation(len(losses), 1.5, "yes", "no"))
    metrics.ft_noticed(notice(2))
    metrics.ft_run_finished()
    if not isinstance(ended, bool):
        record.ft_run_finished(ended)
    return run.directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of runs that ended in every way."""
    home = tmp_path_factory.mktemp("all") / "runs"
    home.mkdir()
    ways: dict[str, Any] = {
        "done": None,
        "failed": RunError("the loss is nan"),
        "stopped": Interrupted("SIGTERM"),
        "interrupted": True,
    }
    for number, (name, ended) in enumerate(ways.items(), 1):
        place = leave(home.parent / name, ended=ended)
        record = read_record(place)
        assert record is not None
        write_record(place, replace(record, updated=f"2026-01-0{number}T00:00:00+00:00"))
        place.rename(home / name)
    (home / "no run").mkdir()
    (home / "a file").touch()
    return home


def found(*arguments: str, capsys: Capture) -> Any:
    """What a command prints as JSON."""
    return json.loads(ft("runs", *arguments, "--json", capsys=capsys))


# ----------------------------------------------------------------------------------------------------------------- list


def test_they_are_listed_newest_first(runs: Path, capsys: Capture) -> None:
    lines = ft("runs", str(runs), capsys=capsys).splitlines()
    assert [line.split()[:3] for line in lines[1:5]] == [
        [str(runs / "interrupted"), "interrupted", "2/10"],
        [str(runs / "stopped"), "stopped", "2/10"],
        [str(runs / "failed"), "failed", "2/10"],
        [str(runs / "done"), "done", "2/10"],
    ]
    assert lines[5:] == ["", "FAILED", f"{runs / 'failed'}  the loss is nan"]
    assert lines[1].split()[3:9] == ["2.0000", "1.5000", "50.0", "%", "1.0", "KiB"]
    assert lines[1].split()[9:12] == ["gpu", "2.9", "KiB"]


def test_as_json(runs: Path, capsys: Capture) -> None:
    first = found(str(runs), capsys=capsys)[0]
    assert first["state"] == "interrupted"
    assert first["held_out"] == {"step": 2, "loss": 1.5, "exact_match": 0.5, "measure": None}
    assert first["memory"] == {"kind": "gpu", "peak": 1002, "reserved": 2002}
    assert (first["loss"], first["forecast"], first["notes"]) == (2.0, 3000, [])


def test_by_state(runs: Path, capsys: Capture) -> None:
    chosen = found(str(runs), "--state", "done", "--state", "failed", capsys=capsys)
    assert [run["state"] for run in chosen] == ["failed", "done"]
    assert ft("runs", str(runs), "--state", "running", capsys=capsys) == f"no run in such a state in {runs}\n"


def test_the_default_is_runs(runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    assert ft("runs", capsys=capsys) == ft("runs", "list", "runs", capsys=capsys)
    assert ft("runs", "--debug", "show", "runs/done", capsys=capsys).startswith("light  done  in runs/done\n")


def test_no_runs_and_no_directory(tmp_path: Path, capsys: Capture) -> None:
    assert ft("runs", str(tmp_path), capsys=capsys) == f"no run in {tmp_path}\n"
    assert refused("runs", "nowhere", capsys=capsys) == (
        "error: nowhere: no such directory. Give the one that holds the runs: ft runs DIR\n"
    )
    assert refused("runs", "show", "nowhere", capsys=capsys).startswith("error: nowhere: no such directory.")
    assert refused("runs", "show", str(tmp_path), capsys=capsys).startswith(f"error: {tmp_path} holds no run:")


def test_one_that_is_written_now(tmp_path: Path) -> None:
    place = leave(tmp_path, ended=True)
    with RunLock(place):
        (run,) = find_runs(place)
        assert run.state == "running"
        assert run.holder is not None
        assert run.holder.startswith(f"process {os.getpid()} on ")
    (run,) = find_runs(place)
    assert (run.state, run.holder) == ("interrupted", None)


def test_one_that_was_killed_before_it_could_say_that_it_is_done(tmp_path: Path) -> None:
    place = leave(tmp_path, ended=True)
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_model.safetensors").touch()
    assert [run.state for run in find_runs(place)] == ["interrupted"]  # that is of a shorter run
    record = json.loads((place / "run.json").read_text(encoding="utf-8"))
    (place / "run.json").write_text(json.dumps({**record, "steps_made": record["steps"]}), encoding="utf-8")
    assert [run.state for run in find_runs(place)] == ["done"]


def test_one_that_is_loading(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    assert not is_run(place)
    with RunLock(place):
        assert [run.state for run in find_runs(tmp_path)] == ["starting"]


def test_one_that_is_older_than_records(tmp_path: Path) -> None:
    place = leave(tmp_path)
    (place / RECORD).unlink()
    (run,) = find_runs(tmp_path)
    assert (run.state, run.name, run.steps_made, run.steps, run.loss) == ("unknown", "light", 2, 3, 2.0)
    assert run.memory is not None
    assert run.memory.peak == 1002
    assert run.seconds == pytest.approx(2 * 0.5 + 0.1)
    assert run.updated is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', "\x00"])
def test_a_damaged_record_is_noted_and_ends_nothing(tmp_path: Path, text: str, capsys: Capture) -> None:
    place = leave(tmp_path)
    (place / RECORD).write_text(text)
    lines = ft("runs", str(tmp_path), capsys=capsys).splitlines()
    assert lines[1].split()[1:4] == ["unknown", "2/3", "2.0000"]
    assert lines[3].startswith(f"note: {place / RECORD} cannot be read: ")


@pytest.mark.parametrize("name", ["metrics.jsonl", "recipe.toml", "memory.json", "examples.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[1, 2]\n{}\n3\n", b'{"event": "step", "step": "x"}\n'])
def test_any_damaged_file_ends_nothing(tmp_path: Path, name: str, content: bytes, capsys: Capture) -> None:
    place = leave(tmp_path)
    (place / name).write_bytes(content)
    for record in (True, False):
        if not record:
            (place / RECORD).unlink()
        ft("runs", str(tmp_path), capsys=capsys)
        ft("runs", "show", str(place), capsys=capsys)
        ft("runs", "compare", str(place), str(place), capsys=capsys)


# ----------------------------------------------------------------------------------------------------------------- show


def test_show(tmp_path: Path, capsys: Capture) -> None:
    place = leave(tmp_path, losses=tuple(float(n) for n in range(30, 0, -1)))
    kept = place / "checkpoints" / "step-30"
    kept.mkdir(parents=True)
    (kept / "state.json").write_bytes(bytes(2048))
    with (place / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("torn\n")
    text = ft("runs", "show", str(place), capsys=capsys)
    assert text.startswith(f"light  done  in {place}\nsteps ")
    for line in (
        "held out       loss 1.5000, exact match 50.0 % after 30 steps",
        "memory         1.0 KiB of gpu memory measured, 2.9 KiB forecast",
        "reserved       2.0 KiB measured, 3.9 KiB forecast",
        "trains         8 of 100 parameters",
        "strategies     accumulation (steps 2)",
        "  step-30  2.0 KiB  best",
        "  loss spike after 2 steps: the loss is 9, after 2 before",
        f"  {place / 'metrics.jsonl'}: 1 line of it is damaged, and left out",
    ):
        assert f"\n{line}\n" in text, text
    points = found("show", str(place), capsys=capsys)["losses"]
    assert len(points) == 10
    assert (points[0], points[-1]) == ({"step": 1, "loss": 30.0}, {"step": 30, "loss": 1.0})


# -------------------------------------------------------------------------------------------------------------- compare


def test_compare(tmp_path: Path, capsys: Capture) -> None:
    one = leave(tmp_path / "one")
    other = leave(tmp_path / "other", "train.learning_rate=0.5", "adapter.r=8", losses=(3.0, 1.0, 0.5))
    for place, version in ((one, "2.0"), (other, "2.1")):
        values = {"python": "3.11", "command": ["run", place.name], "packages": {"torch": version, "peft": "1"}}
        (place / "environment.json").write_text(json.dumps(values))
    values = found("compare", str(one), str(other), capsys=capsys)

    def both(first: object, second: object) -> dict[str, object]:
        return {str(one): first, str(other): second}

    assert values["environment"] == {"packages.torch": both("2.0", "2.1")}
    assert values["recipe"]["train.learning_rate"] == both(2e-4, 0.5)
    assert values["recipe"]["adapter.r"] == both(4, 8)
    assert "train.steps" not in values["recipe"]
    assert values["losses"] == [{"step": 1, "loss": both(3.0, 3.0)}, {"step": 2, "loss": both(2.0, 1.0)}]
    assert values["evaluations"] == []  # none at a step of both
    assert values["tokens_per_second"] == both(40.0, 40.0)
    text = ft("runs", "compare", str(one), str(other), capsys=capsys)
    assert ["loss", "2.0000", "0.5000"] in [line.split() for line in text.splitlines()]
    assert ["adapter.r", "4", "8"] in [line.split() for line in text.splitlines()]


def test_one_run_alone_cannot_be_compared(runs: Path, capsys: Capture) -> None:
    assert refused("runs", "compare", str(runs / "done"), capsys=capsys) == (
        "error: one run alone has nothing to be compared with. Name two or more: ft runs compare A B\n"
    )


def test_equal_runs_differ_in_nothing(runs: Path, capsys: Capture) -> None:
    text = ft("runs", "compare", str(runs / "done"), str(runs / "done"), capsys=capsys)
    assert "differ" not in text
    assert "held-out exact match" in text


def test_keys_that_are_in_one_alone() -> None:
    one, other = {"a": 1, "b": {"c": [{"use": "x"}]}}, {"a": 1, "b": {"c": [{"use": "x"}, {"use": "y"}]}}
    assert differing([one, other]) == [("b.c.1.use", (None, "y"))]
    assert recipe_differences(one, other)  # as a run that goes on sees it


# ---------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.4, "0 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min"), (2e5, "2 d 07 h")],
)
def test_spans_of_time(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(None, "-"), (512, "0.5 KiB"), (5 << 20, "5.0 MiB"), (16 << 30, "16.00 GiB")]
)
def test_sizes(size: int | None, text: str) -> None:
    assert size_text(size) == text


def test_points_are_spread_evenly() -> None:
    assert spread(range(5), 10) == [0, 1, 2, 3, 4]
    assert spread(range(100), 4) == [0, 33, 66, 99]
