"""run.json: what became of a run, over all of its starts."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from pathlib import Path

import pytest

from fitune.errors import Interrupted, RunError
from fitune.plugin.events import EvalReport
from fitune.runs import record as record_module
from fitune.runs.layout import RECORD
from fitune.runs.metrics import MetricsFile
from fitune.runs.record import HeldOut, RunRecord, StartRecord, read_record
from fitune.runs.recorder import EVERY, RecordFile
from support.told import evaluation, forecast, made_run, step


class Time:
    """Stands still until it is told to go on."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def clock(self) -> float:
        """In seconds."""
        return self.seconds

    def now(self) -> datetime:
        """Of a day in 2026."""
        return datetime.fromtimestamp(1_790_000_000 + self.seconds, timezone.utc)

    def at(self, seconds: float) -> str:
        """As the record has it."""
        return Time(seconds).now().isoformat()


def read(place: Path) -> RunRecord:
    """The record, which must be there."""
    record = read_record(place / "run")
    assert record is not None
    return record


def test_from_its_start_to_its_end(tmp_path: Path) -> None:
    time, run = Time(), made_run(tmp_path, forecast=forecast())
    file = RecordFile(time.clock, time.now)
    file.ft_run_started(run)
    record = read(tmp_path)
    assert (record.name, record.state, record.steps_made, record.steps) == ("light", "running", 0, 10)
    assert (record.model, record.adapter, record.trainable, record.device) == ("model", "lora", 8, "cpu")
    assert record.forecast is not None
    assert record.forecast.allocated == 3000

    time.seconds = EVERY / 2
    file.ft_step_done(step(1, 2.5))
    assert read(tmp_path).steps_made == 0  # the disk is spared
    time.seconds = EVERY
    file.ft_step_done(step(2, float("nan")))
    record = read(tmp_path)
    assert (record.steps_made, record.loss, record.tokens, record.seconds) == (2, None, 40, EVERY)
    assert record.memory is not None
    assert (record.memory.kind, record.memory.peak, record.memory.reserved) == ("gpu", 1002, 2002)

    file.ft_step_done(step(3, 1.5))
    file.ft_checkpoint_saved()
    assert read(tmp_path).steps_made == 3
    file.ft_run_finished(None)
    record = read(tmp_path)
    assert (record.state, record.error, record.ended) == ("done", None, time.at(EVERY))
    assert record.starts == (StartRecord(started=time.at(0), from_step=0, ended=time.at(EVERY), how="done"),)


def test_the_best_evaluation_is_that_of_the_kept_checkpoint(tmp_path: Path) -> None:
    file = RecordFile()
    file.ft_run_started(made_run(tmp_path))
    for report in (evaluation(0, 1.0), evaluation(2, 3.0), evaluation(4, 2.0), evaluation(6, 2.5)):
        file.ft_evaluated(report)
    assert read(tmp_path).best == HeldOut(step=4, loss=2.0)  # none before training is
    assert read(tmp_path).held_out == HeldOut(step=6, loss=2.5)


def test_of_exact_matches_the_highest_is_the_best_whatever_the_loss(tmp_path: Path) -> None:
    file = RecordFile()
    file.ft_run_started(made_run(tmp_path))
    for report in (evaluation(2, 3.0, "no", "no"), evaluation(4, 5.0, "yes", "no"), evaluation(6, 2.0, "no", "yes")):
        file.ft_evaluated(report)
    assert read(tmp_path).best == HeldOut(step=4, loss=5.0, exact_match=0.5)


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (Interrupted("stopped after 3 of 10 steps: SIGTERM"), "stopped", "stopped after 3 of 10 steps: SIGTERM"),
        (RunError("the loss is nan"), "failed", "the loss is nan"),
        (ZeroDivisionError("division\nby zero"), "failed", "ZeroDivisionError: division by zero"),
        (OSError(28, "No space left on device"), "failed", "No space left on device"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
    ],
)
def test_what_ended_it(tmp_path: Path, error: BaseException, state: str, said: str) -> None:
    file = RecordFile()
    file.ft_run_started(made_run(tmp_path))
    file.ft_run_finished(error)
    record = read(tmp_path)
    assert (record.state, record.error, record.starts[-1].how) == (state, said, state)


def test_a_run_that_never_began_leaves_none(tmp_path: Path) -> None:
    RecordFile().ft_run_finished(RunError("no such model"))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """Steps that are made again count as spent twice; figures are those of what was kept."""
    time, run = Time(), made_run(tmp_path)
    file, metrics = RecordFile(time.clock, time.now), MetricsFile()
    for listener in (file, metrics):
        listener.ft_run_started(run)
    for number in (1, 2, 3):
        file.ft_step_done(step(number, 5.0 - number))
        metrics.ft_step_done(run, step(number, 5.0 - number))
        file.ft_evaluated(evaluation(number, 4.0 - number))
        metrics.ft_evaluated(run, evaluation(number, 4.0 - number))
    time.seconds = 7.0
    file.ft_checkpoint_saved()  # and then it is killed
    metrics.ft_run_finished()

    time.seconds = 100.0
    again = RecordFile(time.clock, time.now)
    again.ft_run_started(made_run(tmp_path, resumed=2, evaluated=1))
    record = read(tmp_path)
    assert record.starts == (
        StartRecord(started=time.at(0), from_step=0, ended=time.at(7), how="interrupted"),
        StartRecord(started=time.at(100), from_step=2),
    )
    assert (record.state, record.steps_made, record.loss, record.started) == ("running", 2, 3.0, time.at(0))
    assert record.best == record.held_out == HeldOut(step=1, loss=3.0)  # that of step 2 is to be made again
    time.seconds = 105.0
    again.ft_step_done(step(3))
    again.ft_run_finished(None)
    record = read(tmp_path)
    assert (record.seconds, record.tokens, record.state) == (12.0, 80, "done")


def test_an_older_run_goes_on_without_a_record(tmp_path: Path) -> None:
    RecordFile().ft_run_started(made_run(tmp_path, resumed=4, evaluated=-1))
    assert [start.from_step for start in read(tmp_path).starts] == [4]


def test_a_damaged_record_is_told_of_and_begun_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path, resumed=4)
    (run.directory / RECORD).write_text("{")
    RecordFile().ft_run_started(run)
    assert "run.json cannot be read" in capsys.readouterr().err
    assert read(tmp_path).steps_made == 4


def test_a_record_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    file = RecordFile()
    file.ft_run_started(made_run(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(record_module, "write_file", full)
        for _ in range(3):
            file.ft_checkpoint_saved()
        assert capsys.readouterr().err.count("cannot be written: No space left on device") == 1
    file.ft_run_finished(None)
    assert read(tmp_path).state == "done"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("[]", "run.json cannot be read: "),
        ('{"schema": 99}', "is of schema 99, and this release reads 1. Update fitune"),
        ('{"schema": 1, "name": "x"}', "validation errors for RunRecord"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(RunError) as error:
        read_record(tmp_path)
    assert said in error.value.message
    assert "\n" not in error.value.message


def test_it_is_plain_json(tmp_path: Path) -> None:
    file = RecordFile()
    file.ft_run_started(run := made_run(tmp_path))
    file.ft_step_done(step(1, float("inf")))
    file.ft_run_finished(None)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((run.directory / RECORD).read_text(), parse_constant=refuse)


@pytest.mark.parametrize(
    ("found", "best", "beats"),
    [
        (HeldOut(step=2, loss=1.0), None, True),
        (HeldOut(step=0, loss=1.0), None, False),
        (HeldOut(step=2), None, False),
        (HeldOut(step=4, loss=1.0), HeldOut(step=2, loss=1.5), True),
        (HeldOut(step=4, loss=1.5), HeldOut(step=2, loss=1.5), False),
        (HeldOut(step=4, loss=9.0, exact_match=0.6), HeldOut(step=2, loss=1.0, exact_match=0.5), True),
        (HeldOut(step=4, loss=0.1, exact_match=0.5), HeldOut(step=2, loss=1.0, exact_match=0.5), False),
        (HeldOut(step=4, loss=1.0), HeldOut(step=2, loss=1.5, exact_match=0.5), True),
    ],
)
def test_which_evaluation_is_the_better_one(found: HeldOut, best: HeldOut | None, beats: bool) -> None:
    assert found.beats(best) is beats


def test_an_evaluation_whose_loss_is_no_number_is_not_the_best() -> None:
    assert HeldOut.of(EvalReport(step=2, loss=math.nan, rows=1, targets=1, seconds=0.0)) == HeldOut(step=2)
