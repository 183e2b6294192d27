"""`ft data`: what a recipe will train on, in numbers and in text, without a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from fitune.data.prepared import Prepared
from fitune.data.split import Share
from fitune.plugin.dataflow import IGNORED, Example
from fitune.plugin.objective import CHOSEN, MISMATCHED, REJECTED

BAR = 40
"""Columns of the longest bar of a histogram."""

BINS = 12
"""Most bars of a histogram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The numbers of one set of prepared rows."""

    flow: list[tuple[str, int]]
    """What each stage gave."""
    notes: list[tuple[str, int]]
    """What the stages counted."""
    shares: list[Share]
    """What `[eval] fraction` holds out of each source; none where each row tells by itself."""
    rows: int
    documents: int
    tokens: int
    targets: int
    """Tokens that are trained on."""
    length: int
    """`[train] length`."""
    longest: int
    """Tokens of the longest row."""
    histogram: list[tuple[int, int, int]]
    """Documents by tokens, before any is cut or packed: (from, to, how many), both ends inside. Where answers are
    compared, both documents of a row together."""
    packed: bool
    cached: bool
    lasting: bool
    roles: list[tuple[str, int]]
    """Where answers are compared: the roles of documents, e.g. "chosen", and how many there are of each."""

    @property
    def efficiency(self) -> float:
        """Share of rows x length that holds tokens."""
        return self.tokens / (self.rows * self.length)

    @property
    def target_share(self) -> float:
        """Share of tokens that are trained on."""
        return self.targets / self.tokens

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {**asdict(self), "efficiency": self.efficiency, "target_share": self.target_share}

    def lines(self) -> Iterator[str]:
        """Everything, for people."""
        if self.cached:
            yield "prepared before, and found in the cache"
        else:
            yield f"prepared now, and {'kept for the next start' if self.lasting else 'not kept for the next start'}"
        for name, number in self.flow:
            yield f"  {name:<24}{number:>12,}"
        for what, number in self.notes:
            yield f"    {what}: {number:,}"
        for share in self.shares:
            other = "" if share.held_out == share.asked else f", not {share.asked:,}: equal rows stay on one side"
            yield f"    held out: {share.held_out:,} of {share.rows:,} rows of {share.source}{other}"
        what = "rows by tokens of both documents" if self.roles else "documents by tokens"
        yield f"{what}, before any is cut{' or packed' if self.packed else ''}"
        most = max(number for _, _, number in self.histogram)
        for first, last, number in self.histogram:
            yield f"  {f'{first:,}-{last:,}':>15} {'#' * math.ceil(BAR * number / most):<{BAR}} {number:,}"
        what = f"{self.rows:,} rows of {self.documents:,} documents" if self.packed else f"{self.rows:,} rows"
        yield f"{what}, {self.tokens:,} tokens, the longest {self.longest:,} of {self.length:,}"
        yield f"trained on: {self.targets:,} tokens, {100 * self.target_share:.1f} %"
        if self.roles:
            yield f"documents: {', '.join(f'{number:,} {role}' for role, number in self.roles)}"
        if self.packed:
            yield f"packing efficiency {self.efficiency:.4f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """A row as text."""

    row: int
    """Its number, counted from 1."""
    origin: str
    tokens: int
    targets: int
    documents: Sequence[int]
    """Tokens of each of its documents."""
    roles: Sequence[str] | None
    """Where answers are compared, what each document is to the others; else None."""
    pieces: Sequence[tuple[str, str]]
    """Its text, in runs of one kind: (kind, text)."""

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        said = asdict(self)
        if self.roles is None:
            del said["roles"]
        return {**said, "pieces": [{"kind": kind, "text": text} for kind, text in self.pieces]}


def shown_row(number: int, example: Example, tokenizer: Any) -> ShownRow:
    """A row as it is shown; `number` is counted from 0."""
    return ShownRow(
        row=number + 1,
        origin=str(example.origin),
        tokens=len(example.input_ids),
        targets=example.targets,
        documents=list(example.lengths),
        roles=roles_of(example) if "role" in example.extras else None,
        pieces=pieces(example, tokenizer),
    )


def survey(data: Prepared, length: int) -> Survey:
    """Count everything in prepared rows."""
    tokens = targets = documents = longest = 0
    packed = False
    roles: Counter[str] = Counter()
    for example in data.rows:
        tokens += len(example.input_ids)
        targets += example.targets
        documents += max(1, len(example.lengths))
        of_row = roles_of(example)
        roles.update(of_row)
        packed = packed or len(example.lengths) > (2 if of_row else 0)
        longest = max(longest, len(example.input_ids))
    return Survey(
        flow=data.flow,
        notes=data.notes,
        shares=data.shares,
        rows=len(data.rows),
        documents=documents,
        tokens=tokens,
        targets=targets,
        length=length,
        longest=longest,
        histogram=histogram(data.lengths),
        packed=packed,
        cached=data.cached,
        lasting=data.lasting,
        roles=list(roles.items()),
    )


def roles_of(example: Example) -> list[str]:
    """What each document of a row is to the others; none where answers are not compared."""
    numbers = example.extras.get("role", ())
    judged = MISMATCHED in numbers
    words = {CHOSEN: "desirable" if judged else "chosen", REJECTED: "undesirable" if judged else "rejected"}
    return [words.get(number, "with another row's answer") for number in numbers]


def histogram(lengths: Counter[int]) -> list[tuple[int, int, int]]:
    """At most `BINS` bins of one round width that hold all lengths: (from, to, how many)."""
    longest = max(lengths)
    raw = (longest + 1) / BINS
    unit = 10 ** math.floor(math.log10(max(raw, 1)))
    width = next(unit * step for step in (1, 2, 5, 10) if unit * step >= raw)
    bins: Counter[int] = Counter()
    for length, number in lengths.items():
        bins[length // width] += number
    return [(n * width, (n + 1) * width - 1, bins[n]) for n in range(min(bins), max(bins) + 1)]


def pieces(example: Example, tokenizer: Any) -> list[tuple[str, str]]:
    """A row's text in runs of one kind: (kind, text), kind being trained, context, special or trained special.

    A border of documents is a run of the kind `border`, whose text is the role of the one behind it, where it has one.
    """
    # Markers of turns are special tokens, but not all of them have a name among the tokenizer's.
    special = {*tokenizer.all_special_ids, *(n for n, t in tokenizer.added_tokens_decoder.items() if t.special)}
    kinds = [
        ("trained special" if label != IGNORED else "special")
        if token in special
        else ("trained" if label != IGNORED else "context")
        for token, label in zip(example.input_ids.tolist(), example.labels.tolist(), strict=True)
    ]
    found: list[tuple[str, str]] = []
    start = 0
    roles = roles_of(example)
    for number, length in enumerate(example.lengths or (len(kinds),)):
        if start or roles:
            found.append(("border", roles[number] if roles else ""))
        ids, before = example.input_ids[start : start + length].tolist(), ""
        for kind, run in groupby(range(length), key=lambda at: kinds[start + at]):
            # What a run adds to the text before it: some decoders drop the space that a run by itself begins with.
            text = str(tokenizer.decode(ids[: max(run) + 1], clean_up_tokenization_spaces=False))
            found.append((kind, text[len(before) :]))
            before = text
        start += length
    return found
