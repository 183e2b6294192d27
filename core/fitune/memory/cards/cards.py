"""Graphics cards by name: how many bytes a run may take, and how fast they compute and copy; read from `cards.toml`.

A card of one's own is a TOML file with the same keys, given by its path. What torch sees of a card, and what a CUDA
process takes before its first tensor, is measured, sourced or assumed, and each entry says which.
"""

from __future__ import annotations

import ctypes
import dataclasses
import difflib
import functools
import importlib.resources
import os
import re
import sys
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, MinLen

from fitune.errors import Problem, RecipeError, nearest, sentences
from fitune.plugin.options import parse
from fitune.plugin.units import GIB, gib
from fitune.recipe.source import TomlSource

ASSUMED_CONTEXT = GIB * 3 // 4
"""Context of a card that is not known, in bytes: the largest that this project has measured (H100)."""

UNITS = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)},
}

FORMS = "Write a number above 0 and a unit: 22.3GiB, 24GB, 512MiB or 2000000000B"
"""What a size looks like, for whoever wrote another thing."""

SIZES = ("memory", "context")
"""Keys of a card's file that hold a size."""

DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
"""Files of which a machine with an NVIDIA GPU has one: the driver's, and that of Linux within Windows."""

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b)\s*", re.IGNORECASE | re.ASCII)

Text = Annotated[str, MinLen(1)]

Rate = Annotated[float, Gt(0)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A graphics card, or a budget of bytes in place of one."""

    name: str
    aliases: tuple[str, ...] = ()
    memory: int
    """Bytes that torch sees as the total: `torch.cuda.mem_get_info()[1]`."""
    context: int
    """Bytes that a CUDA process takes outside torch's caching allocator."""
    context_source: str
    """Whether `context` is measured, sourced or assumed, and how."""
    capability: tuple[int, int]
    """CUDA compute capability, major and minor."""
    matmul: Mapping[str, float]
    """Dense peak in TFLOP/s by a dtype's name, e.g. `bfloat16`; one that is not known or has no units is absent."""
    bandwidth: float
    """Of the card's memory, in GB/s; 0 where it is not known."""
    host_link: float
    """To the host's memory, one direction, in GB/s; 0 where it is not known."""
    source: str
    """Where speeds and bandwidths come from."""
    rated_as: str = ""
    """For a budget, the card that it computes as; its rates may have been measured (`rates.py`)."""
    peer_link: float = 0.0
    """To another card of its kind in one host, one direction, in GB/s; 0 where that goes by way of the host."""
    count: int = 1
    """How many of its kind a run has, with a process on each; all else here is of one of them."""
    nccl: int = 0
    """Bytes that NCCL takes of it outside torch's caching allocator; 0 where a run has one card (`several.py`)."""

    @property
    def usable(self) -> int:
        """Bytes that torch's caching allocator can have."""
        return self.memory - self.outside

    @property
    def outside(self) -> int:
        """Bytes that a run takes of it outside torch's caching allocator: its context, and NCCL's part."""
        return self.context + self.nccl

    @property
    def title(self) -> str:
        """Its name, with their number where a run has several."""
        return self.name if self.count == 1 else f"{self.count} x {self.name}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Matmul:
    """`matmul` of a card in its file."""

    bfloat16: Rate | None = None
    float16: Rate | None = None
    float32: Rate


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A card as its file holds it."""

    name: Text
    aliases: tuple[Text, ...] = ()
    memory: str
    context: str
    context_source: Text
    capability: tuple[int, int]
    matmul: _Matmul
    bandwidth: Rate
    host_link: Rate
    peer_link: Rate | None = None
    source: Text


@functools.cache
def known_cards() -> tuple[Card, ...]:
    """The cards of `cards.toml`, in its order."""
    path = importlib.resources.files("fitune.memory.cards") / "cards.toml"
    source = TomlSource(Path("cards.toml"), path.read_text(encoding="utf-8"))
    return tuple(_card(source, table, ("card", number)) for number, table in enumerate(source.values["card"]))


def find_card(name: str) -> Card:
    """The card of this name or alias, or that which a `.toml` file describes.

    Case, spaces, dashes, underscores and "NVIDIA" make no difference. Raises `RecipeError` for a name that is not
    known, with the nearest one, and for a file that cannot be read or is not a card.
    """
    if name.strip().lower().endswith(".toml"):
        source = TomlSource(Path(name.strip()), _text(Path(name.strip())))
        return _card(source, source.values, ())
    spellings = _spellings()
    key = key_of(name)
    if key in spellings:
        return spellings[key]
    close = difflib.get_close_matches(key, spellings, n=1, cutoff=0.6)
    meant = [spellings[close[0]].name] if close else [card.name for card in known_cards()]
    hint = nearest(meant[0] if close else "", meant)
    raise RecipeError([sentences(f'no card is known as "{name}"', hint, "A .toml file can describe one of your own")])


def card_or_budget(text: str, like: Card | None = None) -> Card:
    """The card that a text names, or a budget where it is a size; some cards' names are numbers. Raises `RecipeError`.

    A budget computes as `like` does.
    """
    if text.strip()[:1].isdigit() and not text.strip().lower().endswith(".toml") and key_of(text) not in _spellings():
        return budget_card(parse_size(text), like)
    return find_card(text)


def local_card() -> Card | None:
    """The current GPU of this machine, with its real total memory; None where torch finds no NVIDIA GPU.

    One that is not known has capability and memory from torch, and a context that is assumed.
    """
    if "torch" not in sys.modules and not may_have_one():
        return None
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    known = _spellings().get(key_of(found.name))
    if known is not None:
        return dataclasses.replace(known, memory=found.total_memory)
    return Card(
        name=found.name,
        memory=found.total_memory,
        context=ASSUMED_CONTEXT,
        context_source="assumed: this card is not known; 0.75 GiB, as measured on an H100",
        capability=(found.major, found.minor),
        matmul={},
        bandwidth=0.0,
        host_link=0.0,
        source="torch's device properties; speeds are not known",
    )


def is_here(card: Card) -> bool:
    """Whether a card is of this machine's kind, so that what a run on it has installed is what is installed here."""
    local = local_card()
    return local is not None and local.capability == card.capability


def may_have_one() -> bool:
    """Whether this machine may have an NVIDIA GPU: none, for sure, where neither a device nor the driver's library is
    there. Takes milliseconds, where importing torch to be told so takes seconds.
    """
    if any(map(os.path.exists, DEVICES)):
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def budget_card(size: int, like: Card | None = None) -> Card:
    """A card that is only a number of bytes, from which no context is taken off; it computes as `like` does.

    Without `like`, it is taken to be of compute capability 8.0, and its speeds are not known. Raises `RecipeError`
    for a size that is not above 0.
    """
    if size <= 0:
        raise RecipeError([f"a budget of {size} bytes leaves nothing to plan with. Give a size above 0, e.g. 22.3GiB"])
    return Card(
        name=f"a budget of {gib(size)}",
        memory=size,
        context=0,
        context_source="none: the budget is taken as it was given",
        capability=like.capability if like else (8, 0),
        matmul=like.matmul if like else {},
        bandwidth=like.bandwidth if like else 0.0,
        host_link=like.host_link if like else 0.0,
        peer_link=like.peer_link if like else 0.0,
        source=f"as {like.name}" if like else "assumed: compute capability 8.0; speeds are not known",
        rated_as=(like.rated_as or like.name) if like else "",
    )


def parse_size(text: str) -> int:
    """Bytes of a size such as `22.3GiB`, `24 GB` or `512 MiB`; a part of a byte is dropped.

    Raises `RecipeError` for anything else, a bare number among it, and for a size that is not above 0.
    """
    found = _SIZE.fullmatch(text)
    size = int(Decimal(found[1]) * UNITS[found[2].lower()]) if found and found[2].lower() in UNITS else 0
    if size <= 0:
        raise RecipeError([f'"{text}" is not a size. {FORMS}'])
    return size


def _spellings() -> dict[str, Card]:
    """Each name and alias, as `key_of` writes it, with its card."""
    return {key_of(name): card for card in known_cards() for name in (card.name, *card.aliases)}


def key_of(name: str) -> str:
    """A card's name as it is compared with others."""
    return re.sub(r"[\s_-]", "", name.lower()).replace("nvidia", "")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # editors on Windows put a mark in front
    except FileNotFoundError:
        raise RecipeError(
            [f"{path}: no such file. Give the path of a card's description, or the name of a card"]
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError([f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8"]) from None
    except OSError as error:
        raise RecipeError(
            [f"{path}: cannot be read: {error.strerror}. Give the path of a card's description"]
        ) from None


def _card(source: TomlSource, table: Mapping[str, Any], at: tuple[str | int, ...]) -> Card:
    """The card that a table describes. Raises `RecipeError` with every problem of it and the line of each."""
    entry, found = parse(_Entry, table)
    problems = [dataclasses.replace(p, fix=FORMS) if p.key in SIZES else p for p in found]
    sizes: dict[str, int] = {}
    for key in SIZES if entry is not None else ():
        try:
            sizes[key] = parse_size(getattr(entry, key))
        except RecipeError as error:
            problems.append(Problem(key=key, what=error.message))
    if entry is not None and not problems and sizes["context"] >= sizes["memory"]:
        what = f'"context" is {entry.context}, which leaves nothing of the {entry.memory} of "memory"'
        problems.append(Problem(key="context", what=what, fix="Both are sizes of one card; the context is below 1 GiB"))
    if entry is None or problems:
        raise RecipeError([f"{source.where((*at, *p.key.split('.')))[1]}: {p.sentence()}" for p in problems])
    speeds = {f.name: getattr(entry.matmul, f.name) for f in dataclasses.fields(entry.matmul)}
    return Card(
        name=entry.name,
        aliases=entry.aliases,
        memory=sizes["memory"],
        context=sizes["context"],
        context_source=entry.context_source,
        capability=entry.capability,
        matmul={name: speed for name, speed in speeds.items() if speed is not None},
        bandwidth=entry.bandwidth,
        host_link=entry.host_link,
        peer_link=entry.peer_link or 0.0,
        source=entry.source,
    )
