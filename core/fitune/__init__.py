"""fitune: fine-tune language models through plugins, on the GPUs that you have.

This module is what plugins import. It imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fitune._version import __version__
from fitune.errors import (
    DataError,
    FtError,
    Interrupted,
    ModelError,
    PluginError,
    Problem,
    RecipeError,
    RunError,
    nearest,
    one_line,
    sentences,
)
from fitune.plugin.dataflow import (
    IGNORED,
    Batch,
    Conversation,
    DataContext,
    Document,
    Example,
    Flow,
    Origin,
    Preference,
    Row,
    Stage,
    Takes,
)
from fitune.plugin.deprecation import (
    Deprecation,
    Formerly,
    FtDeprecationWarning,
    deprecated,
    former_names,
)
from fitune.plugin.events import (
    Answer,
    CheckpointReport,
    EvalReport,
    MemoryForecast,
    MemoryReport,
    Notice,
    Recovery,
    RehearsalReport,
    Run,
    StepReport,
    StopRequest,
)
from fitune.plugin.gradients import GradientOwner
from fitune.plugin.hookspecs import hookimpl
from fitune.plugin.launching import Job, JobState, JobStatus, Launcher, Machine, Price
from fitune.plugin.levers import Lever
from fitune.plugin.mapped import mapped_weights
from fitune.plugin.model import (
    added_modules,
    added_tokens,
    buckets,
    decay_groups,
    has_values,
    mend_generation_config,
    unwrapped,
)
from fitune.plugin.objective import Criterion, Outcome, Scores
from fitune.plugin.options import NoOptions
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import (
    Adapter,
    DataStage,
    Dialogue,
    Fit,
    Listener,
    MemoryStrategy,
    MemoryTwin,
    ModelLoader,
    Objective,
)
from fitune.plugin.strategy import (
    CannotRecord,
    MicroBatch,
    OptimizerSettings,
    Plan,
    Recorder,
    StoredQuantization,
    Strategy,
    standing_for,
)
from fitune.plugin.tasks import TaskRequest, TaskScores, TaskSuite

if TYPE_CHECKING:
    from fitune.plugin.registry import Registry

__all__ = [
    "IGNORED",
    "Adapter",
    "Answer",
    "Batch",
    "CannotRecord",
    "CheckpointReport",
    "Conversation",
    "Criterion",
    "DataContext",
    "DataError",
    "DataStage",
    "Deprecation",
    "Dialogue",
    "Document",
    "EvalReport",
    "Example",
    "Fit",
    "Flow",
    "Formerly",
    "FtDeprecationWarning",
    "FtError",
    "GradientOwner",
    "Interrupted",
    "Job",
    "JobState",
    "JobStatus",
    "Launcher",
    "Lever",
    "Listener",
    "Machine",
    "MemoryForecast",
    "MemoryReport",
    "MemoryStrategy",
    "MemoryTwin",
    "MicroBatch",
    "ModelError",
    "ModelLoader",
    "NoOptions",
    "Notice",
    "Objective",
    "OptimizerSettings",
    "Origin",
    "Outcome",
    "Plan",
    "PluginError",
    "Preference",
    "Price",
    "Problem",
    "Recipe",
    "RecipeError",
    "Recorder",
    "Recovery",
    "RehearsalReport",
    "Row",
    "Run",
    "RunError",
    "Scores",
    "Stage",
    "StepReport",
    "StopRequest",
    "StoredQuantization",
    "Strategy",
    "Takes",
    "TaskRequest",
    "TaskScores",
    "TaskSuite",
    "__version__",
    "added_modules",
    "added_tokens",
    "buckets",
    "decay_groups",
    "deprecated",
    "former_names",
    "has_values",
    "hookimpl",
    "mapped_weights",
    "mend_generation_config",
    "nearest",
    "one_line",
    "run",
    "sentences",
    "standing_for",
    "unwrapped",
]


def run(
    recipe: Recipe | Path | str,
    out: Path | str | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    allow_changed: Sequence[str] = (),
    force: bool = False,
    allow_plugins: bool = False,
    registry: Registry | None = None,
) -> Path:
    """Do what `ft run` does, and leave the same files; gives the run's directory.

    `recipe` is one that was read, its file, or the directory of a run, which then goes on. `out` is where a new run is
    to be, by default `runs/NAME-TIME`; `overrides` are what `--set` takes; `resume`, `allow_changed`, `force` and
    `allow_plugins` are the switches of these names. The plugins are those that are installed, unless a registry is
    given. Raises the errors of `fitune.errors`; `Interrupted` is one.
    """
    from fitune.cli.progress import Progress
    from fitune.cli.text_console import TextConsole
    from fitune.compose.processes import is_main_process
    from fitune.data.prepare import UNWATCHED
    from fitune.plugin.own_python import without_kernels
    from fitune.plugin.registry import Registry
    from fitune.plugin.trust import Trust
    from fitune.train.read_ahead import reading_ahead
    from fitune.train.start import start_of

    with without_kernels():
        if registry is None:
            # A recipe that was read had its plugins allowed.
            allowed = Trust(allow=True, remember=allow_plugins) if allow_plugins or isinstance(recipe, Recipe) else None
            registry = Registry.open(trust=allowed)
            for file in recipe.general.plugins if isinstance(recipe, Recipe) else ():
                registry.load_file(file)
        if isinstance(recipe, Recipe) and overrides:
            raise RunError("overrides are for a recipe that is read from a file. Change the recipe itself")
        given = recipe if isinstance(recipe, Recipe) else Path(recipe)
        place = None if out is None else Path(out)
        start = start_of(given, registry, overrides, out=place, resume=resume, allowed=allow_changed)
        with reading_ahead(None if start.done else start.recipe):
            from fitune.compose.devices import free_earlier
            from fitune.train.begin import begin

            watch = Progress(TextConsole()) if is_main_process() else UNWATCHED
            free_earlier()  # of a run that failed, whose error has been dropped since
            try:
                return begin(start, registry, force=force, watch=watch)
            finally:
                free_earlier()
