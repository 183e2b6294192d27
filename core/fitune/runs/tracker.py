"""Hands a run's numbers to the experiment tracker that its recipe names; a tracker that is lost ends no run."""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from fitune.errors import Problem, RunError, cause
from fitune.plugin.events import EvalReport, Run, StepReport
from fitune.plugin.hookspecs import hookimpl
from fitune.plugin.options import flat
from fitune.plugin.reading import read_json
from fitune.plugin.records import Listener
from fitune.runs.atomic import write_file
from fitune.runs.json_lines import Complaints, finite
from fitune.runs.layout import TRACKER
from fitune.runs.metrics import eval_values, is_logged, step_values

START_AGAIN = 'Log in to it or mend its connection, or remove [[listener]] use = "tracker"'


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerOptions:
    """Options of `tracker`."""

    name: Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]
    """A tracker that accelerate knows; the package of that name must be installed."""
    every: Annotated[int, Ge(1)] = 1
    """Steps between two that are logged. The last one always is, as are all evaluations."""


@hookimpl
def ft_listeners() -> Iterable[Listener[TrackerOptions]]:
    """Offer `tracker`."""
    yield Listener(
        name="tracker",
        summary="Hands each step and evaluation to an experiment tracker, e.g. wandb",
        options=TrackerOptions,
        make=lambda options: Tracker(options.name, options.every),
        packages=lambda options: [options.name],
        check=_check,
    )


def _check(options: TrackerOptions) -> Iterable[Problem]:
    if importlib.util.find_spec(options.name) is None:
        fix = f"Install it: pip install {options.name}"
        yield Problem(key="name", what=f'the tracker "{options.name}" is not installed', fix=fix)


class Tracker:
    """Uses accelerate's trackers.

    One that cannot begin ends a new run, which has lost nothing yet. Later, and in a run that goes on, what it raises
    is told once, and it is left out from then on: `metrics.jsonl` has every number.

    A run that goes on is the same run to wandb, mlflow and tensorboard; to others it is a new one of the same name.
    """

    def __init__(self, name: str, every: int = 1) -> None:
        """`name` is what accelerate calls the tracker, `every` the number of steps between two that are logged."""
        self._name, self._every = name, every
        self._accelerator: Any = None
        self._complaints = Complaints()

    @hookimpl
    def ft_run_started(self, run: Run) -> None:
        """Start the tracker, with the recipe as its configuration. Raises `RunError` if a new run's cannot."""
        if run.resumed is not None:
            self._try("cannot go on", lambda: self._start(run))
            return
        try:
            self._start(run)
        except Exception as error:
            self._accelerator = None
            raise RunError(f"the tracker {self._name} cannot begin: {cause(error)}. {START_AGAIN}") from error

    @hookimpl
    def ft_step_done(self, run: Run, step: StepReport) -> None:
        """Log a step."""
        if self._accelerator is not None and is_logged(run, step, self._every):
            self._log("train", step_values(step), step.step)

    @hookimpl
    def ft_evaluated(self, report: EvalReport) -> None:
        """Log an evaluation."""
        if self._accelerator is not None:
            self._log("eval", eval_values(report), report.step)

    @hookimpl
    def ft_run_finished(self) -> None:
        """Close the tracker."""
        if self._accelerator is not None:
            self._try("could not be closed", self._accelerator.end_training)

    def _start(self, run: Run) -> None:
        from accelerate import Accelerator

        accelerator = Accelerator(log_with=self._name, project_dir=str(run.directory))
        config = {key: value for key, value in flat(run.recipe.to_toml()) if not isinstance(value, list)}
        known = None if run.resumed is None else _read(run.directory, self._name)
        made = known or uuid.uuid4().hex
        arguments = {self._name: _arguments(self._name, made, known, run.resumed)}
        # Of a run that goes on, the configuration is there: mlflow refuses another value, tensorboard adds a copy.
        accelerator.init_trackers(
            run.recipe.general.name, config=None if known and run.resumed else config, init_kwargs=arguments
        )
        self._accelerator = accelerator
        found = _own_name(self._name, accelerator) or made
        write_file(run.directory / TRACKER, json.dumps({"tracker": self._name, "run": found}) + "\n")

    def _log(self, group: str, values: dict[str, int | float], step: int) -> None:
        numbers = {f"{group}/{key}": value for key, value in finite(values).items() if key != "step"}
        known = {key: value for key, value in numbers.items() if value is not None}
        self._try("is lost", lambda: self._accelerator.log(known, step=step))

    def _try(self, what: str, work: Callable[[], object]) -> None:
        """Do it; what fails is told, and the tracker left out from then on."""
        try:
            work()
        except Exception as error:
            self._accelerator = None
            said = f"the tracker {self._name} {what}: {cause(error)}. The run goes on without it"
            self._complaints.tell("tracker", f"{said}; metrics.jsonl has every number")


def _arguments(name: str, made: str, known: str | None, resumed: int | None) -> dict[str, Any]:
    """What accelerate gives to a tracker at its start, so that a run that goes on is the run that it knows."""
    if name == "wandb":
        return {"id": made, "resume": "allow"}
    if name == "mlflow" and known is not None:
        return {"run_id": known}
    if name == "tensorboard" and resumed is not None:
        return {"purge_step": resumed + 1}  # what a killed run logged later is made again
    return {}


def _own_name(name: str, accelerator: Any) -> str | None:
    """The name of the run that the tracker itself has given."""
    if name != "mlflow":
        return None
    return str(accelerator.get_tracker("mlflow").active_run.info.run_id)


def _read(directory: Path, name: str) -> str | None:
    """The tracker's name for a run that goes on; None for another tracker's, or where it is not known."""
    try:
        values = read_json(directory / TRACKER)
        return str(values["run"]) if values["tracker"] == name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
