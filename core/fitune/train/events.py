"""Notifies plugins and the run's listeners of what happens in it, in the main process alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fitune.compose.processes import is_main_process
from fitune.errors import FtError
from fitune.plugin.events import CheckpointReport, EvalReport, Notice, Recovery, RehearsalReport, Run, StepReport
from fitune.plugin.listening import Listening
from fitune.plugin.recipe import Recipe, Use
from fitune.plugin.records import Listener
from fitune.plugin.registry import Registry
from fitune.recipe.secrets import told

Report: TypeAlias = StepReport | EvalReport | CheckpointReport | Notice
"""What the loop gives."""

HOOKS: dict[type[object], tuple[str, str]] = {
    RehearsalReport: ("ft_rehearsed", "report"),
    Recovery: ("ft_recovered", "recovery"),
    StepReport: ("ft_step_done", "step"),
    EvalReport: ("ft_evaluated", "report"),
    CheckpointReport: ("ft_checkpoint_saved", "report"),
    Notice: ("ft_noticed", "notice"),
}
"""The hook that each report is given to, and the name of its argument."""


class Events:
    """Calls the event hooks of one registry, and those of the run's listeners."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._listening: Listening | None = None

    def listen(self, uses: Sequence[Use[Listener[Any]]]) -> None:
        """Make the run's listeners, which are told of all that comes. Raises `PluginError`."""
        if is_main_process():
            self._listening = Listening(self.registry, uses)
            self.registry = self._listening.registry

    def states(self, run: Run, step: int) -> Mapping[str, Any]:
        """What listeners need to go on after so many steps, by their names; of one that fails to say, plugins are
        notified.
        """
        if self._listening is None:
            return {}
        states, failures = self._listening.states()
        for failure in failures:
            what = f"{failure}. The checkpoint of step {step} is written without it"
            self.notify(run, Notice(step=step, kind="listener's state not saved", what=what))
        return states

    def restore(self, states: Mapping[str, Any]) -> None:
        """Give the listeners what a checkpoint holds of them. Raises `PluginError`."""
        if self._listening is not None:
            self._listening.restore(states)

    def started(self, run: Run) -> None:
        """The run is ready."""
        self._call("ft_run_started", run=run)

    def notify(self, run: Run, report: Report | RehearsalReport | Recovery) -> None:
        """Something happened in the run."""
        hook, argument = HOOKS[type(report)]
        self._call(hook, run=run, **{argument: report})

    def saved(self, run: Run, directory: Path) -> None:
        """What was trained is written."""
        self._call("ft_saved", run=run, directory=directory)

    def finished(self, recipe: Recipe, run: Run | None, error: BaseException | None) -> None:
        """The run has ended: every plugin is told, whatever the others do.

        The first of their failures is raised where nothing else ended the run; the others are printed.
        """
        if not is_main_process():
            return
        failures: list[FtError] = self.registry.call_every("ft_run_finished", recipe=recipe, run=run, error=error)
        for failure in failures if error is not None else failures[1:]:
            print(f"error: {told(failure.message)}", file=sys.stderr)  # what ended the run comes after it
        if failures and error is None:
            raise failures[0]

    def _call(self, hook: str, **arguments: object) -> None:
        if is_main_process():
            self.registry.call(hook, **arguments)
