"""JSON as its standard (RFC 8259) has it, for the sources that read it: what Python's own reader lets pass is an error.

That reader takes NaN and Infinity, keeps the last of two equal keys and drops the others, and gives texts with halves
of surrogate pairs, which no tokenizer takes. A row with any of these is damaged, and training on it would hide that.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

SHOWN = 60
"""Most characters of a bad row that an error repeats."""


class NotStrictError(ValueError):
    """JSON that Python's reader would take, but that is not what it seems."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise NotStrictError(f"the key {json.dumps(twice)} stands twice in one object")
    return values


def _constant(name: str) -> NoReturn:
    raise NotStrictError(f"{name} is no number in JSON: write null, or leave it out")


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise NotStrictError(f"the number {digits[:SHOWN]} is too large")
    return number


STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_number)
"""Raises what `cause` explains."""


def check_characters(written: str, values: object) -> None:
    """Raise `NotStrictError` if a text in the values holds half a surrogate pair; `written` is their JSON."""
    if "\\" not in written or "\\u" not in written:  # the only way to write one, as the file is UTF-8
        return
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise NotStrictError(f"{half} is half a character: text was cut inside a surrogate pair") from error


def cause(error: Exception) -> str:
    """What is wrong with JSON whose reading raised this (`ValueError`, `RecursionError`), without a place."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg}"
    if isinstance(error, NotStrictError):
        return f"JSON that cannot be read: {error}"
    if isinstance(error, RecursionError):
        return "JSON that cannot be read: it is nested too deeply"
    return "JSON that cannot be read: it holds a number of too many digits"


def short(written: str) -> str:
    """JSON as an error repeats it."""
    return written if len(written) <= SHOWN else f"{written[: SHOWN - 4]} ..."
