"""A run's line: it fits 80 columns, and says truly how long the run still takes; libraries draw no bars into logs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from fitune.cli.console import RunConsole
from fitune.cli.pace import Pace, in_a_line
from fitune.plugin.events import MemoryReport, Run
from fitune.testing import write_tiny_data, write_tiny_model
from support.told import step


def test_what_is_left_is_told_by_all_steps_since_the_first() -> None:
    """The first takes long, since all is made then; an evaluation between steps counts."""
    times = iter([100.0, 102.0, 110.0, 112.0])
    pace, left = Pace(lambda: next(times)), []
    for number in (1, 2, 3, 4):
        pace.done(number)
        left.append(pace.left(1000))
    assert left == [None, "0:33:16", "1:23:05", "1:06:24"]
    assert pace.left(4) is None


def test_a_run_that_goes_on_or_back_is_told_of_by_its_own_steps() -> None:
    times = iter([0.0, 10.0, 50.0, 60.0])
    pace = Pace(lambda: next(times))
    for number in (101, 102, 102, 103):
        pace.done(number)
    assert pace.left(109) == "0:01:00"


def test_throughput_gives_way_where_there_is_no_room() -> None:
    short = in_a_line("loss 1.2", "", "3 GiB", spare="12 tok/s", end="0:01:00 left")
    assert short == "loss 1.2  3 GiB  12 tok/s  0:01:00 left"
    assert in_a_line("loss 1.2", "", "3 GiB", spare="12 tok/s", end="") == "loss 1.2  3 GiB  12 tok/s"
    metrics = "accuracy 0.75  margin 1.25  reward 0.333"
    assert in_a_line("loss 1.2", metrics, "3 GiB", spare="12 tok/s", end="") == f"loss 1.2  {metrics}  3 GiB"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_line_fits_80_columns(terminal: bool) -> None:
    file = io.StringIO()
    console = RunConsole(Console(file=file, force_terminal=terminal, width=80, color_system=None))
    memory = MemoryReport(kind="gpu", peak=int(21.5 * 2**30))
    run = cast(Run, SimpleNamespace(steps=12_000))
    for number in (1, 12_000):
        console.ft_step_done(run, step(number, memory=memory, tokens=65_536, seconds=1.5))
    lines = [line for line in file.getvalue().splitlines() if "loss" in line]
    assert lines
    assert "43,691 tok/s" in lines[0]
    assert max(map(len, lines)) <= 80


def test_libraries_draw_no_bars_into_a_log(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    write_tiny_data(tmp_path / "data.jsonl")
    (tmp_path / "r.toml").write_text(
        'name = "r"\n[model]\nuse = "hf"\npath = "model"\ndtype = "float32"\n[adapter]\nuse = "lora"\n'
        '[[data.source]]\nuse = "jsonl"\npath = "data.jsonl"\n[[data.stage]]\nuse = "chat"\n'
        "[train]\nlength = 64\nsteps = 1\n"
    )
    names = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
    done = subprocess.run(
        [sys.executable, "-m", "fitune", "run", "r.toml", "--out", "run"],
        cwd=tmp_path, env={key: value for key, value in os.environ.items() if key not in names},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "done in" in done.stdout + done.stderr
    assert "it/s]" not in done.stdout + done.stderr
    assert "%|" not in done.stdout + done.stderr
