"""Data stage `tokenize`: text to tokens, with labels where the text is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from fitune import DataContext, DataError, DataStage, Document, Example, NoOptions, Stage, hookimpl
from fitune_plugins.data.labels import Labeller

T = TypeVar("T")

BATCH = 512
"""Documents, or groups of them, that are tokenized at a time, on all cores."""


def _make(options: NoOptions, context: DataContext) -> Stage:
    labeller = Labeller(context.tokenizer)

    def tokenize(documents: Iterator[Document]) -> Iterator[Example]:
        for _, (example,) in tokenized(((None, (document,)) for document in documents), labeller, context):
            yield example

    return tokenize


def tokenized(
    groups: Iterator[tuple[T, Sequence[Document]]], labeller: Labeller, context: DataContext
) -> Iterator[tuple[T, tuple[Example, ...]]]:
    """Groups of documents as examples, each with what it is of.

    One with a document that cannot be used is rejected as a whole.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        batch = list(islice(groups, BATCH))
        while batch:
            running = thread.submit(labeller.encode, [document for _, group in batch for document in group])
            following = list(islice(groups, BATCH))  # rendered while the others are tokenized
            encodings = iter(running.result())
            for of, group in batch:
                own = list(islice(encodings, len(group)))
                try:
                    examples = tuple(labeller.example(*pair) for pair in zip(group, own, strict=True))
                except DataError as error:
                    context.reject(error)
                    continue
                yield of, examples
            batch = following


@hookimpl
def ft_data_stages() -> Iterable[DataStage[NoOptions]]:
    """Offer the stage."""
    yield DataStage(
        name="tokenize",
        summary="Text to tokens, with a label for each token that is trained on",
        options=NoOptions,
        takes="documents",
        gives="examples",
        closes="end",
        make=_make,
    )
