"""The values of a row: found by column, checked, and shown in errors.

Every function here that raises, raises `DataError` in one line: the row, what is wrong there, and what to do.
"""

from __future__ import annotations

import json
from typing import Any

from fitune import DataError, Origin, Row, nearest, sentences

SHOWN = 60
"""Most characters of a wrong value that an error repeats."""


def bad(origin: Origin, what: str, fix: str = "") -> DataError:
    """The error of a row: where, what is wrong, and what to do."""
    return DataError(f"{origin}: {sentences(what, fix)}")


def shown(value: object) -> str:
    """A value as JSON, cut to what fits an error; its control characters are escapes, as JSON has them."""
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def column(row: Row, name: str, option: str) -> Any:
    """The value of a column that has to be there; `option` is the stage's option that names it."""
    if name in row.values:
        return row.values[name]
    fix = f"Name the column in the stage's table: {option} = ..."
    raise bad(row.origin, f'no column "{name}"', sentences(nearest(name, row.values), fix))


def text(value: object, origin: Origin, what: str) -> str:
    """The value, which has to be a text that a tokenizer takes."""
    if not isinstance(value, str):
        raise bad(origin, f"{what} is {shown(value)}, not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a pair of surrogates, which no tokenizer takes
            raise bad(origin, f"{what} holds half a character (at {error.start})", "Leave it out") from error
    return value


def parsed(value: Any, origin: Origin, what: str, wanted: str) -> Any:
    """The value; of a text the JSON that it holds, as tables and CSV keep lists; None where it is blank."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise bad(origin, f"{what} is not JSON: {shown(value)}", f"Write {wanted}") from error


def unpacked(value: Any, origin: Origin, what: str, wanted: str) -> Any:
    """The value; of a text that is meant as JSON (it begins as a list or an object) what it holds."""
    meant = isinstance(value, str) and value.lstrip().startswith(("[", "{"))
    return parsed(value, origin, what, wanted) if meant else value
