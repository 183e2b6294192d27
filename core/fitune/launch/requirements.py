"""The exact versions of all packages that a run needs, as they are installed here."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fitune.errors import RunError
from fitune.plugin.recipe import Recipe, Use
from fitune.plugin.registry import GROUP, Registry

OWN = "fitune"
"""Sent as code, and not installed: what runs there is what has made the forecast here."""

EXTRAS = ("bitsandbytes", "gguf", "s3", "schedule-free", "tensorboard")
"""Of fitune's extras, those that a run may use; what of them is here goes with it."""


def requirements(recipe: Recipe, registry: Registry) -> list[str]:
    """A line `name==version` for each package that fitune and the recipe's plugins need, by name. Raises `RunError` for
    a plugin that no index has.
    """
    plugins = sorted(set(_distributions(recipe, registry)))
    for name in plugins:
        _must_be_on_an_index(name)
    found: dict[str, str] = {}
    waiting = [OWN, *plugins, *_of_listeners(recipe)]
    while waiting:
        name = canonicalize_name(waiting.pop())
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # an extra that is not there, or of another platform
            continue
        if name not in found:
            found[name] = distribution.version.partition("+")[0]  # a build of its own, e.g. 2.13.0+cpu
            waiting += _needs(distribution, optional=name == OWN)
    del found[OWN]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _needs(distribution: importlib.metadata.Distribution, *, optional: bool) -> Iterator[str]:
    """What a package needs here; with `optional`, what extras that a run may use would bring too."""
    extras = EXTRAS if optional else ()
    for text in distribution.requires or []:
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield one.name


def _distributions(recipe: Recipe, registry: Registry) -> Iterator[str]:
    """The packages whose plugins a recipe uses."""
    records = [use.record for use in uses(recipe)]
    used = {provided.plugin for provided in registry.provided if any(provided.record is one for one in records)}
    installed = {name for name in used if registry.plugins[name].origin == "installed"}
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.dist is not None and installed & {entry.name, f"{entry.name} ({entry.dist.name})"}:
            yield entry.dist.name


def _of_listeners(recipe: Recipe) -> Iterator[str]:
    """The distributions of packages that its listeners use, a tracker's say."""
    names = [name for use in recipe.listeners for name in use.record.packages(use.options)]
    known = importlib.metadata.packages_distributions() if names else {}
    for name in names:
        yield from known.get(name, ())


def uses(recipe: Recipe) -> Iterator[Use[Any]]:
    """All that a recipe takes of plugins."""
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        yield from (one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Use))


def _must_be_on_an_index(name: str) -> None:
    said = importlib.metadata.distribution(name).read_text("direct_url.json")
    if said:
        place = json.loads(said).get("url")
        raise RunError(
            f"the recipe uses a plugin of the package {name}, which is installed from {place} and not from a package "
            "index, so that the other machine cannot get it. Publish it, or name its file in the "
            "recipe: plugins = [...]"
        )
