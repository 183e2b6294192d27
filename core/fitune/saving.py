"""Writing what was trained: whole, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from fitune.compose import Parts
from fitune.errors import RunError


def write(parts: Parts, directory: Path) -> None:
    """Write what was trained, with its tokenizer, into an empty directory."""
    parts.run.recipe.adapter.record.save(parts.run.model, directory)
    parts.run.tokenizer.save_pretrained(str(directory))


def save(parts: Parts, name: str | None = None) -> Path:
    """Write what was trained into the run's directory, under the adapter's name if no other. Raises `RunError`."""
    final = parts.run.directory / (name or parts.run.recipe.adapter.record.directory)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(parts, partial)
        if final.exists():
            shutil.rmtree(final)
        partial.replace(final)
    except Exception as error:  # a full disk is an OSError here, an error of safetensors' own there
        raise RunError(f"{final} could not be written: {cause_of(error)}. What was trained is lost") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def cause_of(error: Exception) -> str:
    """Why something could not be written, in a line."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or " ".join(str(error).split()) or type(error).__name__
