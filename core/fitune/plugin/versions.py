"""Installed plugins before any of them runs: what their distributions' metadata say, and which fitune they are for."""

from __future__ import annotations

import importlib.metadata

from fitune._version import __version__
from fitune.errors import PluginError

OURS = "fitune"
"""The name of this distribution."""


def load_for_this(entry: importlib.metadata.EntryPoint) -> object:
    """What an entry point names. Raises `PluginError`, before it is imported, where its distribution asks for another
    fitune than this; whatever importing it raises otherwise.
    """
    wanted = _wanted(entry.dist)
    if wanted:
        raise PluginError(
            f"built for fitune {wanted}, and this is {__version__}. Install a version of it that is for this one, or "
            f"the fitune that it is for: pip install 'fitune{wanted}'"
        )
    return entry.load()


def _wanted(distribution: importlib.metadata.Distribution | None) -> str:
    """The versions of fitune that a distribution asks for, if this is none of them."""
    try:
        lines = (distribution.requires if distribution else None) or ()
    except Exception:  # what an interrupted uninstallation left has no metadata
        return ""
    asked = [line for line in lines if line.lower().startswith(OURS)]
    if not asked:
        return ""
    from packaging.requirements import InvalidRequirement, Requirement

    for line in asked:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        met = requirement.specifier.contains(__version__, prereleases=True)
        if requirement.name.lower() == OURS and applies and not met:
            return str(requirement.specifier)
    return ""


def entries_of(group: str) -> list[tuple[importlib.metadata.EntryPoint, str, str | None]]:
    """The entry points of this group, each with its distribution's name and version, in a fixed order."""

    def origin(entry: importlib.metadata.EntryPoint) -> tuple[str, str | None]:
        try:
            return (entry.dist.name, entry.dist.version) if entry.dist else ("?", None)
        except Exception:  # what an interrupted uninstallation left has no metadata
            return "?", None

    found = [(entry, *origin(entry)) for entry in importlib.metadata.entry_points(group=group)]
    return sorted(found, key=lambda e: (e[0].name, e[1]))
