"""What plugins and listeners are told of a run: hooks, in the order in which they are called.

All of them are called in the main process only. An implementation may leave out arguments it does not need.
"""

from __future__ import annotations

from pathlib import Path

from fitune.plugin.events import CheckpointReport, EvalReport, Notice, Recovery, RehearsalReport, Run, StepReport
from fitune.plugin.hookspecs import hookspec
from fitune.plugin.recipe import Recipe


class EventHooks:
    """The specifications, one method a hook."""

    @hookspec
    def ft_run_started(self, run: Run) -> None:
        """Called once everything is ready, before the first evaluation and the first step.

        Example:
            >>> from fitune import hookimpl
            >>> @hookimpl
            ... def ft_run_started(run):
            ...     print(run.recipe.general.name, "trains for", run.steps, "steps in", run.directory)

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_rehearsed(self, run: Run, report: RehearsalReport) -> None:
        """Called before the first step of a run on a GPU, once its longest rows went through all that it does.

        No other event tells of what a rehearsal does. It is called again where the run had to be composed again.

        Example:
            >>> from fitune import hookimpl
            >>> @hookimpl
            ... def ft_rehearsed(report):
            ...     print("at most", report.memory.peak, "bytes")

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_recovered(self, run: Run, recovery: Recovery) -> None:
        """Called once a run that ran out of GPU memory is ready to go on with less; `run` is the new one.

        Keep nothing of the run that you were told of before: its model could not be freed.

        Example:
            >>> from fitune import hookimpl
            >>> @hookimpl
            ... def ft_recovered(recovery):
            ...     print("after", recovery.step, "steps:", *recovery.after)

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_step_done(self, run: Run, step: StepReport) -> None:
        """Called after each optimizer step.

        Example:
            >>> from fitune import hookimpl
            >>> @hookimpl
            ... def ft_step_done(step):
            ...     print(step.step, step.loss)

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_evaluated(self, run: Run, report: EvalReport) -> None:
        """Called after each evaluation on held-out data.

        Example:
            >>> from fitune import hookimpl
            >>> @hookimpl
            ... def ft_evaluated(run, report):
            ...     print(report.step, report.loss, report.exact_match)

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_noticed(self, run: Run, notice: Notice) -> None:
        """Called where something is not as it should be and the run goes on: a loss spike, a step that was left out, a
        checkpoint that could not be written.

        Example:
            >>> from fitune import hookimpl
            >>> @hookimpl
            ... def ft_noticed(notice):
            ...     print("after", notice.step, "steps:", notice.kind, notice.what)

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_checkpoint_saved(self, run: Run, report: CheckpointReport) -> None:
        """Called after a checkpoint was written, whole, down to the disk.

        Example:
            >>> from fitune import hookimpl
            >>> @hookimpl
            ... def ft_checkpoint_saved(report):
            ...     print("copy", report.directory, "to a safe place:", report.bytes, "bytes")

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_saved(self, run: Run, directory: Path) -> None:
        """Called after the adapter (or the model) was written to `directory`, whole.

        Example:
            >>> from fitune import hookimpl
            >>> @hookimpl
            ... def ft_saved(run, directory):
            ...     print("upload", directory)

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_run_finished(self, recipe: Recipe, run: Run | None, error: BaseException | None) -> None:
        """Called last, always, also after an interruption.

        `error` is what ended the run, or None if it is done; `run` is None if it failed before it was ready, or ready
        again.

        Example:
            >>> from fitune import hookimpl
            >>> @hookimpl
            ... def ft_run_finished(recipe, error):
            ...     print(recipe.general.name, "failed" if error else "done")

        .. versionadded:: 0.1
        """
