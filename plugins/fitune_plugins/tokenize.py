"""Data stage `tokenize`: text to tokens, with labels where the text is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fitune import IGNORED, DataContext, DataStage, Document, Example, NoOptions, hookimpl
from fitune.dataflow import Stage


def _make(options: NoOptions, context: DataContext) -> Stage:
    import numpy as np

    def tokenize(documents: Iterator[Document]) -> Iterator[Example]:
        for document in documents:
            encoded = context.tokenizer(
                document.text,
                add_special_tokens=not document.special,
                return_offsets_mapping=True,
                return_attention_mask=False,
                verbose=False,  # no warning of long rows: they are cut by the stage after this one
            )
            ids = np.asarray(encoded["input_ids"], dtype=np.int32)
            labels = np.full_like(ids, IGNORED)
            for position, (start, end) in enumerate(encoded["offset_mapping"]):
                # A token that overlaps the trained text at all is one that the model has to write.
                if any(start < last and end > first for first, last in document.trained):
                    labels[position] = ids[position]
            yield Example(input_ids=ids, labels=labels, origin=document.origin)

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
