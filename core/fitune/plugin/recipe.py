"""A recipe: everything that a run depends on, as frozen dataclasses. `fitune.recipe.reader` makes one from TOML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from fitune.plugin.objective import ROLES, Reference
from fitune.plugin.options import to_table
from fitune.plugin.paths import seen_from
from fitune.plugin.records import Adapter, DataStage, Listener, MemoryStrategy, ModelLoader, Objective, Provider

R = TypeVar("R", bound=Provider)

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class General:
    """The keys that stand above the first table."""

    name: str
    """Name of the run; part of its directory's name, so without a slash."""
    seed: Annotated[int, Ge(0), Lt(2**32)] = 42
    """Seed of the adapter's initial weights, the order of the data, and dropout."""
    deterministic: bool = False
    """Compute with deterministic kernels alone, so that equal runs are equal to the bit. An operation that has none
    ends the run."""
    plugins: tuple[Path, ...] = ()
    """Single-file plugins, as paths from the recipe's directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """`[data]`, beside its sources and stages."""

    path: Path | None = None
    """A local file that is read in place of all `[[data.source]]`s, by the source that knows its suffix."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """Whether a row that cannot be used stops the run, or is left out and counted."""
    max_empty: Annotated[float, Ge(0), Le(1)] = 0.05
    """Highest share of rows without a token to train on. They are left out; more of them are an error."""
    cache: bool = True
    """Whether prepared data are kept for the next start (in $FT_CACHE, or the user's cache directory)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """`[memory]`, beside its strategies."""

    fit: bool | str = False
    """Choose the strategies that are not named here, so that the run fits and is fast: true for this machine's GPU, a
    card's name or description (a .toml file), or a size such as "22.3GiB". Those that are named stay as they are."""
    allow: tuple[str, ...] = ()
    """Strategies that `fit` may take although they change numbers or move bytes off the card, by name."""
    fast: bool = True
    """On a GPU, add the strategies that cost no time, take no memory and change nothing but the rounding, where they
    suit the model and what is named here, e.g. `fast-layers`. `fit` does not choose them where this is false."""
    rehearse: bool = True
    """Save what would be trained once before the first step, and remove it; on a GPU, take the longest batch through a
    whole step and an evaluation before that, and then put everything back as it was."""
    recoveries: Annotated[int, Ge(0)] = 3
    """How many times a run that runs out of GPU memory may go on with strategies that take less of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """`[train]`: the loop."""

    micro_batch: Annotated[int, Ge(1), Le(2**16)] = 1
    """Rows in a forward pass, in each process."""
    length: Annotated[int, Ge(2), Le(2**24)] = 2048
    """Most tokens in a row."""
    accumulation: Annotated[int, Ge(1), Le(2**20)] | None = None
    """Micro-batches to an optimizer step, in each process; 1 where neither this nor the memory strategy `accumulation`
    says it."""
    batch_tokens: Annotated[int, Ge(1), Le(2**40)] | None = None
    """Tokens of an optimizer step over all micro-batches and processes, as if every row were full. With `[memory] fit`,
    which then chooses `micro_batch` and accumulation; a multiple of `length`."""
    steps: Annotated[int, Ge(1)] | None = None
    """Optimizer steps. With `epochs` too, the run ends at whichever comes first; with neither, after one epoch."""
    epochs: Annotated[float, Gt(0)] | None = None
    """Passes over the data: rounded to the nearest whole step, half a step up, one step at least."""
    learning_rate: Annotated[float, Gt(0)] = 2e-4
    """The highest learning rate."""
    schedule: Schedule = "cosine"
    """How the learning rate goes on after the warm-up; transformers' scheduler of that name."""
    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps over which the learning rate rises from 0."""
    warmup_ratio: Annotated[float, Gt(0), Lt(1)] | None = None
    """In place of `warmup_steps`, their share of all steps of the run, rounded up to whole steps."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """AdamW's decoupled weight decay."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """AdamW's decay of the mean of gradients."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """AdamW's decay of the mean of squared gradients."""
    epsilon: Annotated[float, Gt(0)] = 1e-8
    """AdamW's term that keeps a division finite."""
    max_grad_norm: Annotated[float, Ge(0)] = 1.0
    """Gradients of a larger norm are scaled down to this one; 0 for no clipping."""
    master_weights: bool = True
    """Keep a float32 copy of trainable parameters of lower precision in the optimizer, so that small updates are
    not rounded away."""
    result: Literal["last", "best"] = "last"
    """What a run ends with: what was trained after its last step, or after that of its best evaluation (`[checkpoint]
    best`)."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What to do where the loss or the norm of its gradient is no finite number: stop the run, or leave the step out.
    Its weights are never changed by such a step, and the rows are kept for inspection."""

    def warmup(self, steps: int) -> int:
        """Steps of the warm-up in a run of so many."""
        return self.warmup_steps if self.warmup_ratio is None else math.ceil(self.warmup_ratio * steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`[eval]`, beside its sources, without which nothing is evaluated."""

    micro_batch: Annotated[int, Ge(1), Le(2**16)] = 1
    """Rows in a forward pass, in each process."""
    every: Annotated[int, Ge(1)] | None = None
    """Steps between evaluations; without it, only after the last step."""
    before: bool = True
    """Whether to evaluate before the first step too."""
    loss: bool = True
    """Whether to measure the loss on held-out rows, which takes a forward pass over all of them."""
    exact_match: bool = False
    """Whether to generate an answer to every held-out prompt and count those equal to the data's."""
    max_new_tokens: Annotated[int, Ge(1)] = 128
    """Most tokens of a generated answer."""
    fraction: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of the training sources' rows that is held out in place of an `[[eval.source]]`. Equal rows fall on one
    side, so that no held-out row is trained on."""
    split: Literal["exact", "by_row"] = "exact"
    """Whether exactly the share of each source is held out, so that rows which are added move a few others to the
    other side, or about so many, each row by itself, so that none ever moves, as before 0.2."""
    patience: Annotated[int, Ge(1)] | None = None
    """Evaluations in a row without a better one after which training ends early; without it, it goes on to its last
    step."""
    min_delta: Annotated[float, Ge(0)] = 0.0
    """By more than this an evaluation must be better for `patience` to be counted anew."""
    best_by: str = ""
    """What the best evaluation has: "loss" the lowest, "exact_match" or what the objective measures (e.g. "accuracy")
    the highest. Without it, the highest exact match, or else the lowest loss."""
    examples: Annotated[int, Ge(0)] = 3
    """Held-out prompts whose answers before and after training are printed side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """`[checkpoint]`: what a run keeps on the way, to go on from."""

    steps: Annotated[int, Ge(1)] | None = None
    """Steps between checkpoints."""
    minutes: Annotated[float, Ge(0)] = 30.0
    """Minutes of training between checkpoints; 0 for none by time."""
    at_end: bool = True
    """Whether to write one after the last step too, from which a longer run can go on."""
    keep: Annotated[int, Ge(1)] = 2
    """How many of the newest are kept."""
    best: bool = True
    """Whether that of the best evaluation is kept too: of the highest exact match, or else of the lowest loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTokens:
    """The keys that `[model]` takes beside its plugin's own."""

    add_tokens: tuple[str, ...] = ()
    """Tokens that are added to the tokenizer, and to the model's embeddings and output head, e.g. `["<tool>"]`; they
    are found in texts as they stand, and are a part of what the model writes. Those that the tokenizer has already stay
    as they are."""
    add_special_tokens: tuple[str, ...] = ()
    """The same for marks, e.g. `["<|im_start|>", "<|im_end|>"]`, which are left out of the text of an answer, and may
    end it."""

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self.add_tokens or self.add_special_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """The key that every `[[data.source]]` takes beside its plugin's own."""

    weight: Annotated[float, Gt(0)] = 1.0
    """How often each row of the source occurs in an epoch: 2 is twice, 0.5 is a random half of the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The key that `[objective]` takes beside its plugin's own, where it compares the model with a reference."""

    reference: Reference | None = None
    """Where the log-probabilities of the model before training come from: "adapter-off" is the same weights without the
    adapter, by another forward pass in each step; "prepared" are computed once, before the first step, and kept with
    the prepared data. By default "adapter-off" where the adapter can be switched off, and starts anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use(Generic[R]):
    """A table that a plugin serves: the provider it names, and its options, checked."""

    record: R
    options: Any
    given: str = ""
    """How the recipe names the provider, `OWNER:NAME`, where that is not its name alone."""
    weight: float | None = None
    """Of a data source: how often each of its rows occurs in an epoch; None where the table does not say."""
    start: Path | None = None
    """Of an adapter (its key is `from`): the directory of the run whose adapter it goes on with; None for a new one."""
    reference: Reference | None = None
    """Of an objective: where its reference comes from; None where it has none."""
    tokens: NewTokens = NewTokens()
    """Of a model loader: the tokens that are added."""

    def table(self, base: Path | None = None) -> dict[str, object]:
        """The table as TOML, every option explicit; paths as they are seen from a directory, where one is given."""
        weight = {} if self.weight is None else {"weight": self.weight}
        start = {} if self.start is None else {"from": seen_from(self.start, base)}
        reference = {} if self.reference is None else {"reference": self.reference}
        tokens = {key: value for key, value in to_table(self.tokens).items() if value}
        beside = {**weight, **start, **reference, **tokens}
        return {"use": self.given or self.record.name, **beside, **to_table(self.options, base)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe without problems."""

    path: Path
    """The file that it was read from."""
    notices: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """What in it is deprecated, a line each, with its place, the release in which it is gone and what to write. No part
    of what a run is."""
    general: General
    model: Use[ModelLoader[Any]]
    adapter: Use[Adapter[Any]]
    objective: Use[Objective[Any]]
    memory: Memory
    strategies: tuple[Use[MemoryStrategy[Any]], ...]
    data: Data
    sources: tuple[Use[DataStage[Any]], ...]
    stages: tuple[Use[DataStage[Any]], ...]
    train: Train
    evaluation: Evaluation
    eval_sources: tuple[Use[DataStage[Any]], ...]
    checkpoint: Checkpoint
    listeners: tuple[Use[Listener[Any]], ...] = ()
    """Those that a run has by default among them; events come to them in this order."""

    @property
    def several(self) -> bool:
        """Whether a row may hold several documents, none of which may see another."""
        return any(use.record.packs for use in self.stages) or len(ROLES[self.objective.record.takes]) > 1

    def to_toml(self, base: Path | None = None) -> dict[str, object]:
        """The recipe as a TOML document, every choice explicit; reading it, from anywhere, gives an equal recipe. For a
        file in the directory `base` paths are relative to that, where they can be.
        """
        sources = {"source": [s.table(base) for s in self.eval_sources]} if self.eval_sources else {}
        held_out = {"eval": {**to_table(self.evaluation), **sources}}
        return {
            **to_table(self.general, base),
            "model": self.model.table(base),
            "adapter": self.adapter.table(base),
            "objective": self.objective.table(base),
            "memory": {**self._memory(base), "strategy": [s.table(base) for s in self.strategies]},
            "data": {
                **to_table(self.data, base),
                "source": [s.table(base) for s in self.sources],
                "stage": [s.table(base) for s in self.stages],
            },
            "train": self._train(),
            **(held_out if self.eval_sources or self.evaluation.fraction else {}),
            "checkpoint": to_table(self.checkpoint),
            "listener": [use.table(base) for use in self.listeners],
        }

    def _memory(self, base: Path | None) -> dict[str, object]:
        """Without what only speaks of a choice, where none is left."""
        table = to_table(self.memory)
        if isinstance(self.memory.fit, str) and Path(self.memory.fit).is_absolute():  # the description of a card
            table["fit"] = seen_from(Path(self.memory.fit), base)
        return table if self.memory.fit else {k: v for k, v in table.items() if k not in ("fit", "allow")}

    def _train(self) -> dict[str, object]:
        """Without what is left to be chosen."""
        table = to_table(self.train)
        return table if self.train.batch_tokens is None else {k: v for k, v in table.items() if k != "micro_batch"}
