"""Data stage `tokenize`: text to tokens, with labels where the text is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from fitune import DataContext, DataError, DataStage, Document, Example, NoOptions, hookimpl
from fitune.dataflow import Stage
from fitune_plugins.labels import Labeller

BATCH = 512
"""Documents that are tokenized at a time, on all cores."""


def _make(options: NoOptions, context: DataContext) -> Stage:
    labeller = Labeller(context.tokenizer)

    def tokenize(documents: Iterator[Document]) -> Iterator[Example]:
        while batch := list(islice(documents, BATCH)):
            for made in labeller.examples(batch):
                if isinstance(made, DataError):
                    context.reject(made)
                else:
                    yield made

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
        make=_make,
    )
