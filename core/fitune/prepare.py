"""From a recipe's sources, through its stages, to rows that are ready to be batched: counted, guarded and cached."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fitune._version import __version__
from fitune.contract import blame
from fitune.dataflow import Batch, DataContext, Example, Stage
from fitune.errors import DataError
from fitune.options import to_table
from fitune.recipe import Data, Recipe, Use
from fitune.records import DataStage
from fitune.store import Rows, Writer, build_or_open

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
Uses = Sequence[Use[DataStage[Any]]]
Part = Literal["all", "train", "held out"]
"""Which rows of the sources: all of them, or one side of the held-out split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Data that are ready to be batched."""

    rows: Rows
    cached: bool
    """Whether they were prepared before, by an equal recipe on equal data."""
    kept: object
    """What must live as long as the rows do."""

    @property
    def flow(self) -> list[tuple[str, int]]:
        """What each stage gave: (name, how many)."""
        return [(str(name), int(number)) for name, number in self.rows.meta["flow"]]

    @property
    def notes(self) -> list[tuple[str, int]]:
        """What the stages counted, e.g. rows cut: (what, how many)."""
        return [(str(what), int(number)) for what, number in self.rows.meta["notes"]]

    @property
    def highest(self) -> int:
        """The highest token id in the rows."""
        return int(self.rows.meta["highest"])

    @property
    def lengths(self) -> Counter[int]:
        """Tokens of documents before any was cut or packed: how many there are of each length."""
        return Counter({int(length): int(number) for length, number in self.rows.meta["lengths"]})


def context_of(recipe: Recipe, tokenizer: Any) -> DataContext:
    """What the data stages of a recipe may know."""
    return DataContext(
        tokenizer=tokenizer,
        length=recipe.train.length,
        seed=recipe.general.seed,
        skip_bad_rows=recipe.data.bad_rows == "skip",
    )


def training_data(recipe: Recipe, context: DataContext) -> Prepared:
    """The rows to train on."""
    part: Part = "train" if recipe.evaluation.fraction else "all"
    return prepare(recipe.sources, recipe.stages, context, recipe, part)


def held_out_data(recipe: Recipe, context: DataContext) -> Prepared | None:
    """The rows to evaluate on, from sources of their own or by the recipe's fraction; None if it names neither."""
    stages = tuple(use for use in recipe.stages if not use.record.packs)
    if recipe.eval_sources:
        return prepare(recipe.eval_sources, stages, context, recipe, "all")
    if recipe.evaluation.fraction:
        return prepare(recipe.sources, stages, context, recipe, "held out")
    return None


def prepare(sources: Uses, stages: Uses, context: DataContext, recipe: Recipe, part: Part) -> Prepared:
    """Take the sources through all stages but the last, which makes batches; or find what an equal call made before.

    Raises `DataError` for rows that cannot be used, and if too many of them have nothing to train on.
    """
    fraction = recipe.evaluation.fraction or 0.0
    key = _key(sources, stages, context, [part, fraction, recipe.data.max_empty]) if recipe.data.cache else None

    def build(writer: Writer) -> dict[str, Any]:
        chain = _Chain(context, recipe.data)
        stream = chain.through(chain.read(sources, part, fraction), stages[:-1])
        rows = writer.write(stream)
        chain.guard(rows)
        return chain.meta()

    stored = build_or_open(key, build)
    return Prepared(rows=stored.rows, cached=stored.hit, kept=stored)


def batch_maker(stages: Uses, context: DataContext) -> Stage:
    """The last stage, which turns lists of examples into batches."""
    last = stages[-1]
    make = last.record.make(last.options, context)

    def batches(micro_batches: Iterator[Any]) -> Iterator[Batch]:
        with blame(f'data stage "{last.record.name}"'):
            yield from make(micro_batches)

    return batches


def batches(rows: Sequence[Example], picks: Sequence[NDArray[np.int64]], make: Stage) -> Iterator[Batch]:
    """The batches of these rows, one a pick."""
    return make([rows[int(row)] for row in pick] for pick in picks)


class _Chain:
    """One pass of data through the stages, and what is counted on the way."""

    def __init__(self, context: DataContext, settings: Data) -> None:
        self.notes: Counter[str] = Counter()
        self.flow: dict[str, int] = {}
        self.lengths: Counter[int] = Counter()
        self.highest = 0
        self.settings = settings
        self.context = replace(context, count=self._count)
        self._empty = "rows left out: no token to train on"

    def _count(self, what: str) -> None:
        self.notes[what] += 1

    def read(self, sources: Uses, part: Part, fraction: float) -> Iterator[Any]:
        """The rows of all sources, one after another."""
        streams = []
        for use in sources:
            stage = use.record.make(use.options, self.context)
            weight = 1.0 if use.weight is None else use.weight
            stream = weighted(partial(stage, iter(())), weight, self.context.seed)
            streams.append(self._counted(use.record.name, _side(stream, part, fraction, self.context.seed)))
        return itertools.chain.from_iterable(streams)

    def through(self, stream: Iterator[Any], stages: Uses) -> Iterator[Example]:
        """The rows through these stages."""
        measured = False
        for use in stages:
            stream = use.record.make(use.options, self.context)(stream)
            if use.record.gives == "examples" and not measured:
                stream, measured = self._measured(stream), True
            if use.record.gives == "examples":
                stream = self._with_targets(stream)
            stream = self._counted(use.record.name, stream)
        return self._checked(stream)

    def guard(self, rows: int) -> None:
        """Refuse data in which too little is trained on. Raises `DataError`."""
        empty = self.notes[self._empty]
        documents = sum(self.lengths.values())
        if rows == 0:
            said = "; ".join(f"{what}: {number}" for what, number in self.notes.items())
            raise DataError(f"no row is left to train on{f' ({said})' if said else ': the sources are empty'}")
        if empty > self.settings.max_empty * documents:
            raise DataError(
                f"{empty} of {documents} rows have no token to train on, more than [data] max_empty = "
                f"{self.settings.max_empty} allows. Look at them with: ft data RECIPE"
            )

    def meta(self) -> dict[str, Any]:
        """What is kept with the rows."""
        return {
            "flow": list(self.flow.items()),
            "notes": list(self.notes.items()),
            "lengths": sorted(self.lengths.items()),
            "highest": self.highest,
        }

    def _counted(self, name: str, stream: Iterator[T]) -> Iterator[T]:
        while name in self.flow:  # a stage that stands in the recipe twice
            name += "'"
        self.flow[name] = 0  # now, in the recipe's order, not when the first row comes by

        def counted() -> Iterator[T]:
            with blame(f'data stage "{name}"'):
                for item in stream:
                    self.flow[name] += 1
                    yield item

        return counted()

    def _measured(self, stream: Iterator[Example]) -> Iterator[Example]:
        for example in stream:
            self.lengths[len(example.input_ids)] += 1
            yield example

    def _with_targets(self, stream: Iterator[Example]) -> Iterator[Example]:
        for example in stream:
            if example.targets:
                yield example
            else:
                self._count(self._empty)

    def _checked(self, stream: Iterator[Example]) -> Iterator[Example]:
        for example in stream:
            self.highest = max(self.highest, int(example.input_ids.max()))
            if len(example.input_ids) > self.context.length:
                raise DataError(
                    f"{example.origin}: {len(example.input_ids)} tokens, over [train] length = {self.context.length}. "
                    'Add a [[data.stage]] with use = "truncate" behind those that lengthen rows'
                )
            yield example


def weighted(read: Callable[[], Iterator[T]], weight: float, seed: int) -> Iterator[T]:
    """A stream `weight` times over: whole passes, and of the rest a random part that depends on seed and position."""
    passes, rest = int(weight), weight - int(weight)
    for _ in range(passes):
        yield from read()
    if rest:
        for position, item in enumerate(read()):
            if _uniform(f"{seed}:{position}".encode()) < rest:
                yield item


def _side(stream: Iterator[T], part: Part, fraction: float, seed: int) -> Iterator[T]:
    """One side of the held-out split. Equal rows fall on one side, so that no held-out row is trained on."""
    if part == "all":
        return stream
    return (item for item in stream if (_uniform(_content(item, seed)) < fraction) == (part == "held out"))


def _content(item: Any, seed: int) -> bytes:
    values = [getattr(item, f.name) for f in fields(item) if f.name != "origin"] if is_dataclass(item) else item
    return json.dumps([seed, values], sort_keys=True, default=str).encode()


def _uniform(data: bytes) -> float:
    """A number from 0 to 1 that depends on these bytes alone."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64


# --------------------------------------------------------------------------------------------------------------- key


def _key(sources: Uses, stages: Uses, context: DataContext, settings: Sequence[object]) -> str | None:
    """A digest of all that the prepared rows depend on; None if a source cannot tell its content."""
    contents: list[object] = []
    for use in sources:
        if use.record.fingerprint is None:
            return None
        contents.append([use.weight, use.record.fingerprint(use.options)])
    tokenizer = context.tokenizer
    parts = [
        __version__,
        contents,
        [[*_identity(use), _with_files(use.options)] for use in (*sources, *stages[:-1])],
        [type(tokenizer).__name__, _backend(tokenizer), tokenizer.chat_template, tokenizer.special_tokens_map],
        [context.length, context.seed, context.skip_bad_rows],
        settings,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _backend(tokenizer: Any) -> str:
    """The whole of a fast tokenizer: vocabulary, merges, normaliser and the rest."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def _identity(use: Use[DataStage[Any]]) -> list[str]:
    """A provider's name and the digest of its code, so that a changed plugin makes data anew."""
    module = sys.modules.get(use.record.make.__module__)
    file = inspect.getsourcefile(module) if module else None
    if file is None:
        return [use.record.name]
    package = (module.__package__ or "").partition(".")[0] if module else ""
    home = Path(file).parent if package else None
    sources = sorted(p for p in home.rglob("*") if p.suffix in (".py", ".jinja")) if home else [Path(file)]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return [use.record.name, _distribution(package), digest.hexdigest()]


def _distribution(package: str) -> str:
    try:
        return importlib.metadata.version(package.replace("_", "-")) if package else ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _with_files(options: Any) -> object:
    """Options as a table, with a digest of each file that they name: a template's, say. Sources tell their own."""
    named = [getattr(options, f.name) for f in fields(options)]
    files = [path for path in named if isinstance(path, Path) and path.is_file()]
    return [to_table(options), [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]]
