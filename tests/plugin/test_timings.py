"""How long a run takes to its first step, by phases."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fitune.cli.main import main
from fitune.plugin.timings import FIRST_STEP, Timings, process_begun
from fitune.runs.record import read_record


def test_phases_follow_each_other_and_end_with_the_first_step() -> None:
    times = iter((3.0, 4.5, 5.0, 9.0))
    told: list[tuple[str, float]] = []
    timings = Timings(begun=1.0, clock=lambda: next(times), say=lambda *phase: told.append(phase))
    for phase in ("imports", "data", "imports", FIRST_STEP, "weights"):
        timings.done(phase)
    assert timings.phases == {"imports": 2.5, "data": 1.5, FIRST_STEP: 4.0}
    assert told == [("imports", 2.0), ("data", 1.5), ("imports", 0.5), (FIRST_STEP, 4.0)]
    assert timings.total == 8.0


def test_this_process_began_before_now() -> None:
    assert 0 <= time.monotonic() - process_begun() < 24 * 3600


def test_a_run_records_its_phases_at_each_start_and_says_them_if_asked(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    main(["run", str(recipe_path), "--out", str(out), "--timings"])
    said = [line.split("s  ", 1)[1] for line in capsys.readouterr().err.splitlines() if " s  " in line]
    record = read_record(out)
    assert record is not None
    (start,) = record.starts
    expected = ["recipe", "imports", "device", "data", "weights", "adapter", "forecast", "beginning the run"]
    assert list(start.phases) == [*expected, "rehearsal", FIRST_STEP]
    assert said == list(start.phases)
    assert all(seconds >= 0 for seconds in start.phases.values())
    raw = json.loads((out / "run.json").read_text(encoding="utf-8"))
    del raw["starts"][0]["phases"]  # as of a run before phases were noted
    (out / "run.json").write_text(json.dumps(raw), encoding="utf-8")
    old = read_record(out)
    assert old is not None
    assert old.starts[0].phases == {}
