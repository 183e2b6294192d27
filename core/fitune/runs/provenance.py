"""What a run came from, written beside it: the resolved recipe, the environment, and the commit of the recipe's git."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import tomli_w

from fitune._version import __version__
from fitune.plugin.reading import read_file
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.recipe.secrets import redacted_values
from fitune.runs.atomic import set_aside, write_file
from fitune.runs.git import state_of
from fitune.runs.layout import ENVIRONMENT, IDENTITY, LARGEST_RECIPE, RECIPE, read_toml

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")


DIGEST = "# SHA-256 of what follows, as it was written: "
"""Begins the first line of a `recipe.toml` that is written here. Runs of before 0.2 have none."""


def write_recipe(recipe: Recipe, directory: Path) -> None:
    """Write `recipe.toml`, every choice explicit, paths as they are seen from there; `ft run` takes it as it is."""
    text = tomli_w.dumps(recipe.to_toml(directory.resolve()))
    write_file(directory / RECIPE, f"{DIGEST}{_digest(text.encode())}\n{text}")


def changed_recipe(run: Path) -> str | None:
    """What to say of a run's `recipe.toml` that is not as it was written, without a full stop; None of one that is, or
    that does not tell. Its owner may have changed it, and a disk too.
    """
    try:
        first, _, rest = read_file(run / RECIPE, LARGEST_RECIPE).partition(b"\n")
    except (OSError, ValueError):
        return None  # which whoever reads it for what it says will tell
    if not first.startswith(DIGEST.encode()) or first.decode(errors="replace") == DIGEST + _digest(rest):
        return None
    again = f", and ft run {run} writes it again" if (run / IDENTITY).exists() else ""
    return (
        f"{run / RECIPE} is not as the run wrote it: its first line has another SHA-256. If you have changed it, take "
        f"that line out; if nobody has, it is damaged{again}"
    )


def mend_recipe(recipe: Recipe, run: Path) -> str | None:
    """Write the `recipe.toml` of a run that is done again, where it is damaged or gone: `recipe` is as the run was
    asked for. What was there is kept beside it, for its owner may have changed it. What was done, or why it could not
    be, without a full stop; None where nothing is wrong. Raises `OSError`.
    """
    file = run / RECIPE
    if not os.path.lexists(file):
        wrong = f"{file} is missing"
    elif changed_recipe(run) is not None:
        wrong = f"{file} is not as the run wrote it"
    elif not read_toml(file):
        wrong = f"{file} cannot be read"
    else:
        return None
    if recipe.memory.fit:
        return (
            f"{wrong}, and what [memory] fit chose stood there alone, so that it cannot be written again. Bring it "
            "back from a copy, or train anew with another --out"
        )
    kept = set_aside(file)
    write_recipe(recipe, run)
    return f"{wrong}, and is written again from {IDENTITY}{f'; what it held is kept in {kept}' if kept else ''}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_environment(recipe: Recipe, registry: Registry, directory: Path, *, model_commit: str | None) -> None:
    """Write `environment.json`. No environment variable is recorded, since they hold secrets; nor is any in what is."""
    values: dict[str, Any] = {
        "fitune": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "plugins": {p.name: p.version for p in registry.plugins.values() if p.origin in ("installed", "file")},
        "command": sys.argv[1:],
        "recipe": str(recipe.path),
        "model_commit": model_commit,
        "git": state_of(recipe.path.resolve().parent),
        "devices": _devices(),
    }
    write_file(directory / ENVIRONMENT, json.dumps(redacted_values(values), indent=2) + "\n")


def versions() -> dict[str, str | None]:
    """Of the packages that decide what a run computes; None for one that is not installed."""
    return {"fitune": __version__, **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, object]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found: list[dict[str, object]] = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append({"name": properties.name, "bytes": properties.total_memory, "cuda": torch.version.cuda})
    return found
