"""What fitune itself does with a run's events: metrics as JSON lines, examples, and an experiment tracker."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from fitune.durable import write_file
from fitune.events import (
    CheckpointReport,
    EvalReport,
    MemoryForecast,
    Notice,
    Recovery,
    RehearsalReport,
    Run,
    StepReport,
)
from fitune.hookspecs import hookimpl


class MetricsFile:
    """Writes `metrics.jsonl`: a line a step and a line an evaluation, each flushed, so that a killed run keeps them.

    A rehearsal has its line, and a run that goes on after it ran out of memory. A run that goes on from a checkpoint
    keeps the lines up to there, so that a step has one line however often the run was killed.

    `examples.json` holds the answers of the last evaluation that generated any.
    """

    def __init__(self) -> None:
        self._file: TextIOWrapper | None = None

    @hookimpl
    def ft_run_started(self, run: Run) -> None:
        """Open the file."""
        file = run.directory / "metrics.jsonl"
        if run.resumed is None:
            self._file = file.open("w", encoding="utf-8")
            return
        write_file(file, "".join(f"{line}\n" for line in _lines_until(file, run.resumed, run.evaluated)))
        self._file = file.open("a", encoding="utf-8")
        self._write({"event": "resume", "step": run.resumed})

    @hookimpl
    def ft_rehearsed(self, report: RehearsalReport) -> None:
        """Write a rehearsal."""
        self._write({"event": "rehearsal", **rehearsal_values(report)})

    @hookimpl
    def ft_recovered(self, recovery: Recovery) -> None:
        """Write what the run goes on with."""
        self._write({"event": "recovery", **dataclasses.asdict(recovery)})

    @hookimpl
    def ft_step_done(self, run: Run, step: StepReport) -> None:
        """Write a step."""
        if _is_logged(run, step):
            self._write({"event": "step", **step_values(step)})

    @hookimpl
    def ft_evaluated(self, run: Run, report: EvalReport) -> None:
        """Write an evaluation."""
        self._write({"event": "evaluation", "step": report.step, **eval_values(report)})
        if report.answers:
            answers = [dataclasses.asdict(answer) for answer in report.answers]
            text = json.dumps({"step": report.step, "answers": answers}, ensure_ascii=False, indent=2)
            (run.directory / "examples.json").write_text(text + "\n", encoding="utf-8")

    @hookimpl
    def ft_checkpoint_saved(self, report: CheckpointReport) -> None:
        """Write a checkpoint."""
        values = {"step": report.step, "directory": report.directory.name, "why": report.why, "best": report.best}
        self._write({"event": "checkpoint", **values, "bytes": report.bytes, "seconds": report.seconds})

    @hookimpl
    def ft_noticed(self, notice: Notice) -> None:
        """Write a notice."""
        self._write({"event": "notice", **dataclasses.asdict(notice)})

    @hookimpl
    def ft_run_finished(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, values: dict[str, Any]) -> None:
        assert self._file is not None
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps(finite) + "\n")  # JSON knows no infinity
        self._file.flush()


class MemoryFile:
    """Keeps a GPU run's forecast beside what was measured, in `memory.json`, and what that shows of the card."""

    @hookimpl
    def ft_run_finished(self, run: Run | None, error: BaseException | None) -> None:
        """Measure, and write both."""
        if run is None or run.forecast is None or error is not None:
            return
        from fitune.forecast.seen import note
        from fitune.measure import measure_context, measure_memory

        memory = measure_memory(run.device)
        if memory.kind != "gpu":  # the recipe is made to fit a card that is not here
            return
        context = measure_context(run.device)
        measured = {"allocated": memory.peak, "reserved": memory.reserved, "context": context}
        kept = {"forecast": dataclasses.asdict(run.forecast), "measured": measured}
        (run.directory / "memory.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        if run.forecast.error is None and memory.reserved and _is_of_this_card(run.forecast):
            with contextlib.suppress(
                OSError
            ):  # the run is done: what the next forecast could learn is no reason to fail
                note(run.forecast.card, context=context, reserved=memory.reserved, forecast=run.forecast.reserved)


class Tracker:
    """Hands numbers to the experiment tracker that the recipe names, through accelerate."""

    def __init__(self) -> None:
        self._accelerator: Any = None

    @hookimpl
    def ft_run_started(self, run: Run) -> None:
        """Start the tracker, with the recipe as its configuration."""
        from accelerate import Accelerator

        if run.recipe.log.tracker is not None:
            self._accelerator = Accelerator(log_with=run.recipe.log.tracker, project_dir=str(run.directory))
            config = {key: value for key, value in _flat("", run.recipe.to_toml()) if not isinstance(value, list)}
            self._accelerator.init_trackers(run.recipe.general.name, config=config)

    @hookimpl
    def ft_step_done(self, run: Run, step: StepReport) -> None:
        """Log a step."""
        if self._accelerator is not None and _is_logged(run, step):
            values = step_values(step)
            self._accelerator.log({f"train/{k}": v for k, v in values.items() if k != "step"}, step=step.step)

    @hookimpl
    def ft_evaluated(self, report: EvalReport) -> None:
        """Log an evaluation."""
        if self._accelerator is not None:
            self._accelerator.log({f"eval/{k}": v for k, v in eval_values(report).items()}, step=report.step)

    @hookimpl
    def ft_run_finished(self) -> None:
        """Close the tracker."""
        if self._accelerator is not None:
            self._accelerator.end_training()


def _lines_until(file: Path, step: int, evaluated: int) -> list[str]:
    """The whole lines of a metrics file that tell of what was made until then, and need not be made again."""
    try:
        whole = file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return []
    kept = []
    for line in whole:
        try:
            values = json.loads(line)
            at, event = values.get("step", 0), values["event"]
        except (ValueError, KeyError, AttributeError):
            continue  # what a full disk or a power failure left of it
        if isinstance(at, int) and at <= (evaluated if event == "evaluation" else step):
            kept.append(line)
    return kept


def _is_of_this_card(forecast: MemoryForecast) -> bool:
    """Whether a forecast is for the card that it is measured on, rather than one that a recipe names."""
    from fitune.forecast.cards import local_card

    card = local_card()
    return card is not None and card.name == forecast.card


def _is_logged(run: Run, step: StepReport) -> bool:
    return step.step % run.recipe.log.every == 0 or step.step == run.steps


def step_values(step: StepReport) -> dict[str, int | float]:
    """A step's numbers under the names that files and trackers use; memory in bytes, all measured."""
    values: dict[str, int | float] = {
        "step": step.step,
        "epoch": round(step.epoch, 4),
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "grad_norm": step.grad_norm,
        "tokens": step.tokens,
        "target_tokens": step.targets,
        "tokens_per_second": step.tokens / step.seconds,
        "seconds": step.seconds,
        f"{step.memory.kind}_memory_peak": step.memory.peak,
    }
    if step.loss_scale is not None:
        values |= {"loss_scale": step.loss_scale, "skipped": step.skipped}
    if step.skipped:
        del values["grad_norm"]  # JSON knows no infinity
    if step.memory.reserved is not None:
        values[f"{step.memory.kind}_memory_reserved_peak"] = step.memory.reserved
    return values


def rehearsal_values(report: RehearsalReport) -> dict[str, int | float]:
    """A rehearsal's numbers; memory in bytes, measured."""
    memory = report.memory
    reserved = {} if memory.reserved is None else {f"{memory.kind}_memory_reserved_peak": memory.reserved}
    return {
        "rows": report.rows,
        "tokens": report.tokens,
        "seconds": report.seconds,
        f"{memory.kind}_memory_peak": memory.peak,
        **reserved,
    }


def eval_values(report: EvalReport) -> dict[str, int | float]:
    """An evaluation's numbers."""
    values: dict[str, int | float] = {
        "rows": report.rows,
        "target_tokens": report.targets,
        "seconds": report.seconds,
    }
    if report.loss is not None:
        values["loss"] = report.loss
    if report.exact_match is not None:
        values["exact_match"] = report.exact_match
    return values


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(f"{prefix}.{key}" if prefix else key, inner)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [pair for number, inner in enumerate(value) for pair in _flat(f"{prefix}.{number}", inner)]
    return [(prefix, value)]
