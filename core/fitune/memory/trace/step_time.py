"""The work of an optimizer step, as its trace sees it, and how long a card takes for it.

Each operation takes the longer of two times: its floating-point operations over the card's rate, its bytes over the
bandwidth of the card's memory (Williams et al., "Roofline", CACM 2009), and a gap to the next. A step takes the sum of
those, but no less than the host needs to launch them all, and than the link to the host needs for what is copied over
it. The shares of the data sheet's rates that are reached were chosen by runs on an H100
(`benchmarks/fit/compositions.json` compares); where compositions are compared on one card they mostly cancel out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry

from fitune.memory.cards.cards import Card, find_card

MATMUL, ATTENTION, BANDWIDTH, LINK = 0.70, 0.45, 0.75, 0.75
"""Shares of a data sheet's rates that are reached."""

LAUNCH = 9e-6
"""Seconds of the host for each operation, Python and autograd included."""

GAP = 2e-6
"""Seconds of the card between two operations."""

CAUSAL = 0.5
"""Share of the square of tokens that causal attention computes."""

ATTENTION_NAMES = ("_attention", "_varlen_attn")

NO_BYTES = ("aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.detach", "aten.alias", "aten.lift_fresh")
"""Operations that touch no memory of the card, beside those that give views."""

OF_RESULTS = ("aten.embedding.", "aten.index_select.", "aten.gather.", "aten.index.", "aten.slice_scatter.")
"""Operations that read as much as they write, however large what they read from is."""

ASSUMED = "a10g"
"""The card whose rates stand for those that are not known."""

Kind = tuple[str, str, int, int]
"""(Products of matrices, attention or other; type; floating-point operations; bytes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """How long a step takes, each as if nothing else took longer."""

    card: float
    host: float
    link: float

    @property
    def step(self) -> float:
        """The longest: card, host and link work at the same time."""
        return max(self.card, self.host, self.link)


@dataclass(slots=True)
class Work:
    """What is counted of one step: of its micro-batches, and of the rest."""

    micro: Counter[Kind] = field(default_factory=Counter)
    rest: Counter[Kind] = field(default_factory=Counter)
    moved: int = 0
    """Bytes over the link to the host, of its micro-batches."""
    graphs: bool = False
    """Whether a micro-batch is one launch: a CUDA graph."""

    def note(self, func: Any, name: str, arguments: Sequence[Any], results: Any, flops: int, times: int) -> None:
        """Count an operation of a micro-batch."""
        kind = kind_of(func, name, arguments, results, flops)
        if kind is not None:
            self.micro[kind] += times

    def note_rest(self, func: Any, name: str, arguments: Sequence[Any], results: Any, flops: int, times: int) -> None:
        """Count an operation that a step does once."""
        kind = kind_of(func, name, arguments, results, flops)
        if kind is not None:
            self.rest[kind] += times

    def seconds(self, card: Card, *, traced: int, accumulation: int) -> Seconds:
        """Of a step of `accumulation` micro-batches, of which `traced` were counted."""
        factor = accumulation / traced
        on_card = factor * _on_card(self.micro, card) + _on_card(self.rest, card)
        launches = (accumulation if self.graphs else factor * self.micro.total()) + self.rest.total()
        rate = (card.host_link or find_card(ASSUMED).host_link) * 1e9 * LINK
        return Seconds(card=on_card, host=launches * LAUNCH, link=factor * self.moved / rate)


def kind_of(func: Any, name: str, arguments: Sequence[Any], results: Any, flops: int) -> Kind | None:
    """What an operation takes; None for one that does nothing on the card."""
    if name.startswith(NO_BYTES) or _is_view(func, name):
        return None
    given = [a for a in arguments if isinstance(a, Tensor) and a.is_meta]
    made = [r for r in ((results,) if isinstance(results, Tensor) else _flat(results)) if r.is_meta]
    if not given:
        lists = [argument for argument in arguments if isinstance(argument, (list, tuple))]
        given = [a for argument in lists for a in argument if isinstance(a, Tensor) and a.is_meta]
    if not given and not made:
        return None
    written = sum(_bytes(tensor) for tensor in made)
    read = written if name.startswith(OF_RESULTS) else sum(_bytes(tensor) for tensor in given)
    family = "" if not flops else "attention" if any(part in name for part in ATTENTION_NAMES) else "matmul"
    return family, str(given[0].dtype)[6:] if family and given else "", flops, read + written


def rate_of(card: Card, dtype: str) -> float:
    """Floating-point operations a second of the data sheet, of a type; in float32 where it has no units for it."""
    rates = card.matmul or find_card(ASSUMED).matmul
    return 1e12 * rates.get(dtype, rates["float32"])


def _on_card(work: Counter[Kind], card: Card) -> float:
    bandwidth = (card.bandwidth or find_card(ASSUMED).bandwidth) * 1e9 * BANDWIDTH
    total = 0.0
    for (family, dtype, flops, size), times in work.items():
        computing = 0.0
        if family == "attention":
            computing = CAUSAL * flops / (ATTENTION * rate_of(card, dtype))
        elif family:
            computing = flops / (MATMUL * rate_of(card, dtype))
        total += times * (GAP + max(computing, size / bandwidth))
    return total


_VIEWS: dict[str, bool] = {}


def _is_view(func: Any, name: str) -> bool:
    known = _VIEWS.get(name)
    if known is None:
        returned = func._schema.returns
        known = bool(returned) and all(r.alias_info is not None and not r.alias_info.is_write for r in returned)
        _VIEWS[name] = known
    return known


def _flat(results: Any) -> list[Tensor]:
    return [r for r in results if isinstance(r, Tensor)] if isinstance(results, (tuple, list)) else []


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _attention(query: Any, key: Any, products: int) -> int:
    """Products of queries `[B, H, S, D]` with keys `[B, K, T, D]`, of which grouped heads are used anew."""
    rows, heads, tokens, size = query.shape
    return int(products * 2 * rows * heads * tokens * key.shape[2] * size)


def _forward(args: Any, out: Any) -> int:
    return _attention(args[0], args[1], 2)


def _backward(args: Any, out: Any) -> int:
    return _attention(args[1], args[2], 5)


KERNELS = ("flash", "efficient", "cudnn")

OTHERS: dict[str, Callable[..., int]] = {
    **{f"aten._scaled_dot_product_{kernel}_attention.default": _forward for kernel in KERNELS},
    **{f"aten._scaled_dot_product_{kernel}_attention_backward.default": _backward for kernel in KERNELS},
    # torch has a formula for the first, which takes ten times as long
    "aten.mm.default": lambda args, out: 2 * args[0].numel() * args[1].shape[-1],
    "aten.addmm_.default": lambda args, out: 2 * args[1].numel() * args[2].shape[-1],
    # rows x inputs x outputs: bitsandbytes multiplies by a weight that it dequantises first
    "bitsandbytes.gemm_4bit.default": lambda args, out: 2 * args[0].numel() * out.shape[-1],
    # each token with all tokens of the longest document, as if all were of that length
    "torch_attn._varlen_attn.default": lambda args, out: 4 * args[0].numel() * args[5],
    "torch_attn._varlen_attn_backward.default": lambda args, out: 10 * args[1].numel() * args[8],
}
"""Formulas by name, `(arguments, results) -> operations`, where torch has none, or refuses grouped heads."""


def flops_of(operation: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], results: Any) -> int:
    """Of one call of an operation; 0 for those that are not counted. Each multiply-add is two.

    Products of matrices by torch's formulas (`torch.utils.flop_counter`); attention counts the whole square of tokens.
    """
    other = OTHERS.get(name)
    if other is not None:
        return other(args, results)
    formula = flop_registry.get(operation._overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=results))
