"""fitune: fine-tune language models through plugins, on the one GPU that you have.

This module is what plugins import. It imports no torch.
"""

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
    Row,
    Stage,
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
from fitune.plugin.hookspecs import hookimpl
from fitune.plugin.levers import Lever
from fitune.plugin.model import decay_groups, has_values, mend_generation_config, unwrapped
from fitune.plugin.options import NoOptions
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import Adapter, DataStage, Dialogue, Fit, MemoryStrategy, MemoryTwin, ModelLoader
from fitune.plugin.strategy import OptimizerSettings, Plan, Strategy, standing_for

__all__ = [
    "IGNORED",
    "Adapter",
    "Answer",
    "Batch",
    "CheckpointReport",
    "Conversation",
    "DataContext",
    "DataError",
    "DataStage",
    "Dialogue",
    "Document",
    "EvalReport",
    "Example",
    "Fit",
    "Flow",
    "FtError",
    "Interrupted",
    "Lever",
    "MemoryForecast",
    "MemoryReport",
    "MemoryStrategy",
    "MemoryTwin",
    "ModelError",
    "ModelLoader",
    "NoOptions",
    "Notice",
    "OptimizerSettings",
    "Origin",
    "Plan",
    "PluginError",
    "Problem",
    "Recipe",
    "RecipeError",
    "Recovery",
    "RehearsalReport",
    "Row",
    "Run",
    "RunError",
    "Stage",
    "StepReport",
    "StopRequest",
    "Strategy",
    "__version__",
    "decay_groups",
    "has_values",
    "hookimpl",
    "mend_generation_config",
    "nearest",
    "one_line",
    "sentences",
    "standing_for",
    "unwrapped",
]
