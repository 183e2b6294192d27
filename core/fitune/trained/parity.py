"""Parity: whether a merged model says what the base with its adapter says, measured on real rows.

Three models see the same rows: the base (b), the base with what was trained, in the type that it was trained in (a),
and the merged one, read from its files (m). Rounding keeps a and m apart, so two figures are held against limits:

* the relative difference, |m - a| / |a|, of all logits, each position's less their mean, which changes no probability;
* the share of the adapter's effect that m has, <m - b, a - b> / <a - b, a - b>. Rounding has little direction, so this
  is near 1, while a layer that was left out is a part of the effect that is missing.

How far rounding alone takes them was measured on SmolLM2-135M (benchmarks/merge_parity.json): a relative difference of
2e-6 in float32, 0.004 in float16 and 0.04 in bfloat16, and a share that is 1e-6, 0.001 and 0.02 away from 1; where
layers of bitsandbytes in 8 bits round their inputs too, 0.119 and 0.011 whether it is merged to float32 or float16, and
0.118 and 0.049 in bfloat16. The limits are twice that and more. A merge
without one of the 210 adapted layers has 1.3 % less of the effect: of a run in float32 it is refused in float32 and
float16, but where bfloat16 is trained in or merged to it cannot be told from rounding.

A model that was trained in a coarser type and is merged to float32 is compared with itself before it was merged, cast
to float32, too: that is the same arithmetic but for its order, whatever the type that was trained in.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fitune.trained.seen import Seen

if TYPE_CHECKING:
    pass


LIMITS: dict[torch.dtype, float] = {
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 8e-2,
    torch.int8: 26e-2,
}
"""Largest relative difference of a right merge, by the coarser of the types that were trained in and merged to."""

SHARES: dict[torch.dtype, float] = {
    torch.float32: 1e-3,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
    torch.int8: 1e-1,
}
"""How far the share of the effect may be from 1, beside what the relative difference itself explains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """A merged model beside what it was merged from, measured; logits in their own unit, losses in nats a token."""

    rows: int
    source: str
    """What the rows are: "held-out data", "training data" or a file's name."""
    positions: int
    """Positions whose logits are compared."""
    trained_dtype: str
    dtype: str
    """Of the merged weights."""
    largest_difference: float
    """Of all logits."""
    largest_logit: float
    """Of the model with its adapter, without sign."""
    relative_difference: float
    """|m - a| / |a|, root of mean squares, each position less its mean."""
    limit: float
    """Of the relative difference."""
    effect: float
    """|a - b| / |a|: how much what was trained changes the logits."""
    share: float | None
    """Of that effect, what the merged model has; None if there is none."""
    share_limit: float
    """How far the share may be from 1."""
    cast_difference: float | None
    """As the relative difference, from the model with its adapter cast to float32; None if that is what was trained in,
    or not what is merged to."""
    kl: float
    """Mean divergence of the merged model's next-token distributions from the adapter's, in nats."""
    same_top: float
    """Share of positions with the same likeliest token, 0 to 1."""
    loss_base: float
    loss_adapter: float
    loss_merged: float
    unrun: str = ""
    """What of the model with its adapter could not be run as it was trained on, and what was in its place; empty where
    all of it ran."""
    of_texts: bool = False
    """Whether what is compared is a score of each text, in place of logits of each position; `kl` and `same_top` are no
    numbers then."""

    @property
    def wrong(self) -> str | None:
        """What is over its limit, in words; None if nothing is."""
        if not self.relative_difference <= self.limit:  # no number is over it, too
            return f"the relative difference is {self.relative_difference:.3g}, over {self.limit:.3g}"
        if self.cast_difference is not None and not self.cast_difference <= self.cast_limit:
            what = "the relative difference from the adapter cast to float32"
            return f"{what} is {self.cast_difference:.3g}, over {self.cast_limit:.3g}"
        if self.share is not None and not abs(self.share - 1) <= self.share_limit:
            return (
                f"the merged model has {self.share:.4f} of the adapter's effect, further than {self.share_limit:.3g} "
                "from 1"
            )
        return None

    @property
    def cast_limit(self) -> float:
        """Of `cast_difference`."""
        return min(self.limit, LIMITS[torch.float32])

    @property
    def lines(self) -> tuple[str, ...]:
        """The figures, for a person."""
        what, places = ("scores", "texts") if self.of_texts else ("logits", "positions")
        share = "none" if self.share is None else f"{self.share:.4f} of it is in the merged model"
        return (
            f"parity on {self.rows} rows of {self.source}, {self.positions:,} {places}, "
            f"{self.trained_dtype} with adapter and {self.dtype} merged (measured)",
            *((f"  not run  {self.unrun} what is compared with",) if self.unrun else ()),
            f"  {what}   differ by {self.largest_difference:.3g} at most, of {self.largest_logit:.3g}; "
            f"relative {self.relative_difference:.3g}, limit {self.limit:.3g}",
            *(
                ()
                if self.cast_difference is None
                else (
                    f"  cast     to float32 without merging: {self.cast_difference:.3g}, limit {self.cast_limit:.3g}",
                )
            ),
            f"  effect   of what was trained {self.effect:.3g}; {share}",
            *(
                ()
                if self.of_texts
                else (f"  next token  the same in {100 * self.same_top:.2f} %; divergence {self.kl:.2e} nats",)
            ),
            f"  loss     {self.loss_adapter:.6f} with adapter, {self.loss_merged:.6f} merged, "
            f"{self.loss_base:.6f} without it",
        )

    def values(self) -> dict[str, Any]:
        """As JSON has it, which knows no infinity."""
        found = dataclasses.asdict(self)
        kept = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}
        return {**kept, "wrong": self.wrong}


def compare(
    base: Seen,
    adapter: Seen,
    merged: Seen,
    *,
    source: str,
    trained: torch.dtype,
    dtype: torch.dtype,
    limit: float | None = None,
    cast: Seen | None = None,
    rounded: bool = False,
    halved: bool = False,
    unrun: str = "",
) -> Parity:
    """The merged model beside the one with its adapter; `limit` takes the place of both of the types' limits.

    `cast` is the one with its adapter again, in float32. If `rounded`, that with its adapter rounds what its layers
    take to 8 bits, which the merged one does not; if `halved`, they may compute in 16 bits whatever its type is.
    """
    types = (trained, dtype, *((torch.int8,) if rounded else ()), *((torch.bfloat16,) if halved else ()))
    sums = _Sums(of_texts=adapter.of_texts)
    for b, a, m in zip(base.logits, adapter.logits, merged.logits, strict=True):
        sums.add(b, a, m)
    relative = math.sqrt(sums.difference / sums.logits)
    effect = math.sqrt(sums.effect / sums.logits)
    # Rounding noise that a has and m has not, or in another way, is a part of a - b: by it, the share is less than 1.
    noise = (relative / effect) ** 2 if effect else 0.0
    return Parity(
        rows=len(adapter.logits),
        source=source,
        positions=sums.positions,
        trained_dtype=str(trained).removeprefix("torch."),
        dtype=str(dtype).removeprefix("torch."),
        largest_difference=sums.largest,
        largest_logit=sums.highest,
        relative_difference=relative,
        limit=_limit(LIMITS, *types) if limit is None else limit,
        effect=effect,
        share=sums.along / sums.effect if sums.effect else None,
        share_limit=noise + (_limit(SHARES, *types) if limit is None else limit),
        cast_difference=None if cast is None else _relative(cast, merged),
        kl=math.nan if adapter.of_texts else sums.divergence / sums.positions,
        same_top=math.nan if adapter.of_texts else sums.same / sums.positions,
        loss_base=base.loss,
        loss_adapter=adapter.loss,
        loss_merged=merged.loss,
        unrun=unrun,
        of_texts=adapter.of_texts,
    )


def _limit(limits: dict[torch.dtype, float], *dtypes: torch.dtype) -> float:
    """Of the coarsest type."""
    return max(limits.get(dtype, limits[torch.bfloat16]) for dtype in dtypes)


class _Sums:
    """Over all positions that are compared; squares in float64."""

    def __init__(self, *, of_texts: bool) -> None:
        self.of_texts = of_texts
        self.positions = self.same = 0
        self.logits = self.difference = self.effect = self.along = self.divergence = 0.0
        self.largest = self.highest = 0.0

    def add(self, b: Tensor, a: Tensor, m: Tensor) -> None:
        """The logits of one row."""
        self.positions += a.numel() if self.of_texts else len(a)
        self.same += int((a.argmax(-1) == m.argmax(-1)).sum())
        largest = (m - a).abs().max().item()
        self.largest = max(self.largest, largest) if largest == largest else largest
        self.highest = max(self.highest, a.abs().max().item())
        divergence = F.kl_div(m.log_softmax(-1), a.log_softmax(-1), reduction="sum", log_target=True)
        self.divergence += divergence.double().item()
        whole = a if self.of_texts else centred(a)
        away, effect = (m - a, a - b) if self.of_texts else (centred(m - a), centred(a - b))
        self.logits += _square(whole)
        self.difference += _square(away)
        self.effect += _square(effect)
        self.along += (away * effect).sum(dtype=torch.float64).item() + _square(effect)


def _relative(a: Seen, m: Seen) -> float:
    """|m - a| / |a|."""
    sums = _Sums(of_texts=a.of_texts)
    for one, other in zip(a.logits, m.logits, strict=True):
        sums.add(one, one, other)
    return math.sqrt(sums.difference / sums.logits)


def centred(logits: Tensor) -> Tensor:
    """Each position's logits less their mean."""
    return logits - logits.mean(-1, keepdim=True)


def _square(values: Tensor) -> float:
    return values.square().sum(dtype=torch.float64).item()
