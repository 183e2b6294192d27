"""The date that a chat template writes: that of one fixed day, so that the same rows are the same text on any day.

Templates ask for today's date by `strftime_now(FORMAT)`, a function that transformers gives them. Here, a macro of that
name stands before the template and answers for the day that it is told.
"""

from __future__ import annotations

import json
from datetime import date, datetime, time

CLOCK = "strftime_now"

DIRECTIVES = "aAbBcdDeFGHIjmMpSTuUVwWxXyY"
"""What `strftime` knows, one letter each."""

UNPADDED = "deHImj"
"""Those that have a form without zeros before them, e.g. `%-d`."""


def writes_date(source: str) -> bool:
    """Whether a template may ask for today's date."""
    return CLOCK in source


def on_day(source: str, day: date) -> str:
    """The template with this day as today: the same text otherwise, and lines that are counted as before."""
    if not writes_date(source):
        return source
    now = datetime.combine(day, time())
    formats = [*(f"%-{letter}" for letter in UNPADDED), *(f"%{letter}" for letter in DIRECTIVES)]
    known = {of: now.strftime(of.replace("-", "")) for of in formats}
    known |= {f"%-{letter}": known[f"%{letter}"].lstrip("0 ") or "0" for letter in UNPADDED}
    replaced = "".join(f" | replace({json.dumps(of)}, {json.dumps(written)})" for of, written in known.items())
    macro = f"{{%- macro {CLOCK}(format) -%}}{{{{- format{replaced} -}}}}{{%- endmacro "
    # Templates are read with `trim_blocks`, which takes a line end behind a block, and `lstrip_blocks`, which takes
    # blanks before one that begins a line.
    return f"{macro}%}}\n{source}" if source[:1] in (" ", "\t") else f"{macro}+%}}{source}"
