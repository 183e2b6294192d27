"""The chat template of a run whose recipe names a file: as it was trained with, whatever became of the file.

A run saves the template beside its weights (`fitune.compose.dialogue.save_tokenizer`), as the tokenizer's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fitune.checkpoint.manifest import NAME
from fitune.plugin.options import toml_text
from fitune.plugin.paths import located
from fitune.plugin.reading import read_file
from fitune.recipe.source import Key, TomlSource
from fitune.runs.layout import IDENTITY, read_json

OPTION = "template_file"
"""Of a data stage, the key that names a file with a chat template."""

SAVED = "chat_template.jinja"
"""What transformers calls the template in the directory of a tokenizer."""

UNFINISHED = ".unfinished"
"""Ends the name of a directory with what was trained when a run failed."""


def kept_templates(run: Path, source: TomlSource) -> Iterator[tuple[str, str]]:
    """For each template file of a run's recipe that is gone or not the same any more: the override of the recipe that
    names the template that the run saved in its place, and what the user should know.
    """
    for key in _named(source):
        value: Any = source.values
        for part in key:
            value = value[part]
        file = located(run.resolve(), Path(value), source.was)
        saved = _saved(run)
        if saved is None or (wrong := _wrong(file, saved)) is None:
            continue
        place = toml_text(str(saved.absolute()))
        what = f"{file}, the chat template that was trained with, {wrong}: {saved}, which the run kept, takes its place"
        yield f"{'.'.join(map(str, key))}={place}", what


def _named(source: TomlSource) -> Iterator[Key]:
    """The keys of the recipe that name a template's file, those left out that the command line gives."""
    data = source.values.get("data")
    stages = data.get("stage") if isinstance(data, dict) else None
    for number, stage in enumerate(stages if isinstance(stages, list) else ()):
        key: Key = ("data", "stage", number, OPTION)
        if isinstance(stage, dict) and isinstance(stage.get(OPTION), str) and source.overridden(key) is None:
            yield key


def _saved(run: Path) -> Path | None:
    """The file that the run kept it in as it ended; None where it has not, and of a run of 0.1, which saved the
    template of its base.
    """
    if not isinstance(read_json(run / IDENTITY).get("place"), str):
        return None
    ended = [file for file in sorted(run.glob(f"*/{SAVED}")) if (file.parent / NAME).is_file()]
    return next((file for file in ended if not file.parent.name.endswith(UNFINISHED)), None)


def _wrong(file: Path, saved: Path) -> str | None:
    """What became of a template's file; None where it is as it was saved."""
    if not file.is_file():
        return "is gone"
    with contextlib.suppress(OSError, UnicodeDecodeError):  # which the stage tells that reads it
        now, before = _text(file), _text(saved)
        # Variables of the recipe stand before it.
        if before != now and not (now and before.endswith(f"+%}}{now}")):
            return "has changed since"
    return None


def _text(file: Path) -> str:
    """A template as it is read: without a byte order mark, lines ended alike."""
    return read_file(file).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
