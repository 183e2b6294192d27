"""Data stage `plain-text`: rows of text, trained on as a whole, for continued pretraining."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fitune import DataContext, DataError, DataStage, Document, Row, Stage, hookimpl
from fitune_plugins.data.row import bad, column, text


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTextOptions:
    """Options of the stage `plain-text`."""

    text: str = "text"
    """Column with the text."""
    end: bool = True
    """Whether an end-of-text token is put behind it, for the model to learn where texts end."""


def _make(options: PlainTextOptions, context: DataContext) -> Stage:
    end = end_of_text(context) if options.end else ""

    def read(row: Row) -> Document:
        found = text(column(row, options.text, "text"), row.origin, f'column "{options.text}"')
        if not found.strip():
            raise bad(row.origin, f'column "{options.text}" is empty', "Leave the row out")
        whole = found + end
        return Document(text=whole, trained=((0, len(whole)),), origin=row.origin, special=False)

    def plain_text(rows: Iterator[Row]) -> Iterator[Document]:
        for row in rows:
            try:
                document = read(row)
            except DataError as error:
                context.reject(error)
                continue
            yield document

    return plain_text


def end_of_text(context: DataContext) -> str:
    """The end-of-text token, or nothing where the tokenizer puts it behind every text by itself."""
    tokenizer = context.tokenizer
    if tokenizer.eos_token is None:
        raise DataError('the tokenizer has no end-of-text token, which "plain-text" puts behind texts. Set end = false')
    ends_itself = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    return "" if ends_itself else str(tokenizer.eos_token)


@hookimpl
def ft_data_stages() -> Iterable[DataStage[PlainTextOptions]]:
    """Offer the stage."""
    yield DataStage(
        name="plain-text",
        summary="Whole texts, for continued pretraining, with an end-of-text token behind each",
        options=PlainTextOptions,
        takes="rows",
        gives="documents",
        make=_make,
    )
