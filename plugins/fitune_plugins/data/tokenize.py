"""Data stage `tokenize`: text to tokens, with labels where the text is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from fitune import DataContext, DataError, DataStage, Document, Example, NoOptions, Stage, hookimpl
from fitune_plugins.data.labels import Labeller

BATCH = 512
"""Documents that are tokenized at a time, on all cores."""


def _make(options: NoOptions, context: DataContext) -> Stage:
    labeller = Labeller(context.tokenizer)

    def tokenize(documents: Iterator[Document]) -> Iterator[Example]:
        with ThreadPoolExecutor(max_workers=1) as thread:
            batch = list(islice(documents, BATCH))
            while batch:
                running = thread.submit(labeller.encode, batch)
                following = list(islice(documents, BATCH))  # rendered while the others are tokenized
                for document, encoding in zip(batch, running.result(), strict=True):
                    try:
                        example = labeller.example(document, encoding)
                    except DataError as error:
                        context.reject(error)
                        continue
                    yield example
                batch = following

    return tokenize


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
