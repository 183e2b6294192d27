"""Objectives that take pairs or judged answers and compute nothing, and the rows that data stages prepare for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from fitune import IGNORED, Criterion, Example, NoOptions, Objective, hookimpl
from fitune.data.prepare import Prepared
from support.prepared import RECIPE, prepared, write

Rows = list[Mapping[str, Any]]

PAIRS = RECIPE.replace("length = 64", "length = 256") + '\n[objective]\nuse = "takes-pairs"\n'

LABELLED = PAIRS.replace("takes-pairs", "takes-labelled")


class Takes:
    """Offers both."""

    @hookimpl
    def ft_objectives(self) -> Iterator[Objective[NoOptions]]:
        """Two objectives."""
        for takes in ("pairs", "labelled"):
            yield Objective(
                name=f"takes-{takes}",
                summary="for tests",
                options=NoOptions,
                make=lambda options: Criterion(),
                takes=takes,
            )


def lines(*rows: Mapping[str, Any]) -> str:
    """A file of JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def compared(directory: Path, text: str, *rows: Mapping[str, Any], sets: tuple[str, ...] = ()) -> Prepared:
    """The training data that a recipe makes of these rows."""
    return prepared(write(directory, lines(*rows), text), *sets, "data.cache=false", plugins=(Takes(),))


SEEN = {"Ġ": " ", "Ċ": "\n"}
"""What stands for bytes that cannot be seen."""

Told = tuple[float, str, str]
"""A document: its role, what of it is not trained on, and what is."""


def told(example: Example) -> list[Told]:
    """The documents of a row in the tokens of the tiny tokenizer, which are bytes; its own special ones are <n>."""
    found: list[Told] = []
    start = 0
    for role, length in zip(example.extras["role"], example.lengths, strict=True):
        ids = example.input_ids[start : start + length].tolist()
        labels = example.labels[start : start + length].tolist()
        asked = [token for token, label in zip(ids, labels, strict=True) if label == IGNORED]
        answer = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
        found.append((role, _text(asked), _text(answer)))
        start += length
    return found


ALPHABET = sorted(ByteLevel.alphabet())


def _text(ids: list[int]) -> str:
    return "".join(
        f"<{token}>" if token >= len(ALPHABET) else SEEN.get(ALPHABET[token], ALPHABET[token]) for token in ids
    )
