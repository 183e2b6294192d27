"""From a recipe's sources, through its stages, to rows that are ready to be batched: counted, guarded and cached."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fitune.data.cache import build_or_open
from fitune.data.cache_key import contents_of, key_of
from fitune.data.cache_writer import Writer
from fitune.data.origins import paths_of
from fitune.data.prepared import Prepared as Prepared
from fitune.data.split import Part, Share, Split, split_of, weighted
from fitune.data.streams import made
from fitune.data.targets import EMPTY, Taken, must_fit, with_targets
from fitune.errors import DataError
from fitune.plugin.dataflow import Batch, DataContext, Example, Stage
from fitune.plugin.recipe import Recipe, Use
from fitune.plugin.records import DataStage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

Uses = Sequence[Use[DataStage[Any]]]


class Watch(Protocol):
    """Watches data being prepared: a context around it, or not at all where they were prepared before."""

    def __call__(self, what: str, flow: Mapping[str, int]) -> contextlib.AbstractContextManager[None]:
        """`what` are "training data" or "held-out data"; `flow` is how much each stage has given by now."""

    def tell(self, notice: str) -> None:
        """Something that the user should know."""


class Unwatched:
    """Tells nobody."""

    def __call__(self, what: str, flow: Mapping[str, int]) -> contextlib.AbstractContextManager[None]:
        """Do nothing."""
        return contextlib.nullcontext()

    def tell(self, notice: str) -> None:
        """Do nothing."""


UNWATCHED = Unwatched()


def context_of(recipe: Recipe, tokenizer: Any) -> DataContext:
    """What the data stages of a recipe may know."""
    return DataContext(
        tokenizer=tokenizer,
        length=recipe.train.length,
        seed=recipe.general.seed,
        skip_bad_rows=recipe.data.bad_rows == "skip",
        takes=recipe.objective.record.takes,
    )


def training_data(recipe: Recipe, context: DataContext, watch: Watch = UNWATCHED) -> Prepared:
    """The rows to train on."""
    part: Part = "train" if recipe.evaluation.fraction else "all"
    return _prepare(_Job(recipe, context, recipe.sources, recipe.stages, part, held_out=False), watch)


def held_out_data(recipe: Recipe, context: DataContext, watch: Watch = UNWATCHED) -> Prepared | None:
    """The rows to evaluate on, from sources of their own or by the recipe's fraction; None if it names neither."""
    stages = tuple(use for use in recipe.stages if not use.record.packs)
    if recipe.eval_sources:
        return _prepare(_Job(recipe, context, recipe.eval_sources, stages, "all", held_out=True), watch)
    if recipe.evaluation.fraction:
        return _prepare(_Job(recipe, context, recipe.sources, stages, "held out", held_out=True), watch)
    return None


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be prepared."""

    recipe: Recipe
    context: DataContext
    sources: Uses
    stages: Uses
    part: Part
    held_out: bool

    @property
    def what(self) -> str:
        return "held-out data" if self.held_out else "training data"

    @property
    def fraction(self) -> float:
        return self.recipe.evaluation.fraction or 0.0

    def key(self, contents: Sequence[str]) -> str:
        """Of the prepared rows, where the sources have these contents."""
        settings = [self.part, self.fraction, self.recipe.evaluation.split, self.recipe.data.max_empty]
        return key_of(contents, self.sources, self.stages[:-1], self.context, settings)


def _prepare(job: _Job, watch: Watch) -> Prepared:
    """Take the sources through all stages but the last, which makes batches; or find what an equal call made before.

    Raises `DataError` for rows that cannot be used, and if too many of them have nothing to train on.
    """
    contents = contents_of(job.sources) if job.recipe.data.cache else None
    key = None if contents is None else job.key(contents)

    def build(writer: Writer) -> dict[str, Any]:
        chain = _Chain(job)
        with watch(job.what, chain.flow):
            rows = writer.write(chain.through(chain.read()))
            chain.guard(rows)
            if key is not None and contents_of(job.sources) != contents:
                raise DataError(f"the {job.what} changed while they were read. Start again once they stay as they are")
        return chain.meta()

    places = [path for use in (*job.sources, *job.stages) for path in paths_of(use.options)]
    rows, cached = build_or_open(key, build, watch.tell, places)
    return Prepared(rows=rows, cached=cached, lasting=key is not None)


def batch_maker(stages: Uses, context: DataContext) -> Stage:
    """The last stage, which turns lists of examples into batches."""
    return made(stages[-1], context)


def batches(rows: Sequence[Example], picks: Sequence[NDArray[np.int64]], make: Stage) -> Iterator[Batch]:
    """The batches of these rows, one a pick."""
    return make([rows[int(row)] for row in pick] for pick in picks)


class _Chain:
    """One pass of data through the stages, and what is counted on the way."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.notes: Counter[str] = Counter()
        self.flow: dict[str, int] = {}
        self.shares: list[Share] = []
        self.lengths: Counter[int] = Counter()
        self.highest = self.longest = 0
        self.tokens = 0
        self.context = replace(job.context, count=self._count, held_out=job.held_out)

    def _count(self, what: str) -> None:
        self.notes[what] += 1

    def read(self) -> Iterator[Any]:
        """The rows of all sources, one after another."""
        split = self._split()
        sources = self.job.sources
        streams = [self._counted(use.record.name, split(self._rows(use, self.context))) for use in sources]
        self.shares = [replace(share, source=name) for share, name in zip(split.shares, self.flow, strict=False)]
        return itertools.chain.from_iterable(streams)

    def _split(self) -> Split:
        """Which rows are on the wanted side. To part them exactly all are read once before, with nothing counted."""
        job, before = self.job, replace(self.context, count=lambda what: None)
        rule = job.recipe.evaluation.split
        rows = (self._rows(use, before) for use in job.sources)
        return split_of(job.part, rule, rows, job.fraction, self.context.seed)

    def _rows(self, use: Use[DataStage[Any]], context: DataContext) -> Iterator[Any]:
        """The rows of a source, as often as its weight says."""
        weight = 1.0 if use.weight is None else use.weight
        return weighted(partial(made(use, context), iter(())), weight, context.seed)

    def through(self, stream: Iterator[Any]) -> Iterator[Example]:
        """The rows through all stages but the last."""
        measured = False
        for use in self.job.stages[:-1]:
            taken = Taken(stream)
            stream = made(use, self.context)(taken)
            if use.record.gives == "examples":
                if not measured:
                    stream, measured = self._measured(stream), True
                stream = with_targets(stream, taken, self.notes)
            stream = self._counted(use.record.name, stream)
        return self._checked(stream)

    def guard(self, rows: int) -> None:
        """Refuse data in which too little is trained on. Raises `DataError`."""
        empty, documents = self.notes[EMPTY], sum(self.lengths.values())
        if rows == 0:
            said = "; ".join(f"{what}: {number}" for what, number in self.notes.items() if number)
            why = f" ({said})" if said else f": {self._nothing()}"
            raise DataError(f"no row is left to {'evaluate' if self.job.held_out else 'train'} on{why}")
        allowed = self.job.recipe.data.max_empty
        if empty > allowed * documents:
            shown = f"ft data {self.job.recipe.path}{' --held-out' if self.job.held_out else ''} --set data.max_empty=1"
            raise DataError(
                f"{self.job.what}: {empty} of {documents} rows have no token to train on, more than [data] max_empty = "
                f"{allowed} allows. They are left out; to see what is left: {shown}"
            )

    def _nothing(self) -> str:
        if self.job.part == "all":
            return "the sources are empty"
        return f"[eval] fraction = {self.job.fraction} of so few rows puts them all on the other side"

    def meta(self) -> dict[str, Any]:
        """What is kept with the rows."""
        return {
            "flow": list(self.flow.items()),
            "notes": list(self.notes.items()),
            "shares": list(map(asdict, self.shares)),
            "lengths": sorted(self.lengths.items()),
            "highest": self.highest,
            "longest": self.longest,
            "tokens": self.tokens,
        }

    def _counted(self, name: str, stream: Iterator[T]) -> Iterator[T]:
        while name in self.flow:  # a stage that stands in the recipe twice
            name += "'"
        self.flow[name] = 0  # now, in the recipe's order, not when the first row comes by

        def counted() -> Iterator[T]:
            for item in stream:
                self.flow[name] += 1
                yield item

        return counted()

    def _measured(self, stream: Iterator[Example]) -> Iterator[Example]:
        for example in stream:
            self.lengths[len(example.input_ids)] += 1
            yield example

    def _checked(self, stream: Iterator[Example]) -> Iterator[Example]:
        for example in stream:
            self.highest = max(self.highest, int(example.input_ids.max()))
            self.longest = max(self.longest, *(example.lengths or (len(example.input_ids),)))
            self.tokens += len(example.input_ids)
            must_fit(example, self.context)
            yield example
