"""What flows through the data stages, from a file's row to a padded batch.

    nothing -> rows -> conversations -> documents -> examples -> batches
    nothing -> rows -> preferences ---------------> examples -> batches

A source takes nothing; each stage says what it takes and gives. A stream is an iterator; nothing is held but what a
stage needs to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from fitune.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Flow = Literal["nothing", "rows", "conversations", "preferences", "documents", "examples", "batches"]
"""What a data stage takes or gives: `Row`s, `Conversation`s, `Preference`s, `Document`s, `Example`s or `Batch`es."""

Takes = Literal["documents", "pairs", "labelled"]
"""What an objective learns from: documents with answers, pairs of a chosen and a rejected answer, or answers that are
each judged good or bad."""

Stage: TypeAlias = "Callable[[Iterator[Any]], Iterator[Any]]"
"""From a stream of what the stage takes to a stream of what it gives; `batches` are made one list of examples each."""

IGNORED = -100
"""The label of a token that is not trained on, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataContext:
    """What a data stage may know of the run."""

    tokenizer: PreTrainedTokenizerBase
    length: int
    """Most tokens in a row (`[train] length`)."""
    seed: int
    count: Callable[[str], None] = lambda what: None
    """Adds one to a counter that is printed once the data are ready, e.g. `count("rows cut at the right")`."""
    skip_bad_rows: bool = False
    """Whether a row that cannot be used is left out and counted, or stops the run (`[data] bad_rows`)."""
    takes: Takes = "documents"
    """What the recipe's objective learns from (`Objective.takes`)."""
    held_out: bool = False
    """Whether the rows are to be evaluated on, or to be trained on."""

    def reject(self, error: DataError) -> None:
        """Call this with what is wrong with a row, then go on to the next: raises the error, or counts the row."""
        if not self.skip_bad_rows:
            raise error
        self.count("bad rows skipped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a row came from, for error messages."""

    file: str
    row: int
    """Counted from 1."""

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a source, as it was read."""

    values: Mapping[str, Any]
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages in the form that chat templates take."""

    messages: tuple[Mapping[str, Any], ...]
    """Each with at least a `role` and a `content`; the assistant's may hold `tool_calls`."""
    origin: Origin
    tools: tuple[Mapping[str, Any], ...] = ()
    """Descriptions of the tools that the assistant may call."""
    untrained: frozenset[int] = frozenset()
    """Places in `messages` of answers that the row itself says are not trained on, whatever the recipe's `loss` is."""
    asked: int = 0
    """How many messages, from the first, are what is asked: answers among them are examples, not trained on as answers.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """A better and a worse answer to what is asked, or an answer by itself that is judged good or bad.

    Each is a conversation of which the first `asked` messages are what is asked: of a pair, the same in both.
    """

    chosen: Conversation | None = None
    """With the better answer, or one that is good; None for a bad one by itself."""
    rejected: Conversation | None = None
    """With the worse answer, or one that is bad; None for a good one by itself."""
    as_text: bool = False
    """Whether question and answer are the parts of one text, a message each, which no chat template takes."""

    @property
    def sides(self) -> tuple[Conversation, ...]:
        """What is there of it, the chosen one first."""
        return tuple(side for side in (self.chosen, self.rejected) if side is not None)

    @property
    def origin(self) -> Origin:
        """Of its row."""
        return self.sides[0].origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Text, and the parts of it that are trained on."""

    text: str
    trained: tuple[tuple[int, int], ...]
    """Half-open ranges of characters, ascending, disjoint."""
    origin: Origin
    special: bool = True
    """Whether the text holds its own special tokens already, as a rendered chat template does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Tokens and labels of one row, not padded."""

    input_ids: NDArray[np.int32]
    """Shape `[length]`."""
    labels: NDArray[np.int32]
    """Shape `[length]`: the token itself where it is trained on, `IGNORED` elsewhere (not shifted)."""
    origin: Origin
    """Of the first document, where several are packed."""
    lengths: tuple[int, ...] = ()
    """Tokens of each document that is packed into this row, in order; empty for a row of one document. The first
    token of each has the label `IGNORED`: the document before it does not predict it."""
    extras: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """More of what an objective is to know, by name, a number for each document. All rows have the same names."""

    @property
    def documents(self) -> int:
        """Number of documents in this row."""
        return max(1, len(self.lengths))

    @property
    def targets(self) -> int:
        """Number of tokens that the loss is taken over: the first token of a row is predicted by none."""
        return int((self.labels[1:] != IGNORED).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows padded on the right to one length.

    There is no attention mask: under causal attention no real token sees what stands to its right, and a pad token's
    label is `IGNORED`, so a mask would change no loss and no gradient, but would cost the fast attention kernels.
    """

    input_ids: Tensor
    """Shape `[batch, length]`, int64."""
    labels: Tensor
    """Shape `[batch, length]`, int64, not shifted."""
    targets: int
    """Number of tokens that the loss sums over."""
    tokens: int
    """Number of tokens that are not padding."""
    positions: Tensor | None = None
    """Where rows hold several documents: shape `[batch, length]`, int64, from 0 in each document. A run of padding
    counts as a document of its own."""
    lengths: tuple[int, ...] = ()
    """Tokens of each document, row after row, padding included, where `positions` are given."""
    ends: Tensor | None = None
    """Where documents begin and end, over all rows: shape `[documents + 1]`, int32; None for what `lengths` say. It may
    end with documents of no token."""
    longest: int = 0
    """Tokens of the longest document, or more, where `ends` are given."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """More of what an objective is to know, by name: shape `[documents]`, float32, in the order of `lengths`, or one a
    row where there are none. Documents of padding, and those of no token, have 0."""
    begin: int | None = None
    """Of a part of each row, where several processes have one (`Plan.context_parallel`): the place of its first token
    in the row. `lengths`, `ends` and `longest` are then of whole rows."""

    def to(self, device: torch.device, *, pin: bool = False) -> Batch:
        """The batch on a device; with `pin`, by way of page-locked memory, so that the copy need not be waited for.

        Without it, CUDA takes what is small into buffers of its own before it returns, and waits for what is large.
        """

        def moved(tensor: Tensor) -> Tensor:
            pinned = tensor.pin_memory() if pin and tensor.device.type == "cpu" else tensor
            return pinned.to(device, non_blocking=True)

        changes: dict[str, Any] = {name: moved(tensor) for name, tensor in self._fields().items()}
        return replace(self, **changes, extras={name: moved(extra) for name, extra in self.extras.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, by the names of its fields, `extras.NAME` for the extras; those that are None are left out."""
        return self._fields() | {f"extras.{name}": extra for name, extra in self.extras.items()}

    def _fields(self) -> dict[str, Tensor]:
        fields = {name: getattr(self, name) for name in ("input_ids", "labels", "positions", "ends")}
        return {name: tensor for name, tensor in fields.items() if tensor is not None}

    def inputs(self) -> dict[str, Any]:
        """What a model's `forward` is called with: every loss calls it so, so that packed documents stay apart.

        Packed batches have positions, from which transformers makes a block-diagonal mask, and the ends of their
        documents, under the names that variable-length attention knows (transformers' `FlashAttentionKwargs`). A part
        of rows has its positions in them, and says `row_begin`, which attention is handed on.
        """
        arguments: dict[str, Any] = {"input_ids": self.input_ids, "use_cache": False}
        if self.begin is not None:
            arguments["row_begin"] = self.begin
        if self.positions is None:
            return arguments if self.begin is None else arguments | {"position_ids": self._places()}
        ends, longest = self.ends, self.longest
        if ends is None:
            import torch

            ends = torch.tensor((0, *accumulate(self.lengths)), dtype=torch.int32)
            ends = ends.to(self.input_ids.device, non_blocking=True)  # small, so that it is staged, and none waits
            longest = max(self.lengths)
        of_documents = {f"cu_seq_lens_{of}": ends for of in "qk"} | {f"max_length_{of}": longest for of in "qk"}
        return {**arguments, "position_ids": self.positions, **of_documents}

    def _places(self) -> Tensor:
        """The positions of a part's tokens in rows of one document: `[1, length]`."""
        import torch

        assert self.begin is not None
        length = self.input_ids.shape[1]
        return torch.arange(self.begin, self.begin + length, device=self.input_ids.device)[None]
