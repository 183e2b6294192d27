"""Writing what was trained: whole, or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from fitune.checkpoint.files import write_trained
from fitune.checkpoint.manifest import write_manifest
from fitune.compose.dialogue import save_tokenizer
from fitune.compose.parts import Parts
from fitune.errors import RunError, cause
from fitune.runs.atomic import begin, publish
from fitune.runs.card import CARD
from fitune.runs.layout import CHECKPOINTS


def write(parts: Parts, directory: Path, step: int | None = None, kept: Path | None = None) -> None:
    """Write what was trained into an empty directory, with its tokenizer, the template that it was trained with, and a
    manifest of it all: of so many steps (all, where none are given), or what a checkpoint, `kept`, has of it.
    """
    step = parts.run.steps if step is None else step
    if kept is None:
        write_trained(parts, directory)
    else:
        shutil.copytree(kept / parts.run.recipe.adapter.record.directory, directory, dirs_exist_ok=True)
        step = int(kept.name.removeprefix("step-"))
    save_tokenizer(parts.run.tokenizer, parts.dialogue, directory)
    write_manifest(directory, step, without=[CARD])  # which is written later, and anybody may change


def save(parts: Parts, step: int | None = None, kept: Path | None = None) -> Path:
    """Write what was trained in so many steps, or what a checkpoint has of it, into the run's directory, whole. Raises
    `RunError`, which says where else it is.
    """
    final = parts.run.directory / parts.run.recipe.adapter.record.directory
    partial: Path | None = None
    try:
        partial = begin(final)
        write(parts, partial, step, kept)
        publish(partial, final)
    except Exception as error:  # a full disk is an OSError here, an error of safetensors' own there
        raise RunError(f"{final} could not be written: {cause(error)}. {_rescue(parts, step, kept)}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return final


def save_unfinished(parts: Parts) -> Path | None:
    """Write what trains, in the midst of a step that cannot be undone, beside the place of what is finished; None where
    that cannot be.
    """
    record = parts.run.recipe.adapter.record
    place = parts.run.directory / f"{record.directory}.unfinished"
    with contextlib.suppress(Exception):
        partial = begin(place)
        write(parts, partial)
        publish(partial, place)
        return place
    return None


def _rescue(parts: Parts, step: int | None, kept: Path | None) -> str:
    """Where else what was trained is: in a checkpoint of the last step, or in a directory for temporary files, where it
    is written now.
    """
    checkpoint = parts.run.directory / CHECKPOINTS / f"step-{parts.run.steps if step is None else step}"
    if checkpoint.is_dir():
        return f"What was trained is in {checkpoint}. Make room, then: ft run {parts.run.directory}"
    try:
        place = Path(tempfile.mkdtemp(prefix="fitune-rescued-"))
        write(parts, place, step, kept)
    except Exception as error:
        return f"Nor could it be written to {tempfile.gettempdir()}: {cause(error)}. What was trained is lost"
    return f"What was trained was written to {place} instead: move it to a safe place"
