"""The work of an optimizer step, as its trace sees it, and how long a card takes for it.

A step takes the sum of what its operations take on the card (`fitune.memory.cards.pace`) and of what processes send
each other over the links between cards, but no less than the host needs to launch it all, and than the link to the host
needs for what is copied over it. To gather layers while others compute saves next to nothing: NCCL's kernels take
multiprocessors and bandwidth from those that compute, about as much as they save (`benchmarks/several_4.json`: full
fine-tuning at 2048 tokens, LoRA at 4096). The gradients' norm is waited for before weights change: what the host does
behind that is hidden by nothing, and adds to the time of the step.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fitune.compose.step import Phase
from fitune.memory.cards.cards import Card
from fitune.memory.cards.pace import (
    CALLED,
    GATHERED,
    MEETING,
    REDUCED,
    SUMMED,
    TUNED,
    Operation,
    Pace,
    is_aligned,
    product,
)
from fitune.memory.trace.collectives import is_collective, sent_by

ATTENTION_NAMES = ("_attention", "_varlen_attn")

NO_BYTES = ("aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.detach", "aten.alias", "aten.lift_fresh")
"""Operations that touch no memory of the card, beside those that give views."""

OF_RESULTS = ("aten.embedding.", "aten.index_select.", "aten.gather.", "aten.index.", "aten.slice_scatter.")
"""Operations that read as much as they write, however large what they read from is."""

COPIES = ("aten.clone.", "aten._to_copy.", "aten.copy_.", "aten.fill_.", "aten.zero_.", "aten.zeros")
"""Operations that move bytes and compute nothing."""

COPY_IN = "fsdp.all_gather_copy_in"
"""Copies this process' parts of weights to where they are gathered; its results are views of that."""

COPY_OUT = "fsdp.split_with_sizes_copy"
"""Copies weights from where they were gathered to where they are used, which it is given by name."""

CHUNKS = "fsdp.chunk_cat"
"""Copies gradients of whole weights to where they are reduced and scattered, in float32, which it is given by name."""

REDUCTIONS = ("sum", "mean", "norm", "softmax", "logsumexp", "amax", "amin", "max", "min", "all", "any")
"""Parts of the names of operations that take rows to numbers, or to rows by these."""

KERNELS = ("cudnn", "flash", "efficient")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """How long a step takes, each as if nothing else took longer."""

    card: float
    host: float
    link: float
    peers: float = 0.0
    """Of the links between cards, where a run has several."""

    @property
    def step(self) -> float:
        """The longest: the card with what it sends to others, the host and its link work at the same time."""
        return max(self.card + self.peers, self.host, self.link)


@dataclass(slots=True)
class Work:
    """What is counted of one step: of its micro-batches, and of the rest."""

    micro: Counter[Operation] = field(default_factory=Counter)
    rest: Counter[Operation] = field(default_factory=Counter)
    backward: int = 0
    """Operations of micro-batches that a backward pass launches."""
    own: int = 0
    """Operations of ours (`fitune.`) among them: Triton kernels, each with some Python around it."""
    listed: int = 0
    """Tensors in the lists that operations of the rest are given: a fused optimizer looks at each."""
    moved: int = 0
    """Bytes over the link to the host, of its micro-batches."""
    sent: int = 0
    """Bytes over the links between cards, in one direction, of its micro-batches."""
    summed: int = 0
    """Of these, what is summed on its way."""
    sent_behind: int = 0
    """The same, of the rest."""
    calls: int = 0
    """Calls of modules in its micro-batches."""
    tuned: int = 0
    """Of these, calls within a module of peft's."""
    gathered: int = 0
    """Tensors that are gathered from the parts that processes have."""
    reduced: int = 0
    """Tensors whose gradients are reduced to such parts."""
    graphs: bool = False
    """Whether a micro-batch is one launch: a CUDA graph."""

    def note(
        self, phase: Phase, func: Any, name: str, arguments: Sequence[Any], results: Any, flops: int, times: int
    ) -> None:
        """Count an operation, made so many times; "optimizer" is all that is done once a step, behind micro-batches."""
        if is_collective(name):
            sent = times * sent_by(name, arguments)
            if phase == "optimizer":
                self.sent_behind += sent
            else:
                self.sent += sent
                self.summed += sent if "reduce" in name else 0
            return
        self.gathered += times * len(arguments[0]) if name.startswith(COPY_IN) else 0
        self.reduced += times * len(arguments[0]) if name.startswith(CHUNKS) else 0
        operation = operation_of(func, name, arguments, results, flops)
        if operation is None:
            return
        if phase == "optimizer":
            self.rest[operation] += times
            self.listed += times * sum(len(one) for one in arguments if isinstance(one, (list, tuple)))
        else:
            self.micro[operation] += times
            self.backward += times if phase == "backward" else 0
            self.own += times if name.startswith("fitune.") else 0

    def note_calls(self, calls: int, tuned: int) -> None:
        """Count calls of modules; `tuned` of them within one of peft's."""
        self.calls += calls
        self.tuned += tuned

    def seconds(self, card: Card | Pace, *, traced: int, accumulation: int) -> Seconds:
        """Of a step of `accumulation` micro-batches, of which `traced` were counted."""
        pace = card if isinstance(card, Pace) else Pace(card)
        factor = accumulation / traced
        micro, rest = (_on_card(work, pace) for work in (self.micro, self.rest))
        behind = max(rest, self.rest.total() * pace.forward + self.listed * pace.listed)
        summing = self.sent_behind / pace.peers + (MEETING if pace.card.count > 1 else 0.0)
        return Seconds(
            card=factor * micro + behind,
            host=factor * self._on_host(pace, traced) + behind + summing,
            link=factor * self.moved / pace.link + behind + summing,
            peers=factor * (self.sent + (SUMMED - 1) * self.summed) / pace.peers + summing,
        )

    def _on_host(self, pace: Pace, traced: int) -> float:
        """Seconds that the host needs to launch what was counted of micro-batches."""
        if self.graphs:
            return traced * pace.forward
        launches = (self.micro.total() - self.backward) * pace.forward + self.backward * pace.backward
        around = (
            CALLED * (self.calls - self.tuned) + TUNED * self.tuned + GATHERED * self.gathered + REDUCED * self.reduced
        )
        return launches + around * pace.forward + self.own * pace.own


def operation_of(func: Any, name: str, arguments: Sequence[Any], results: Any, flops: int) -> Operation | None:
    """What an operation takes; None for one that does nothing on the card."""
    schema = _schema(func, name)
    if schema.nothing:
        return None
    given = [a for a in arguments if isinstance(a, Tensor) and a.is_meta]
    made = [r for r in ((results,) if isinstance(results, Tensor) else _flat(results)) if r.is_meta]
    if not given:
        lists = [argument for argument in arguments if isinstance(argument, (list, tuple))]
        given = [a for argument in lists for a in argument if isinstance(a, Tensor) and a.is_meta]
    if not given and not made:
        return None
    if name.startswith(COPY_IN):
        return Operation("pass", bytes=2 * sum(_bytes(tensor) for tensor in arguments[0]), form="copy")
    if name.startswith(COPY_OUT):
        return Operation("pass", bytes=2 * _bytes(arguments[0]), form="copy")
    if name.startswith(CHUNKS):
        return Operation("pass", bytes=sum(_bytes(one) + 4 * one.numel() for one in arguments[0]), form="copy")
    written = sum(_bytes(tensor) for tensor in made) + _changed(schema.changed, arguments)
    read = written if name.startswith(OF_RESULTS) else sum(_bytes(tensor) for tensor in given)
    if not flops:
        return Operation("pass", bytes=read + written, form=_passing(name, given, made))
    dtype = str(given[0].dtype)[6:]
    if any(part in name for part in ATTENTION_NAMES):
        return _attention(name, dtype, given, flops, read + written)
    return _product(dtype, given, made, flops, read + written)


def _product(dtype: str, given: list[Tensor], made: list[Tensor], flops: int, moved: int) -> Operation:
    result = made[0] if made else given[0]  # what it is added to
    batch = math.prod(result.shape[:-2])
    columns = result.shape[-1]
    rows = result.numel() // max(1, batch * columns)
    inner = flops // max(1, 2 * result.numel())
    aligned = all(is_aligned(tensor) for tensor in (*given[-2:], result))
    return product(dtype, (batch, rows, columns, inner), aligned=aligned, added=False, moved=moved)


def _attention(name: str, dtype: str, given: list[Tensor], flops: int, moved: int) -> Operation:
    backward = "backward" in name
    query = given[1 if backward else 0]
    size, heads = query.shape[-1], math.prod(query.shape[:-2])
    tokens = query.shape[-2]
    if query.dim() == 3:  # all documents of a row behind each other: [tokens, heads, size]
        heads, tokens = query.shape[1], query.shape[0]
    keys = flops / ((10 if backward else 4) * heads * tokens * size)  # that each token meets: those of a document
    heads, tokens = (round(heads * tokens / max(1.0, keys)), round(keys)) if keys < tokens else (heads, tokens)
    kernel = next((kernel for kernel in KERNELS if kernel in name), "flash")
    form = f"{'backward' if backward else 'forward'} {kernel}"
    return Operation("attention", dtype, flops, moved, form, (heads, tokens, size))


def _passing(name: str, given: list[Tensor], made: list[Tensor]) -> str:
    if not name.startswith("aten."):
        return "copy"  # a kernel of a plugin's own: nothing but its bytes is known
    word = name[5:].partition(".")[0]
    if any(part in word for part in REDUCTIONS):
        return "reduction"
    shape = made[0].shape if made else given[0].shape
    large = [tensor for tensor in (*given, *made) if tensor.numel() > 1]
    if any(not tensor.is_contiguous() or tensor.shape != shape for tensor in large) and not word.startswith("_foreach"):
        return "strided"
    return "copy" if name.startswith(COPIES) else "pointwise"


def _on_card(work: Counter[Operation], pace: Pace) -> float:
    return pace.within * sum(times * pace.seconds(operation) for operation, times in work.items())


@dataclass(frozen=True, slots=True)
class _Schema:
    """What an operation's signature says."""

    nothing: bool
    """Whether it touches no memory."""
    changed: tuple[int, ...]
    """Places of arguments that are changed and are no result."""


_SCHEMAS: dict[str, _Schema] = {}


def _schema(func: Any, name: str) -> _Schema:
    known = _SCHEMAS.get(name)
    if known is None:
        arguments, returned = func._schema.arguments, func._schema.returns
        view = bool(returned) and all(r.alias_info is not None and not r.alias_info.is_write for r in returned)
        results = {name for r in returned if r.alias_info is not None for name in r.alias_info.before_set}
        changed = tuple(
            at
            for at, one in enumerate(arguments)
            if one.alias_info is not None and one.alias_info.is_write and results.isdisjoint(one.alias_info.before_set)
        )
        known = _SCHEMAS[name] = _Schema(view or name.startswith(NO_BYTES), changed)
    return known


def _changed(places: tuple[int, ...], arguments: Sequence[Any]) -> int:
    """Bytes of arguments that are changed."""
    tensors: list[Any] = []
    for at in places:
        if at < len(arguments):
            one = arguments[at]
            tensors += one if isinstance(one, (list, tuple)) else [one]
    return sum(_bytes(tensor) for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_meta)


def _flat(results: Any) -> list[Tensor]:
    return [r for r in results if isinstance(r, Tensor)] if isinstance(results, (tuple, list)) else []


def _bytes(tensor: Tensor) -> int:
    """That are read of it: a dimension that it is spread over is read once."""
    if 0 not in tensor.stride():
        return tensor.numel() * tensor.element_size()
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(length for length, stride in sizes if stride or length == 0)
