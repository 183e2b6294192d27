"""Data stage `sample`: leaves out conversations of few letters, and counts them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from fitune import Conversation, DataContext, DataStage, Stage, hookimpl


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """Options of the stage `sample`."""

    letters: Annotated[int, Ge(0)] = 12
    """Fewest letters that all messages of a conversation have together."""


def make(options: SampleOptions, context: DataContext) -> Stage:
    """Give what lets conversations pass."""

    def passed(conversations: Iterator[Conversation]) -> Iterator[Conversation]:
        for conversation in conversations:
            if sum(len(str(message["content"])) for message in conversation.messages) >= options.letters:
                yield conversation
            else:
                context.count("conversations of few letters left out")

    return passed


@hookimpl
def ft_data_stages() -> Iterable[DataStage[SampleOptions]]:
    """Offer the stage."""
    yield DataStage(
        name="sample",
        summary="Leaves out conversations of few letters",
        options=SampleOptions,
        takes="conversations",
        gives="conversations",
        make=make,
    )
