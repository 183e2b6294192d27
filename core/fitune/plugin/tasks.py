"""What a suite of tasks gives and is given: measures that others have defined, of a model as it is. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from fitune.errors import Problem
from fitune.plugin.deprecation import Marked
from fitune.plugin.nothing import no_problems

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

O = TypeVar("O")  # noqa: E741 - options, as in every provider's docstring

TaskScores = Mapping[str, Mapping[str, float]]
"""By task, and by the name of a measure: what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """What is to be measured, of which model."""

    model: PreTrainedModel
    """On its device, in evaluation mode, as the run evaluates it."""
    tokenizer: PreTrainedTokenizerBase
    """With the chat template that was trained with, if one was."""
    tasks: tuple[str, ...]
    """Their names in the suite."""
    chat: bool
    """Whether the model was trained on conversations, so that a question is to be one."""
    shots: int | None = None
    """Examples before a question; None for as many as the task says."""
    limit: int | None = None
    """Questions of each task, at most."""
    batch: int = 1
    """Rows that go through the model at once."""
    directory: Path | None = None
    """Where descriptions of other tasks lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSuite(Marked, Generic[O]):
    """Measures a trained model by tasks: `ft eval RUN --tasks TASK,TASK --suite NAME`."""

    name: str
    summary: str
    options: type[O]
    measure: Callable[[O, TaskRequest], TaskScores]
    """Gives the scores. Raises `RunError` for a task that it does not know, or whose data cannot be had."""
    check: Callable[[O], Iterable[Problem]] = no_problems
    """Looks whether it can work at all, asking nobody."""
