"""What is told while a run goes on: the run itself, and a report of each step and each evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fitune.plugin.recipe import Recipe
from fitune.plugin.strategy import Plan
from fitune.plugin.timings import Timings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryForecast:
    """What a run on a GPU was forecast to take, in bytes; or why there is no forecast."""

    card: str
    allocated: int = 0
    """The most that is allocated at once."""
    reserved: int = 0
    """The most that the caching allocator takes, if it never runs short."""
    needed: int = 0
    """The least that it must be able to take."""
    margin: int = 0
    """What the forecast may be wrong by."""
    context: int = 0
    """What the process takes outside of the caching allocator."""
    fits: bool = False
    """Whether the card holds it all, the margin included."""
    ledger: tuple[tuple[str, int], ...] = ()
    """(What it is for, bytes) at the peak, largest first."""
    error: str | None = None
    """Why nothing could be forecast, where that is so."""


class StopRequest:
    """What a run looks at between two steps. Once asked, it finishes the step, saves a checkpoint and ends."""

    __slots__ = ("_reason",)

    def __init__(self) -> None:
        self._reason: str | None = None

    def ask(self, reason: str) -> None:
        """Ask the run to stop; the first reason is told, e.g. "the spot instance is taken back at 12:05"."""
        if self._reason is None:
            self._reason = reason

    @property
    def reason(self) -> str | None:
        """Why the run is to stop; None if it is not."""
        return self._reason

    def is_asked(self) -> bool:
        """Whether the run is to stop."""
        return self._reason is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is ready to train."""

    recipe: Recipe
    directory: Path
    """Where the run keeps its files."""
    plan: Plan
    """What the memory strategies decided."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: str
    """torch's name of the device of this process, e.g. `cuda:0`."""
    processes: int
    steps: int
    """Optimizer steps that the run will make."""
    rows: int
    """Rows to train on."""
    counts: tuple[tuple[str, int], ...]
    """What the data stages counted, e.g. rows cut; (what, how many)."""
    trainable: int
    """Parameters that train."""
    parameters: int
    """Parameters in all, those that train included."""
    forecast: MemoryForecast | None = None
    """Made beside a run on a GPU while its weights load; None on other devices."""
    fitted: tuple[str, ...] = ()
    """What `[memory] fit` chose and what for, or what `[memory] fast` added, in lines; empty where neither did."""
    told: tuple[str, ...] = ()
    """What the adapter and the memory strategies say of the model, beside what was asked of them, in lines."""
    resumed: int | None = None
    """Steps that were made before, where this goes on from a checkpoint; None for a run from its beginning."""
    evaluated: int = -1
    """After how many of them the last evaluation was made that need not be made again; -1 for none."""
    stop: StopRequest = field(default_factory=StopRequest)
    """Ask it, from any thread, and the run finishes its step, saves a checkpoint and ends."""
    timings: Timings = field(default_factory=Timings)
    """How long it took to its first step, by phases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """Bytes in this process, measured."""

    kind: Literal["gpu", "host"]
    peak: int
    """On a GPU the most that was allocated so far; else the process' largest resident set so far."""
    reserved: int | None = None
    """On a GPU the most that the caching allocator held so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalReport:
    """What went through whole steps, an evaluation and a save before the first step, and was undone; measured."""

    rows: int
    """Of the longest micro-batch."""
    tokens: int
    """In each of its rows, padding included."""
    evaluated: bool
    """Whether the longest held-out rows were evaluated, too."""
    seconds: float
    memory: MemoryReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A run that ran out of GPU memory and goes on with memory strategies that take less."""

    step: int
    """Steps that are made, all of them kept."""
    phase: str
    """What the memory was asked for in: "loading", "rehearsal", "step" or "evaluation"."""
    error: str
    """What the GPU's libraries said, in a line."""
    before: tuple[str, ...]
    """The memory strategies that ran out, each as its TOML table."""
    after: tuple[str, ...]
    """Those that the run goes on with."""
    micro_batch: tuple[int, int]
    """Rows in a forward pass, before and after; a step takes the same rows."""
    forecast: MemoryForecast | None
    """Of the run as it goes on, where one could be made."""
    seconds: float
    """From running out to being ready to go on."""
    again: int = 0
    """Steps that had been made beyond these, and are made again: where memory runs out amid a layer that processes
    share, they are started again, and go on from the newest checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReport:
    """A checkpoint that was written, whole."""

    step: int
    """Steps that were made."""
    directory: Path
    bytes: int
    seconds: float
    why: str
    """"steps", "minutes", "best" (the best evaluation so far), "end", "stop" (the run was asked to), "error" (something
    ended it) or "memory" (it ran out of it)."""
    best: bool
    """Whether no evaluation so far was better than the one at this step."""
    removed: tuple[Path, ...] = ()
    """Older checkpoints that were deleted for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that a person should know of, and that ends nothing."""

    step: int
    """Steps that were made."""
    kind: str
    """In a word or two, e.g. "loss spike", "no gradient", "skipped", "not saved"."""
    what: str
    """In a sentence, with what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One optimizer step, measured, over all processes."""

    step: int
    """Counted from 1."""
    epoch: float
    """Passes over the data so far."""
    loss: float
    """Mean over the step's target tokens, or over what else the objective counts, e.g. pairs."""
    learning_rate: float
    """Used by this step."""
    grad_norm: float
    """Before clipping; infinite, or no number, where the step was skipped."""
    tokens: int
    """Tokens of the step that are not padding."""
    targets: int
    """Tokens of the step that the loss is taken over."""
    seconds: float
    memory: MemoryReport
    loss_scale: float | None = None
    """What the mean loss was multiplied by, in float16 (`fitune.compose.loss_scaling`); None in other types."""
    skipped: bool = False
    """Whether the gradient overflowed float16, so that no weight was changed."""
    attention: tuple[str, ...] = ()
    """The kernels of attention that have run so far, by name, e.g. `cuDNN`: in this process, with the strategies that
    the run has now."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Means over the step of what the objective measures beside the loss, e.g. `accuracy`, by its names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A held-out prompt, the answer in the data, and the model's."""

    prompt: str
    expected: str
    generated: str
    cut: Literal["", "max_new_tokens", "length"] = ""
    """The setting that cuts the answer short, so that no model can match it: it is longer than `[eval] max_new_tokens`,
    or was itself cut at `[train] length`; "" for none."""

    @property
    def exact(self) -> bool:
        """Whether both are the same text, white space at the ends aside."""
        return self.expected.strip() == self.generated.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """One evaluation on the held-out data, measured."""

    step: int
    """Steps trained so far; 0 is before training."""
    loss: float | None
    """Mean over the held-out target tokens, or what else the objective counts; None where the recipe asks for none."""
    rows: int
    targets: int
    seconds: float
    answers: tuple[Answer, ...] = ()
    """One a row where answers are generated, else none."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Means over the held-out rows of what the objective measures beside the loss, by its names."""

    @property
    def exact_match(self) -> float | None:
        """Share of exact answers, 0 to 1; None where none are generated."""
        return sum(a.exact for a in self.answers) / len(self.answers) if self.answers else None

    @property
    def exact_match_of_whole(self) -> float | None:
        """Share of exact answers among those that no setting cuts short; None where there are none."""
        whole = [answer.exact for answer in self.answers if not answer.cut]
        return sum(whole) / len(whole) if whole else None

    @property
    def answers_cut(self) -> int:
        """Answers that a setting cuts short: misses that say nothing of the model."""
        return sum(bool(answer.cut) for answer in self.answers)
