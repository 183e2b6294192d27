"""What prepared data depend on, as a key: the same key, the same rows."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fitune._version import __version__
from fitune.data.origins import paths_in, paths_of, pattern_of
from fitune.plugin.code import code_behind, code_of
from fitune.plugin.contract import blame
from fitune.plugin.dataflow import DataContext
from fitune.plugin.digest import digest_of
from fitune.plugin.options import to_table
from fitune.plugin.recipe import Use
from fitune.plugin.records import DataStage

Uses = Sequence[Use[DataStage[Any]]]

LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow", "datasets")
"""Packages whose version may change what a stage makes of a row."""


def key_of(
    contents: Sequence[str], sources: Uses, stages: Uses, context: DataContext, settings: Sequence[object]
) -> str:
    """A digest of all that the rows depend on which these stages make of sources with these contents."""
    tokenizer = context.tokenizer
    parts = [
        [__version__, _own_code(), [version_of(name) for name in LIBRARIES]],
        [contents, [use.weight for use in sources]],
        [
            [use.record.name, code_behind(use.record.make, use.record.options), _options(use)]
            for use in (*sources, *stages)
        ],
        [list(map(digest_of, _files(use.options))) for use in stages],  # sources tell the content of theirs
        [type(tokenizer).__name__, _backend(tokenizer), tokenizer.chat_template, tokenizer.special_tokens_map],
        [context.length, context.seed, context.skip_bad_rows, context.takes, context.held_out],
        settings,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def contents_of(sources: Uses) -> list[str] | None:
    """What the sources say of their content; None if one cannot tell. Raises `DataError` if one cannot be read."""
    contents: list[str] = []
    for use in sources:
        if use.record.fingerprint is None:
            return None
        with blame(f'data stage "{use.record.name}"'):
            content = use.record.fingerprint(use.options)
        if content is None:
            return None
        contents.append(content)
    return contents


def _backend(tokenizer: Any) -> str:
    """The whole of a fast tokenizer: vocabulary, merges, normaliser and the rest."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def _own_code() -> list[str]:
    """The core's own code that rows pass through: what plugins give, and what is made of it."""
    wings = Path(__file__).parents[1]
    return [code_of(str(wings / wing)) for wing in ("plugin", "data")]


def version_of(package: str) -> str | None:
    """Of an installed package; None for one that is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _options(use: Use[DataStage[Any]]) -> dict[str, object]:
    """A provider's options, with what says which files are meant in place of paths whose content is in the key: a
    project that was moved has the same rows.
    """
    source = use.record.takes == "nothing"

    def without_place(value: object) -> object:
        if isinstance(value, tuple):
            return list(map(without_place, value))
        return pattern_of(value) if isinstance(value, Path) and (source or value.is_file()) else value

    given = ((field.name, getattr(use.options, field.name)) for field in fields(use.options))
    placed = {name: without_place(value) for name, value in given if any(True for _ in paths_in(value))}
    return {**to_table(use.options), **placed}


def _files(options: Any) -> Iterator[Path]:
    """The files that options name: a template's, say."""
    return (path for path in paths_of(options) if path.is_file())
