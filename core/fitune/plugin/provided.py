"""What is known of a plugin that was found, what it provides, and by which names a recipe picks that.

`use = "NAME"` picks the only provider of a kind that has the name. Where several have it, fitune's own is meant,
whatever else is installed: what a recipe says must not change its meaning because somebody installs a package. Any
other is picked by `"OWNER:NAME"`, with the distribution that brought it, or the stem of the file that a recipe names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fitune.plugin.records import Provider
from fitune.plugin.versions import OURS


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plugin that was found, whether it works or not."""

    name: str
    origin: Literal["built-in", "installed", "file", "given"]
    version: str | None = None
    path: str | None = None
    distribution: str | None = None
    """What it was installed with; None for a file, and for an object that a program gives."""
    module: str | None = None
    """Its module's dotted name; None for an object that a program gives."""
    digest: str | None = None
    """SHA-256 of the text of a single file, as it ran; None for all others."""
    hooks: tuple[str, ...] = ()
    cause: str | None = None
    """Why it is broken; None if it works."""

    @property
    def owner(self) -> str:
        """What stands before the colon where a recipe names one of several providers."""
        return self.distribution or (Path(self.name).stem if self.origin == "file" else self.name)

    @property
    def told(self) -> str:
        """Where it comes from, for a person: the distribution and its version, or the file."""
        return self.owner if self.version is None else f"{self.owner} {self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provided:
    """A provider record and the plugin that gave it."""

    kind: str
    record: Provider
    plugin: str


def built_in_plugin(dotted: str, version: str) -> Plugin:
    """One that comes with fitune, before it is loaded."""
    return Plugin(name=dotted, origin="built-in", version=version, distribution=OURS, module=dotted)


def meant(provided: Sequence[Provided], plugins: Mapping[str, Plugin], name: str) -> list[Provided]:
    """Those of one kind that a name may mean: one where it is clear, several where it is not, or none.

    An installed plugin does not take the name of one that comes with fitune. A file that a recipe names, and an object
    that a program gives, are there on purpose: with them a plain name is not clear.
    """
    plain = [one for one in provided if one.record.name == name]
    owner, colon, rest = name.partition(":")
    if not plain and colon:
        return [one for one in provided if one.record.name == rest and _alike(plugins[one.plugin].owner, owner)]
    origins = {plugins[one.plugin].origin for one in plain}
    if "built-in" in origins and origins <= {"built-in", "installed"}:
        return [one for one in plain if plugins[one.plugin].origin == "built-in"]
    return plain


def spelling(one: Provided, provided: Sequence[Provided], plugins: Mapping[str, Plugin]) -> str:
    """How a recipe picks one of the providers of its kind: by its plain name where that is clear."""
    name = one.record.name
    return name if meant(provided, plugins, name) == [one] else f"{plugins[one.plugin].owner}:{name}"


def not_clear(found: Sequence[Provided], plugins: Mapping[str, Plugin], name: str) -> str:
    """What to say of a name that may mean several, with what to write in its place."""
    owners = {plugins[one.plugin].owner for one in found}
    what = f'{len(found)} plugins provide a {found[0].kind} "{name}"'
    if len(owners) < len(found):  # even the owner would not tell them apart
        return f"{what}: {' and '.join(sorted(one.plugin for one in found))}. Uninstall or rename one"
    names = " or ".join(f'"{owner}:{found[0].record.name}"' for owner in sorted(owners))
    return f"{what}. Say which is meant: use = {names}"


def _alike(one: str, other: str) -> bool:
    """Whether two names are of the same distribution, as package indices compare them (PEP 503)."""
    first, second = (re.sub(r"[-_.]+", "-", name).lower() for name in (one, other))
    return first == second
