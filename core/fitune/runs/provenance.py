"""What a run came from, written beside it: the resolved recipe, the environment, and the commit of the recipe's git."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import tomli_w

from fitune._version import __version__
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.recipe.secrets import redacted_values
from fitune.runs.atomic import write_file
from fitune.runs.git import state_of
from fitune.runs.layout import ENVIRONMENT, RECIPE

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")


def write_recipe(recipe: Recipe, directory: Path) -> None:
    """Write `recipe.toml`, every choice explicit, paths as they are seen from there; `ft run` takes it as it is."""
    write_file(directory / RECIPE, tomli_w.dumps(recipe.to_toml(directory.resolve())))


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
