"""How long a card takes for one operation: by what was measured of it, else by shares of its data sheet's rates.

Each operation has a bound by the data sheet: the longer of its floating-point operations over the card's rate and its
bytes over the bandwidth of its memory (Williams et al., "Roofline", CACM 2009), where a product counts whole rounds of
the blocks that all multiprocessors compute at once ("wave quantisation": NVIDIA, "Matrix Multiplication Background
User's Guide"). What was measured is kept as a multiple of that bound, and between measured sizes the multiple is
interpolated: in the logarithms of all sizes, each measurement weighing the less the farther it is (Shepard, "A
two-dimensional interpolation function for irregularly-spaced data", ACM 1968). What is larger or smaller than all that
was measured is as the largest or smallest: a card that has enough to do gets no faster by more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from fitune.memory.cards.cards import Card, find_card
from fitune.memory.cards.rates import Origin, Rates, origin_of
from fitune.memory.kernels.gpu import Gpu

MATMUL, ATTENTION, BANDWIDTH, LINK = 0.70, 0.45, 0.75, 0.75
"""Shares of a data sheet's rates that are reached, where nothing was measured."""

PEERS = 0.75
"""Share of the rate of the link between cards that NCCL reaches with large messages: a sum of a GiB went over NVLink at
329 GB/s between two H100s and at 355 GB/s between four (bus bandwidth), of 450."""

SUMMED = 1.5
"""By which NCCL takes more from what computes beside it where it sums what it sends: it reads two and writes one, and
else reads one and writes one. A step of full fine-tuning in shards is 4 % too short so on four H200s, else 11 %."""

MEETING = 1.5e-3
"""Seconds of a step in which processes wait for each other, beside the sum of their gradients: a step of replicas took
1.2 to 2.9 ms longer on two and four H200s than on one (`benchmarks/several.json`, `several_4.json`)."""

LAUNCH = 9e-6
"""Seconds of the host for each operation, Python and autograd included, where nothing was measured."""

LISTED = 2.5e-6
"""Seconds of the host for each tensor of a list that an operation is given, where nothing was measured."""

OWN = 2e-4
"""Seconds of the host for each operation of ours, beside that: 143 to 166 ms for the 650 of a micro-batch, beside an
H100."""

CALLED, TUNED = 2.5, 14
"""Operations that the host could launch while it calls a module, beside what that launches: hooks, and Python around
operations. The second is of a module within one of peft's, whose own Python is most of it. On a CPU, of transformers'
Llama with peft's LoRA, 2.4 and 5; the second is chosen by runs of four H200s that wait for the host
(`benchmarks/several_4.json`: replicas at 2048 tokens, 1 % too short so, and three times accumulated, 4 % too long)."""

GATHERED, REDUCED = 12, 15
"""The same, for each tensor that FSDP gathers, and whose gradients it reduces and scatters. By a clock around it 20 on
an H200, and on a CPU, where nothing is sent, 19 to 25 and about 15; part of that is hidden: with 12, steps of shards
with LoRA at 2048 tokens are 9 % too long on two H200s, and 5 to 9 % too short on four."""

GAP = 2e-6
"""Seconds of the card between two operations, where nothing was measured."""

WITHIN = 1.10
"""By which measured operations take longer within a step than by themselves, one behind the other on a card that does
nothing else. Chosen by runs: what was measured on an H100 makes a step at 4096 tokens 6 % too short there (302 ms a
micro-batch), 17 compositions on an H200 (`benchmarks/fit/compositions.json`) 7 to 15 %, and replicas of Llama 3's shape
16 %. With it the first is 3 % too long, and most others are 1 to 8 % too short."""

CAUSAL = 0.5
"""Share of the square of tokens that causal attention computes."""

ASSUMED_CARD = "a10g"
"""The card whose rates stand for those that are not known."""

POWER = 4
"""Of the distance, by which a measurement weighs the less."""

TILES = ((128, 256, 1.0), (128, 128, 0.92), (64, 128, 0.75), (64, 64, 0.5))
"""Rows and columns that one multiprocessor computes at a time, and how fast by comparison."""

Sizes = tuple[float, ...]


class Operation(NamedTuple):
    """What an operation has to do."""

    family: str
    """`product`, `attention` or `pass`."""
    dtype: str = ""
    flops: int = 0
    """Of attention, over the whole square of tokens."""
    bytes: int = 0
    """Read and written."""
    form: str = ""
    """What makes a kernel another: `aligned`, `forward cudnn`, `pointwise` and so on."""
    sizes: tuple[int, ...] = ()
    """Of a product: batch, rows, columns, inner; of attention: heads, tokens, size of a head."""


class Pace:
    """Seconds of operations on one card."""

    def __init__(self, card: Card, origin: Origin | None = None) -> None:
        self.card = card
        self.origin = origin or origin_of(card)
        self._points: dict[tuple[str, str], list[tuple[Sizes, float]]] = {}
        self._known: dict[Operation, float] = {}
        self.gap, self.forward, self.backward, self.listed = GAP, LAUNCH, LAUNCH, LISTED
        self.own = OWN
        self.link = (card.host_link or find_card(ASSUMED_CARD).host_link) * 1e9 * LINK
        """Bytes a second between the host and the card."""
        self.peers = card.peer_link * 1e9 * PEERS if card.peer_link else self.link / 2
        """Bytes a second from card to card; without a link of their own they go up and down that to the host."""
        self.within = 1.0
        """By which operations take longer within a step."""
        rates = self.origin.rates
        if rates is not None:
            self.within = WITHIN
            self.gap, self.forward, self.backward, self.listed = rates.gap, rates.forward, rates.backward, rates.listed
            self.link = 2**30 / rates.link
            self.peers = self.peers if card.peer_link else self.link / 2
            self._learn(rates, self.origin.base or card)

    def seconds(self, work: Operation) -> float:
        """Of one operation, with the gap to the next."""
        found = self._known.get(work)
        if found is None:
            found = self._known[work] = self.gap + self._multiple(work) * bound(self.card, work)
        return found

    def _learn(self, rates: Rates, base: Card) -> None:
        """Keep each measurement as a multiple of its bound on the card that it is of."""
        for work, seconds in measurements(rates):
            multiple = max(seconds - rates.gap, 1e-9) / bound(base, work, rates.multiprocessors)
            self._points.setdefault((work.family, work.form), []).append((_place(work), math.log(multiple)))

    def _multiple(self, work: Operation) -> float:
        """By which an operation takes longer than its bound."""
        for form in _forms(work):
            points = self._points.get((work.family, form))
            if points:
                return math.exp(interpolated(points, _place(work)))
        if work.family == "pass":
            return 1 / BANDWIDTH
        share = ATTENTION if work.family == "attention" else MATMUL
        computing, moving = _bounds(self.card, work, flat=True)
        return max(computing / share, moving / BANDWIDTH) / bound(self.card, work)


def bound(card: Card, work: Operation, multiprocessors: int | None = None) -> float:
    """Seconds that an operation takes at least by the data sheet."""
    return max(*_bounds(card, work, multiprocessors), 1e-12)


def _bounds(
    card: Card, work: Operation, multiprocessors: int | None = None, *, flat: bool = False
) -> tuple[float, float]:
    moving = work.bytes / ((card.bandwidth or find_card(ASSUMED_CARD).bandwidth) * 1e9)
    if work.family == "pass":
        return 0.0, moving
    computing = work.flops / rate_of(card, work.dtype)
    if work.family == "attention":
        return CAUSAL * computing, moving
    if work.sizes and not flat:
        computing *= unfilled(work.sizes, multiprocessors or Gpu.of(card.capability).multiprocessors)
    return computing, moving


def rate_of(card: Card, dtype: str) -> float:
    """Floating-point operations a second of the data sheet, of a type; in float32 where it has no units for it."""
    rates = card.matmul or find_card(ASSUMED_CARD).matmul
    if dtype.startswith("float8") and card.capability >= (8, 9) and "bfloat16" in rates:
        return 2e12 * rates["bfloat16"]  # on all of NVIDIA's cards that have units for it
    return 1e12 * rates.get(dtype, rates["float32"])


@functools.lru_cache(maxsize=4096)
def unfilled(sizes: tuple[int, ...], multiprocessors: int) -> float:
    """By which a product takes longer than its operations, since its blocks fill no whole number of rounds of all
    multiprocessors; 1 for those that do.
    """
    batch, rows, columns, _ = sizes
    found = []
    for height, width, speed in TILES:
        blocks = batch * -(-rows // height) * -(-columns // width)
        rounds = -(-blocks // multiprocessors) * multiprocessors
        found.append(rounds * height * width / (speed * batch * rows * columns))
    return min(found)


def measurements(rates: Rates) -> Iterable[tuple[Operation, float]]:
    """What was measured, as work, with its seconds."""
    for made in rates.products:
        sizes = made.batch, made.rows, made.columns, made.inner
        yield product(made.dtype, sizes, aligned=made.aligned, added=made.added), made.seconds
    for one in rates.attention:
        yield attention(one.dtype, (one.heads, one.tokens, one.size), f"{one.direction} {one.kernel}"), one.seconds
    for passed in rates.passes:
        yield Operation("pass", bytes=passed.bytes, form=passed.kind), passed.seconds


def product(
    dtype: str, sizes: tuple[int, int, int, int], *, aligned: bool, added: bool, moved: int | None = None
) -> Operation:
    """Products of these sizes; `moved` are their bytes, where they are known better."""
    batch, rows, columns, inner = sizes
    if moved is None:
        results = 2 if added or dtype.startswith("float8") else 1  # of 8 bits: results of 16
        moved = _width(dtype) * batch * (rows * inner + inner * columns + results * rows * columns)
    form = f"{_class(dtype)} {'aligned' if aligned else 'misaligned'}"
    return Operation("product", dtype, 2 * batch * rows * columns * inner, moved, form, sizes)


def attention(dtype: str, sizes: tuple[int, int, int], form: str) -> Operation:
    """Attention of so many heads and tokens; `form` is a direction and a kernel."""
    heads, tokens, size = sizes
    products, tensors = (2, 4) if form.startswith("forward") else (5, 8)
    flops = products * 2 * heads * tokens * tokens * size
    return Operation("attention", dtype, flops, tensors * heads * tokens * size * _width(dtype), form, sizes)


def is_aligned(tensor: Any) -> bool:
    """Whether each row of a tensor, or column where those lie together, begins at a multiple of 16 bytes."""
    strides = [stride for stride in tensor.stride()[-2:] if stride > 1]
    return all(stride * tensor.element_size() % 16 == 0 for stride in strides)


def interpolated(points: list[tuple[Sizes, float]], at: Sizes) -> float:
    """The value at a place between others; that of a point at the point itself. Outside of all, that of the nearest
    place which is not: the mean of all points, to which weights of distances tend there, has those of the smallest too.
    """
    sides = list(zip(*(place for place, _ in points), strict=True))
    at = tuple(min(max(one, min(side)), max(side)) for one, side in zip(at, sides, strict=True))
    total = weights = 0.0
    for place, value in points:
        distance = sum((one - other) ** 2 for one, other in zip(place, at, strict=True))
        if distance < 1e-9:
            return value
        weight = distance ** (-POWER / 2)
        total += weight * value
        weights += weight
    return total / weights


def _forms(work: Operation) -> tuple[str, ...]:
    """Of measurements that may stand for it, the likest first."""
    if work.family == "pass":
        return work.form, "pointwise", "copy"
    if work.family == "product":
        kind, _, alignment = work.form.partition(" ")
        likes = ("half",) if kind == "half" else (kind, "half") if kind == "float8" else (kind,)
        return tuple(f"{like} {one}" for like in likes for one in dict.fromkeys((alignment, "aligned")))
    direction = work.form.partition(" ")[0]
    kernels = (work.form.partition(" ")[2], "flash", "cudnn", "efficient")
    return tuple(f"{direction} {kernel}" for kernel in dict.fromkeys(kernels))


def _place(work: Operation) -> Sizes:
    """Where it is among measurements. Of attention count the tokens of all heads together, whose blocks all
    multiprocessors compute: eight heads of a long row keep a card as busy as 32.
    """
    if work.family == "pass":
        return (math.log(max(work.bytes, 1)),)
    first, *others = work.sizes
    first *= others[0] if work.family == "attention" else 1
    return tuple(math.log(max(size, 1)) for size in (first, *others))


def _class(dtype: str) -> str:
    return {"bfloat16": "half", "float16": "half"}.get(dtype, "float8" if dtype.startswith("float8") else dtype)


def _width(dtype: str) -> int:
    return 1 if dtype.startswith("float8") else 2 if dtype in ("bfloat16", "float16") else 4
