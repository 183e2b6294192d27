"""The manifest of a checkpoint: its files, their sizes and SHA-256 digests, and a digest of itself.

It is written last, so a directory without one was never finished; and every byte of every file is covered by it, so
what is damaged is known before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fitune.plugin.digest import digest_of
from fitune.plugin.reading import json_of, read_file
from fitune.runs.layout import MANIFEST

NAME = MANIFEST

FORMAT = 1

READ = frozenset({".safetensors", ".json", ".bin", ".pt", ".pth", ".jinja", ".model", ".py"})
"""Ends of names that libraries look for by themselves where a model or a tokenizer lies: one file of these more, and
they may read it in another's place. Others, notes say, may be put there.
"""


def write_manifest(directory: Path, step: int, without: Collection[str] = ()) -> int:
    """Write the manifest of all that is in a directory, but for files of these names; gives the bytes of it all. Raises
    `OSError`.
    """
    own, left = directory / NAME, {directory / name for name in (NAME, *without)}
    places = sorted(place for place in directory.rglob("*") if place.is_file() and place not in left)
    files = {
        place.relative_to(directory).as_posix(): {"bytes": place.stat().st_size, "sha256": digest_of(place)}
        for place in places
    }
    values: dict[str, Any] = {"format": FORMAT, "step": step, "files": files}
    text = _text(values)
    own.write_text(text, encoding="utf-8")
    return len(text.encode()) + sum(int(place.stat().st_size) for place in places)


def damage(directory: Path) -> str | None:
    """What is wrong with the files of a checkpoint, the first thing found; None if all are as they were written.

    Of files that the manifest does not name, those are damage that a library might read for what was written.
    """
    try:
        text = read_file(directory / NAME).decode()
        values = json_of(text)
        del values["sha256"]
        if values["format"] != FORMAT:
            return f"{NAME} is of format {values['format']}, and this release reads {FORMAT}"
        if text != _text(values):
            return f"{NAME} is damaged"
        if directory.name.startswith("step-") and directory.name != f"step-{values['step']}":
            return f"is the checkpoint of step {values['step']}"
        for name, said in values["files"].items():
            if wrong := _wrong(directory / name, said):
                return f"{name} {wrong}"
        named = {directory / name for name in (NAME, *values["files"])}
        for place in sorted(directory.rglob("*")):
            if place.suffix.lower() in READ and place not in named and not place.is_dir():
                return f"{place.relative_to(directory).as_posix()} was put there: {NAME} does not name it"
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{NAME} cannot be read: {error}"
    return None


def _wrong(file: Path, said: dict[str, Any]) -> str | None:
    try:
        size = file.stat().st_size
        if size != said["bytes"]:
            return f"has {size} bytes of {said['bytes']}"
        return None if digest_of(file) == said["sha256"] else "is not what was written (its SHA-256 differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _text(values: dict[str, Any]) -> str:
    """The manifest as it is written, with its own digest."""
    own = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json.dumps({**values, "sha256": own}, indent=1) + "\n"
