"""fitune: fine-tune language models through plugins, on the one GPU that you have.

This module is what plugins import. It imports no torch.
"""

from fitune._version import __version__
from fitune.dataflow import IGNORED, Batch, Conversation, DataContext, Document, Example, Origin, Row
from fitune.errors import DataError, FtError, Interrupted, ModelError, PluginError, Problem, RecipeError, RunError
from fitune.events import (
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
)
from fitune.hookspecs import hookimpl
from fitune.lever import Lever
from fitune.options import NoOptions
from fitune.recipe import Recipe
from fitune.records import (
    Adapter,
    DataStage,
    Dialogue,
    Fit,
    MemoryStrategy,
    MemoryTwin,
    ModelLoader,
    OptimizerSettings,
    Plan,
    Strategy,
)

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
    "StepReport",
    "Strategy",
    "__version__",
    "hookimpl",
]
