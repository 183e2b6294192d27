"""Runs that were sent stand among the others: as their job was last heard of, until they are back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fitune import JobState, JobStatus, Machine, Price, RunError
from fitune.runs.history.list import table
from fitune.runs.history.summary import find_runs, is_run, summarise
from fitune.runs.launched import LAUNCH, Launched, read_launched, write_launched
from fitune.runs.record import RunRecord, write_record

SENT = Launched(
    name="mine",
    job="fitune-mine-0123456789",
    launcher="sagemaker",
    options={"role": "arn", "subnets": ["a"]},
    machine=Machine(name="ml.g5.4xlarge", gpu="a10g", gpus=1, price=Price(hour=2.0, source="x", date="2026-07-02")),
    spot=True,
    seconds=3600,
    hours=(1.0, 1.25),
    launched="2026-07-02T10:00:00+00:00",
    status=JobStatus(name="fitune-mine-0123456789", state="running", billed=1800.0),
)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_launched(tmp_path, SENT)
    found = read_launched(tmp_path)
    assert found == SENT
    assert found.cost == 1.0
    assert read_launched(tmp_path / "elsewhere") is None


STATES: dict[JobState, str] = {
    "absent": "unknown", "waiting": "starting", "running": "running", "stopping": "running", "stopped": "stopped",
    "failed": "failed", "done": "done",
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_a_run_that_is_away_has_the_state_of_its_job(tmp_path: Path, state: JobState) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_launched(run, SENT.now(dataclasses.replace(SENT.status, state=state, what="rows are bad")))
    assert is_run(run)
    (found,) = find_runs(tmp_path)
    assert (found.name, found.state, found.launched) == ("mine", STATES[state], "sagemaker, ml.g5.4xlarge")
    assert found.error == ("rows are bad" if state == "failed" else None)
    assert f"{STATES[state]} on sagemaker" in table([found])[1]


def record(run: Path) -> None:
    """As a run leaves it whose process was killed."""
    moment = "2026-07-02T10:10:00+00:00"
    made = RunRecord(
        name="mine", state="running", steps=3, steps_made=2, started=moment, updated=moment, starts=(), device="cpu",
        model="m", adapter="lora", trainable=1, parameters=2,
    )  # fmt: skip
    write_record(run, made)


def test_once_it_is_back_its_own_record_counts_unless_its_job_goes_on(tmp_path: Path) -> None:
    record(tmp_path)
    write_launched(tmp_path, SENT)
    away = summarise(tmp_path)
    assert away.launched is not None
    assert away.state == "running"  # and not interrupted, though nobody here holds it
    write_launched(tmp_path, SENT.now(dataclasses.replace(SENT.status, state="stopped")))
    assert summarise(tmp_path).state == "interrupted"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2}', json.dumps({"format": 1, "machine": None}),
     json.dumps({**dataclasses.asdict(SENT), "format": 1, "status": {"name": "x", "state": "lost"}})],
)  # fmt: skip
def test_a_damaged_note_ends_nothing(tmp_path: Path, text: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / LAUNCH).write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"launch\.json cannot be read"):
        read_launched(run)
    (found,) = find_runs(tmp_path)
    assert any("launch.json cannot be read" in note for note in found.notes)
