"""Every hook of fitune. A plugin is a module (or an object) with functions of these names, each marked `@hookimpl`.

The first four hooks offer things that recipes pick by name; `ft_commands` and `ft_check` extend the command line and
the checks, `ft_levers` and `ft_memory_twins` the forecast; the rest tell what happens in a run, in this order. An
implementation may leave out arguments it does not need. All events are called in the main process only, except where
it says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from fitune.errors import Problem
from fitune.plugin.events import CheckpointReport, EvalReport, Notice, Recovery, RehearsalReport, Run, StepReport
from fitune.plugin.levers import Lever
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import Adapter, DataStage, MemoryStrategy, MemoryTwin, ModelLoader

if TYPE_CHECKING:
    import click
    from transformers import PreTrainedConfig

hookspec = pluggy.HookspecMarker("fitune")

hookimpl = pluggy.HookimplMarker("fitune")


# mypy: disable-error-code="empty-body"
class Hooks:
    """The specifications, one method a hook."""

    @hookspec
    def ft_model_loaders(self) -> Iterable[ModelLoader[Any]]:
        """Offer model loaders.

        Example:
            >>> from fitune import ModelLoader, NoOptions, hookimpl
            >>> def load_tokenizer(options):
            ...     from transformers import AutoTokenizer
            ...
            ...     return AutoTokenizer.from_pretrained("my/model")
            >>> def load_model(options, device):
            ...     from transformers import AutoModelForCausalLM
            ...
            ...     return AutoModelForCausalLM.from_pretrained("my/model").to(device)
            >>> @hookimpl
            ... def ft_model_loaders():
            ...     yield ModelLoader(
            ...         name="mine",
            ...         summary="My model",
            ...         options=NoOptions,
            ...         load_tokenizer=load_tokenizer,
            ...         load_model=load_model,
            ...     )

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_adapters(self) -> Iterable[Adapter[Any]]:
        """Offer adapters.

        Example:
            >>> from fitune import Adapter, NoOptions, hookimpl
            >>> def attach(options, model):
            ...     model.requires_grad_(False)
            ...     model.get_input_embeddings().requires_grad_(True)
            ...     return model
            >>> def save(model, directory):
            ...     model.save_pretrained(directory)
            >>> @hookimpl
            ... def ft_adapters():
            ...     yield Adapter(
            ...         name="embeddings",
            ...         summary="Train the embeddings alone",
            ...         options=NoOptions,
            ...         attach=attach,
            ...         save=save,
            ...         directory="model",
            ...     )

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[Any]]:
        """Offer memory strategies.

        Example:
            >>> from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl
            >>> class Sgd(Strategy):
            ...     def make_optimizer(self, parameters, settings):
            ...         import torch
            ...
            ...         return torch.optim.SGD(parameters, lr=settings.learning_rate)
            >>> @hookimpl
            ... def ft_memory_strategies():
            ...     yield MemoryStrategy(
            ...         name="sgd",
            ...         summary="SGD: no optimizer state at all",
            ...         options=NoOptions,
            ...         make=lambda options: Sgd(),
            ...     )

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_data_stages(self) -> Iterable[DataStage[Any]]:
        """Offer data sources and data stages.

        Example:
            >>> from fitune import DataStage, NoOptions, hookimpl
            >>> def make(options, context):
            ...     def keep_short(documents):
            ...         for document in documents:
            ...             if len(document.text) <= 2000:
            ...                 yield document
            ...             else:
            ...                 context.count("documents left out: over 2000 characters")
            ...
            ...     return keep_short
            >>> @hookimpl
            ... def ft_data_stages():
            ...     yield DataStage(
            ...         name="short",
            ...         summary="Documents of at most 2000 characters",
            ...         options=NoOptions,
            ...         takes="documents",
            ...         gives="documents",
            ...         make=make,
            ...     )

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_commands(self, cli: click.Group) -> None:
        """Add subcommands to `ft`.

        Example:
            >>> from fitune import hookimpl
            >>> @hookimpl
            ... def ft_commands(cli):
            ...     @cli.command()
            ...     def hello():
            ...         "Say hello."
            ...         print("hello")

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_check(self, recipe: Recipe) -> Iterable[Problem]:
        """Look for problems in a recipe that was read without any, before a weight is read.

        Example:
            >>> from fitune import Problem, hookimpl
            >>> @hookimpl
            ... def ft_check(recipe):
            ...     if recipe.train.learning_rate > 0.1:
            ...         yield Problem(key="train.learning_rate", what="the house allows up to 0.1", fix="Lower it")

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_levers(self, recipe: Recipe, config: PreTrainedConfig) -> Iterable[Lever]:
        """Offer changes to a recipe that may save memory, for `ft plan` to trace.

        `config` is the configuration of the recipe's model. Memory strategies that the recipe does not use, with their
        default options, need no offer. `fitune.plugin.levers` helps to change the strategies of a recipe.

        Example:
            >>> from fitune import Lever, hookimpl
            >>> @hookimpl
            ... def ft_levers(recipe):
            ...     if recipe.train.length > 1024:
            ...         yield Lever(name="rows of 1024", changes=(("train.length", 1024),), exact=False)

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_memory_twins(self) -> Iterable[MemoryTwin]:
        """Say what custom kernels take of the card, so that runs with them can be forecast.

        Example:
            >>> from fitune import MemoryTwin, hookimpl
            >>> def scratch(arguments, results):
            ...     yield 4 * arguments[0].numel()  # a float32 copy of its first argument
            >>> @hookimpl
            ... def ft_memory_twins():
            ...     yield MemoryTwin(name="fused norm", operation="mylib.fused_norm.default", scratch=scratch)

        .. versionadded:: 0.1
        """

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
