"""A stage that counts the rows that come by, and a source without a fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fitune import DataContext, DataStage, NoOptions, Origin, Row, hookimpl

CHAIN = '{use="messages"}, {use="chat"}, {use="tokenize"}, {use="truncate"}'
"""Stages that end with a row cut to the length."""


class Counted:
    """A plugin: a stage that counts the rows that come by, and a source without a fingerprint."""

    def __init__(self) -> None:
        self.rows = 0

    @hookimpl
    def ft_data_stages(self) -> Iterable[DataStage[NoOptions]]:
        """Offer them."""

        def counted(options: NoOptions, context: DataContext) -> Callable[[Iterator[Row]], Iterator[Row]]:
            def rows(stream: Iterator[Row]) -> Iterator[Row]:
                for row in stream:
                    self.rows += 1
                    yield row

            return rows

        def unknown(options: NoOptions, context: DataContext) -> Callable[[Iterator[Any]], Iterator[Row]]:
            message = {"role": "assistant", "content": "1"}
            return lambda nothing: iter([Row(values={"messages": [message]}, origin=Origin(file="mine", row=1))])

        yield DataStage(name="counted", summary="Counts", options=NoOptions, takes="rows", gives="rows", make=counted)
        yield DataStage(
            name="unknown", summary="A source", options=NoOptions, takes="nothing", gives="rows", make=unknown
        )
