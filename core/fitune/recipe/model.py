"""Which model is trained, and with which tokens beside its own: `[model]`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from fitune.errors import Problem
from fitune.plugin.deprecation import keys_of
from fitune.plugin.options import toml_text
from fitune.plugin.recipe import NewTokens, Use
from fitune.plugin.records import ModelLoader
from fitune.recipe.tables import Tables

KEYS = tuple(field.name for field in dataclasses.fields(NewTokens))
"""Keys that stand beside the loader's own."""


def read_model(tables: Tables, *, look: bool) -> Use[ModelLoader[Any]] | None:
    """The table `[model]`; without `look`, its files need not be there."""
    keys = keys_of(NewTokens)
    use = tables.use(ModelLoader, ("model",), look=look, known=keys)
    table = tables.source.values.get("model")
    given = {key: table[key] for key in keys if key in table} if isinstance(table, dict) else {}
    if not given:
        return use
    tokens = tables.parse(NewTokens, given, ("model",))
    if tokens is None:
        return None
    for problem in _problems(tokens):
        tables.add(("model", problem.key), problem)
    return None if use is None else dataclasses.replace(use, tokens=tokens)


def _problems(tokens: NewTokens) -> Iterator[Problem]:
    """What is wrong with the tokens themselves."""
    seen: dict[str, str] = {}
    for key in KEYS:
        for token in getattr(tokens, key):
            if not token.strip():
                what = f'"{key}" holds {toml_text(token)}, which no text shows'
                yield Problem(key=key, what=what, fix="Remove it, or write what the token is")
            elif token in seen:
                place = "twice" if seen[token] == key else f'beside "{seen[token]}"'
                yield Problem(key=key, what=f'"{key}" holds {toml_text(token)} {place}', fix="Keep one of them")
            seen.setdefault(token, key)
