"""What comes of a run, as text of HTML."""

from __future__ import annotations

from html import escape

from fitune.recipe.secrets import told


def text_of(value: object, *, prose: bool = False) -> str:
    """No mark, no control character, no direction of writing, no secret; `prose` is for rows and answers."""
    return escape(told(str(value), prose=prose))
