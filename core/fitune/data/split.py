"""Which rows of a source are taken: a function of seed, position and content alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")

Part = Literal["all", "train", "held out"]
"""Which rows of the sources: all of them, or one side of the held-out split."""


def weighted(read: Callable[[], Iterator[T]], weight: float, seed: int) -> Iterator[T]:
    """A stream `weight` times over: whole passes, and of the rest a random part that depends on seed and position."""
    passes, rest = int(weight), weight - int(weight)
    for _ in range(passes):
        yield from read()
    if rest:
        for position, item in enumerate(read()):
            if _uniform(f"{seed}:{position}".encode()) < rest:
                yield item


def side(stream: Iterator[T], part: Part, fraction: float, seed: int) -> Iterator[T]:
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
