"""How long operations take on a card, as measured: by `ft bench` on this machine, or shipped with fitune.

`ft bench` keeps a file of JSON in the user's data directory for each card, driver and version of torch; `measured/`
holds those that come with fitune. What was measured on this machine counts before what is shipped; of several files,
the one of this version of torch, else the newest.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.resources
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from platformdirs import user_data_path

from fitune.memory.cards.cards import Card, key_of, known_cards

SCHEMA = 1
"""Of the files; one of another is not read."""

LARGEST = 2**20
"""Bytes of a file, at most; one has about thirty thousand."""

Seconds = Annotated[float, Gt(0)]
Count = Annotated[int, Gt(0)]

Direction = Literal["forward", "backward"]
Passing = Literal["copy", "pointwise", "strided", "reduction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """`batch` products of [rows, inner] with [inner, columns], together."""

    dtype: str
    batch: Count = 1
    rows: Count
    columns: Count
    inner: Count
    aligned: bool = True
    """Whether rows of all three begin at multiples of 16 bytes; else cuBLAS falls to slower kernels."""
    added: bool = False
    """Whether it is added to what is there."""
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Causal attention of `heads` heads (of all rows) over as many keys as tokens."""

    direction: Direction
    kernel: str
    """As torch's operations are named: "cudnn", "flash", "efficient"."""
    dtype: str
    heads: Count
    tokens: Count
    size: Count
    """Of a head."""
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """An operation that computes next to nothing: so many bytes read and written, together."""

    kind: Passing
    """`copy` reads and writes as fast as can be, `pointwise` reads two tensors, `strided` one whose rows lie apart,
    beside one that is spread over it (rotary embeddings), `reduction` takes each row to a number."""
    bytes: Count
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What was measured of a card."""

    schema: int = SCHEMA
    card: str
    """By the name that fitune knows it by, or torch's."""
    torch: str
    cuda: str
    driver: str
    date: str
    source: str
    """How it was measured."""
    multiprocessors: Count
    gap: Annotated[float, Ge(0)]
    """Seconds of the card from one operation that does nothing to the next."""
    forward: Seconds
    """Of the host, to launch an operation with autograd."""
    backward: Seconds
    """The same in a backward pass."""
    listed: Seconds
    """Of the host, for each tensor of a list that an optimizer or another operation is given."""
    link: Seconds
    """Of the link to the host's page-locked memory, for a GiB in one direction."""
    products: tuple[Product, ...]
    attention: tuple[Attention, ...]
    passes: tuple[Pass, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The rates of a card, and where they come from."""

    rates: Rates | None
    base: Card | None
    """The card that they were measured on; another than the one asked about where that has the same chip."""
    says: str
    """In words."""


ASSUMED = Origin(
    rates=None, base=None, says="assumed: shares of the data sheet's rates. ft bench measures the card that is here"
)


def origin_of(card: Card) -> Origin:
    """What is known of a card's speed: measured on this machine, shipped (also of the same chip), or nothing."""
    return _origin(card.rated_as or card.name, directory())


def directory() -> Path:
    """Where `ft bench` keeps what it measures: in the user's data directory."""
    return user_data_path("fitune", appauthor=False) / "bench"


def file_of(rates: Rates) -> Path:
    """The file that these are kept in."""
    name = re.sub(r"[^a-z0-9.]+", "-", f"{rates.card} {rates.driver} {rates.torch}".lower())
    return directory() / f"{name.strip('-')}.json"


def to_json(rates: Rates) -> str:
    """As a file holds it: a line for each measurement."""
    table = dataclasses.asdict(rates)
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items() if not isinstance(value, tuple)]
    for key, value in table.items():
        if isinstance(value, tuple):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            lines.append(f" {json.dumps(key)}: [\n{rows}\n ]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def keep(rates: Rates) -> Path:
    """Write them where forecasts find them. Raises `OSError`."""
    from fitune.runs.atomic import write_file

    path = file_of(rates)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, to_json(rates))
    _origin.cache_clear()
    return path


def read(text: str) -> Rates | None:
    """The rates of a file's text; None where it is damaged, or of another schema: it can be measured again."""
    from pydantic import TypeAdapter

    try:
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            return None
        return TypeAdapter(Rates).validate_python(values)
    except (ValueError, RecursionError):  # pydantic's own is a ValueError
        return None


def shipped() -> Iterator[Rates]:
    """Those that come with fitune."""
    home = importlib.resources.files("fitune.memory.cards") / "measured"
    for place in sorted(home.iterdir(), key=lambda one: one.name):
        if place.name.endswith(".json"):
            found = read(place.read_text(encoding="utf-8"))
            assert found is not None, f"{place.name} cannot be read"
            yield found


@functools.lru_cache(maxsize=64)
def _origin(name: str, kept: Path) -> Origin:
    known = {key_of(spelling): card for card in known_cards() for spelling in (card.name, *card.aliases)}
    here = [rates for rates in _kept(kept) if key_of(rates.card) == key_of(name)]
    if here:
        best = max(here, key=lambda rates: (rates.torch == _torch(), rates.date))
        of = "" if best.torch == _torch() else f", with torch {best.torch}"
        return Origin(rates=best, base=known.get(key_of(best.card)), says=f"measured on this card, {best.date}{of}")
    card = known.get(key_of(name))
    if card is None:
        return ASSUMED
    for rates in shipped():
        if key_of(rates.card) == key_of(card.name):
            return Origin(rates=rates, base=card, says=f"shipped: measured on an {rates.card}, {rates.date}")
    for rates in shipped():
        base = known[key_of(rates.card)]
        if card.capability == base.capability and card.matmul == base.matmul:
            says = f"shipped: as an {rates.card}, which has the same chip ({rates.date})"
            return Origin(rates=rates, base=base, says=says)
    return ASSUMED


def _kept(place: Path) -> Iterator[Rates]:
    try:
        files = sorted(place.glob("*.json"))
    except OSError:
        return
    for file in files:
        try:
            if not file.is_file() or file.stat().st_size > LARGEST:
                continue
            found = read(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        if found is not None:
            yield found


@functools.cache
def _torch() -> str:
    return importlib.metadata.version("torch").partition("+")[0]
