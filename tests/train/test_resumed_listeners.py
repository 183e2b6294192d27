"""What listeners do where a run goes on, where a disk is full, and where a tracker is lost."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from rich.console import Console

from fitune.cli.console import RunConsole
from fitune.errors import RunError
from fitune.plugin.events import Run
from fitune.runs import answers
from fitune.runs.layout import TRACKER
from fitune.runs.metrics import MetricsFile
from fitune.runs.tracker import Tracker
from support.scalars import scalars
from support.told import checkpoint, evaluation, made_run, notice, step


def lines(run: Run) -> list[tuple[str, int]]:
    """(Event, step) of each line of the metrics."""
    text = (run.directory / "metrics.jsonl").read_text(encoding="utf-8")
    return [(line["event"], line["step"]) for line in map(json.loads, text.splitlines())]


def examples(run: Run) -> dict[str, Any]:
    """What examples.json holds."""
    found: dict[str, Any] = json.loads((run.directory / "examples.json").read_text(encoding="utf-8"))
    return found


def go(run: Run, listener: Any, *steps: int, evaluate: tuple[int, ...] = ()) -> None:
    """Tell a listener of a start, and of steps and evaluations; and then no more, as if it were killed."""
    listener.ft_run_started(run)
    for number in sorted({*steps, *evaluate}):
        if number in steps:
            listener.ft_step_done(run, step(number))
        if number in evaluate:
            listener.ft_evaluated(run, evaluation(number, 1.0, str(number)))


# -------------------------------------------------------------------------------------------------------------- metrics


def test_one_line_a_step_however_often_it_was_killed(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    go(run, first := MetricsFile(), 1, 2, 3, evaluate=(0, 2))
    first.ft_noticed(notice(3))
    first.ft_run_finished()
    with (run.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("\x00\x00\n" + '{"event": "step", "st')  # what a power failure left

    again = made_run(tmp_path, resumed=2, evaluated=0)  # the evaluation after step 2 was not in the checkpoint
    go(again, second := MetricsFile(), 3, 4, evaluate=(2,))
    second.ft_checkpoint_saved(checkpoint(again, 4))
    second.ft_run_finished()
    assert lines(run) == [
        ("evaluation", 0), ("step", 1), ("step", 2), ("resume", 2), ("evaluation", 2), ("step", 3), ("step", 4),
        ("checkpoint", 4),
    ]  # fmt: skip

    go(made_run(tmp_path, resumed=4, evaluated=2), third := MetricsFile(), 5)
    third.ft_run_finished()
    assert [at for event, at in lines(run) if event == "step"] == [1, 2, 3, 4, 5]
    assert [at for event, at in lines(run) if event in ("resume", "checkpoint")] == [2, 4, 4]


def test_lines_of_checkpoints_and_notices(tmp_path: Path) -> None:
    go(run := made_run(tmp_path), metrics := MetricsFile())
    metrics.ft_checkpoint_saved(checkpoint(run, 4))
    metrics.ft_noticed(notice(5))
    metrics.ft_run_finished()
    found = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert found == [
        {"event": "checkpoint", "step": 4, "directory": "step-4", "why": "steps", "best": True, "bytes": 3 << 20,
         "seconds": 0.25},
        {"event": "notice", "step": 5, "kind": "loss spike", "what": "the loss is 9, after 2 before"},
    ]  # fmt: skip


def test_metrics_that_cannot_be_read_are_not_written_over(tmp_path: Path) -> None:
    run = made_run(tmp_path, resumed=2)
    (run.directory / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be read: Is a directory\. Mend that"):
        MetricsFile().ft_run_started(run)


def test_examples_keep_the_first_answers_over_a_start(tmp_path: Path) -> None:
    go(run := made_run(tmp_path), first := MetricsFile(), evaluate=(0,))
    assert examples(run)["step"] == 0
    assert "before" not in examples(run)
    first.ft_evaluated(run, evaluation(4, 1.0, "yes"))
    first.ft_run_finished()
    go(made_run(tmp_path, resumed=4, evaluated=4), second := MetricsFile(), evaluate=(6,))
    second.ft_run_finished()
    assert examples(run)["step"] == 6
    first_answers = [{"prompt": "0?", "expected": "yes", "generated": "0", "cut": ""}]
    assert examples(run)["before"] == {"step": 0, "answers": first_answers}


def test_first_answers_that_are_made_again_are_not_kept(tmp_path: Path) -> None:
    go(made_run(tmp_path), first := MetricsFile(), evaluate=(5,))
    first.ft_run_finished()
    go(run := made_run(tmp_path, resumed=3, evaluated=-1), second := MetricsFile(), evaluate=(5,))
    second.ft_run_finished()
    assert "before" not in examples(run)


def test_answers_that_cannot_be_written_end_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answers, "write_file", full)
    go(run := made_run(tmp_path), metrics := MetricsFile(), evaluate=(0, 2))
    metrics.ft_run_finished()
    assert capsys.readouterr().err.count("answers of step 0 cannot be written: No space left on device") == 1
    assert lines(run) == [("evaluation", 0), ("evaluation", 2)]


# -------------------------------------------------------------------------------------------------------------- console


def shown(run: Run, console: RunConsole) -> str:
    """What the console has printed."""
    text: str = console.console.file.getvalue()  # type: ignore[attr-defined]
    return text.replace(str(run.directory), "DIR")


def plain() -> RunConsole:
    """A console that is no terminal."""
    return RunConsole(Console(file=io.StringIO(), width=120))


def test_the_console_tells_of_checkpoints_notices_and_what_is_next(tmp_path: Path) -> None:
    go(run := made_run(tmp_path), console := plain(), 1)
    console.ft_checkpoint_saved(checkpoint(run, 1))
    console.ft_noticed(notice(1))
    console.ft_run_finished(run, None)
    printed = shown(run, console)
    assert "checkpoint step-1  3.0 MiB  0.2 s  best so far\n" in printed
    assert "note     loss spike after 1 steps: the loss is 9, after 2 before\n" in printed
    assert printed.endswith("next  ft generate DIR --interactive    ft merge DIR --to DIR\n")


def test_the_console_compares_over_a_start(tmp_path: Path) -> None:
    go(made_run(tmp_path), metrics := MetricsFile(), evaluate=(0,))
    metrics.ft_run_finished()
    again = made_run(tmp_path, resumed=4, evaluated=0)
    go(again, console := plain(), 5)
    console.ft_evaluated(evaluation(10, 1.0, "yes"))
    console.ft_run_finished(again, None)
    printed = shown(again, console)
    assert "goes on after 4 steps" in printed
    assert "held-out exact match: 0.0 % before training, 100.0 % after (1 rows)" in printed


def test_the_console_compares_only_the_same_prompts(tmp_path: Path) -> None:
    go(run := made_run(tmp_path), console := plain())
    console.ft_evaluated(evaluation(0, 1.0, "no"))
    console.ft_evaluated(evaluation(10, 1.0, "yes", "yes"))
    console.ft_run_finished(run, None)
    assert "held-out exact match" not in shown(run, console)


# ------------------------------------------------------------------------------------------------------------- trackers


class Lost(Exception):
    """What a tracker raises, of any type."""


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Trackers of a stub: the arguments of each start."""
    starts: list[dict[str, Any]] = []

    def start(self: Accelerator, name: str, config: Any, init_kwargs: dict[str, Any]) -> None:
        starts.append({"name": name, "config": config, **init_kwargs})

    monkeypatch.setattr(Accelerator, "init_trackers", start)
    monkeypatch.setattr(Accelerator, "end_training", lambda self: None)
    find, absent = importlib.util.find_spec, ("wandb", "mlflow", "trackio")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: name in absent or find(name, *rest))
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda log_with, *rest: [log_with])
    return starts


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, tracked: list[dict[str, Any]]) -> None:
    run = made_run(tmp_path)
    Tracker("wandb").ft_run_started(run)
    Tracker("wandb").ft_run_started(made_run(tmp_path, resumed=3))
    first, second = tracked
    assert first["name"] == "light"
    assert first["wandb"] == second["wandb"] == {"id": first["wandb"]["id"], "resume": "allow"}
    assert first["config"]["adapter.r"] == 4
    assert json.loads((run.directory / TRACKER).read_text()) == {"tracker": "wandb", "run": first["wandb"]["id"]}


def test_mlflow_goes_on_with_the_run_that_it_named(
    tmp_path: Path, tracked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Named:
        """As accelerate's."""

        class active_run:  # noqa: N801
            """As mlflow's."""

            class info:  # noqa: N801
                """As mlflow's."""

                run_id = "mlflow's own"

    monkeypatch.setattr(Accelerator, "get_tracker", lambda self, name: Named)
    Tracker("mlflow").ft_run_started(made_run(tmp_path))
    Tracker("mlflow").ft_run_started(made_run(tmp_path, resumed=3))
    assert [start["mlflow"] for start in tracked] == [{}, {"run_id": "mlflow's own"}]


def test_another_tracker_begins_its_own_run(tmp_path: Path, tracked: list[dict[str, Any]]) -> None:
    Tracker("wandb").ft_run_started(made_run(tmp_path))
    Tracker("trackio").ft_run_started(made_run(tmp_path, resumed=3))
    assert tracked[1]["trackio"] == {}
    assert tracked[1]["config"] is not None


def test_a_tracker_that_cannot_begin_ends_a_new_run_alone(
    tmp_path: Path, tracked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise Lost("not logged in")

    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    with pytest.raises(RunError, match=r"the tracker wandb cannot begin: Lost: not logged in\. Log in to it"):
        Tracker("wandb").ft_run_started(made_run(tmp_path))
    go(made_run(tmp_path, resumed=3), tracker := Tracker("wandb"), 4)
    tracker.ft_run_finished()
    assert capsys.readouterr().err == (
        "warning: the tracker wandb cannot go on: Lost: not logged in. The run goes on without it; metrics.jsonl has "
        "every number\n"
    )


def test_a_tracker_that_is_lost_is_left_out(
    tmp_path: Path, tracked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logged: list[int] = []

    def log(self: Accelerator, values: dict[str, Any], step: int) -> None:
        assert "train/grad_norm" in values or step == 2
        logged.append(step)
        if step == 2:
            raise Lost("no network")

    monkeypatch.setattr(Accelerator, "log", log)
    run = made_run(tmp_path)
    go(run, tracker := Tracker("wandb"), 1, 2, 3)
    tracker.ft_evaluated(evaluation(3, 1.0))
    tracker.ft_run_finished()
    assert logged == [1, 2]
    assert capsys.readouterr().err.count("the tracker wandb is lost: Lost: no network") == 1


def test_numbers_that_are_none_are_not_logged(
    tmp_path: Path, tracked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: logged.append(values))
    tracker = Tracker("wandb")
    tracker.ft_run_started(run := made_run(tmp_path))
    tracker.ft_step_done(run, step(1, float("nan")))
    assert "train/loss" not in logged[0]
    assert logged[0]["train/tokens"] == 20


def make_older(directory: Path) -> None:
    """Give tensorboard's files the names of a start a minute ago: it reads them in the order of their names, and of two
    of one process and second that is no order of time.
    """
    for file in list(directory.rglob("events.out.tfevents.*")):
        *before, second, host, process, number = file.name.rsplit(".", 4)
        file.rename(file.with_name(".".join([*before, str(int(second) - 60), host, process, number])))


def test_tensorboard_has_one_value_a_step_over_a_start(tmp_path: Path) -> None:
    go(made_run(tmp_path), first := Tracker("tensorboard"), 1, 2, 3)
    first.ft_run_finished()
    make_older(tmp_path)
    run = made_run(tmp_path, resumed=2)
    go(run, second := Tracker("tensorboard"), 3, 4)
    second.ft_run_finished()
    assert [at for at, _ in scalars(run.directory)["train/loss"]] == [1, 2, 3, 4]
