"""What is known of a plugin that was found, what it provides, and by which names a recipe picks that.

`use = "NAME"` picks the only provider of a kind that has the name. Where several have it, fitune's own is meant,
whatever else is installed: what a recipe says must not change its meaning because somebody installs a package. Any
other is picked by `"OWNER:NAME"`, with the distribution that brought it, or the stem of the file that a recipe names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from fitune.errors import Problem, nearest
from fitune.plugin.deprecation import Deprecation, Release, this_release
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
    notices: tuple[str, ...] = ()
    """What it uses of fitune's, as it is loaded, that is deprecated."""

    @property
    def release(self) -> Release:
        """What its deprecations are held against: its distribution's release, or this fitune's."""
        if self.origin == "installed" and self.distribution is not None and self.version is not None:
            return Release(name=self.distribution, version=self.version)
        return this_release()

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


def meant(
    provided: Sequence[Provided], plugins: Mapping[str, Plugin], name: str, *, ever: bool = False
) -> list[Provided]:
    """Those of one kind that a name may mean: one where it is clear, several where it is not, or none. A name that one
    had means it where nothing has that name now; `ever` says that it does so after it is gone, too.

    An installed plugin does not take the name of one that comes with fitune. A file that a recipe names, and an object
    that a program gives, are there on purpose: with them a plain name is not clear.
    """
    owner, colon, rest = name.partition(":")
    for called in (_now, partial(_before, plugins, ever)):
        plain = [one for one in provided if called(one, name)]
        if not plain and colon:
            plain = [o for o in provided if called(o, rest) and _alike(plugins[o.plugin].owner, owner)]
            if plain:
                return plain
        origins = {plugins[one.plugin].origin for one in plain}
        if "built-in" in origins and origins <= {"built-in", "installed"}:
            return [one for one in plain if plugins[one.plugin].origin == "built-in"]
        if plain:
            return plain
    return []


def _now(one: Provided, name: str) -> bool:
    return one.record.name == name


def _before(plugins: Mapping[str, Plugin], ever: bool, one: Provided, name: str) -> bool:
    mark, release = _former(one, name), plugins[one.plugin].release
    return mark is not None and (ever or not mark.is_gone(release))


def _former(one: Provided, name: str) -> Deprecation | None:
    """How a name that a provider had is deprecated; None where it had no such name."""
    marks = (mark for mark in one.record.formerly if mark.name == name)
    return next((mark.in_favour_of(f'Write "{one.record.name}"') for mark in marks), None)


def is_gone(one: Provided, plugin: Plugin) -> bool:
    """Whether a provider is deprecated as a whole, and the release that is here is one without it."""
    return one.record.deprecated is not None and one.record.deprecated.is_gone(plugin.release)


def age_of(one: Provided, plugin: Plugin, name: str) -> Iterator[Problem]:
    """What is to be told of a provider that is named so: that it is deprecated, or that it is called otherwise now."""
    for mark in _marks(one, name):
        yield mark.told(f'the {one.kind} "{_bare(one, name)}"', plugin.release)


def ages(one: Provided, plugin: Plugin) -> Iterator[str]:
    """All that is deprecated of a provider but its options, a line each: itself, and names that it had."""
    if one.record.deprecated is not None:
        yield one.record.deprecated.told("it", plugin.release).sentence()
    for mark in one.record.formerly:
        instead = mark.in_favour_of(f'Write "{one.record.name}"')
        yield instead.told(f'its name "{mark.name}"', plugin.release).sentence()


def _marks(one: Provided, name: str) -> Iterator[Deprecation]:
    bare = _bare(one, name)
    if (former := _former(one, bare)) is not None:
        yield former
    if one.record.deprecated is not None and (former is not None or bare == one.record.name):
        yield one.record.deprecated


def _bare(one: Provided, name: str) -> str:
    """A name without its owner."""
    return name if name == one.record.name else name.rpartition(":")[2]


def gone_as(gone: Sequence[Provided], plugins: Mapping[str, Plugin], name: str) -> str:
    """What to say of the name of one that is gone; nothing for that of no such one."""
    found = (age_of(one, plugins[one.plugin], name) for one in gone if one.record.name == name)
    return next((problem.sentence() for told in found for problem in told), "")


def not_there(
    kind: str, name: str, known: Sequence[str], provided: Sequence[Provided], plugins: Mapping[str, Plugin]
) -> str:
    """What to say of a name that picks nothing: `known` are those that do, `provided` all, what is gone among them."""
    for one in provided:
        release = plugins[one.plugin].release
        for mark in _marks(one, name) if one.kind == kind else ():
            if mark.is_gone(release):
                return mark.told(f'the {kind} "{_bare(one, name)}"', release).sentence()
    message = f'unknown {kind} "{name}". {nearest(name, known)}'
    broken = [f"{p.name} ({p.cause})" for p in plugins.values() if p.cause]
    if not broken:
        return message
    return (
        f"{message}{'' if message.endswith('?') else '.'} It may belong to a plugin that is broken: {'; '.join(broken)}"
    )


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
