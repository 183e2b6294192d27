"""Which plugins a run was made with: an upgraded one computes something else under the same recipe.

Of every provider that a recipe uses the run keeps the distribution, its version and a digest of its code. Of those that
come with fitune it keeps no more than that they do: what fitune computes is held by its own tests from release to
release, and a run that goes on is told of another version of fitune or torch (`fitune.runs.provenance.versions`), as
an upgrade must not stop every run that is under way. Nobody holds a third party's plugin to that, so a change in it is
an error until it is allowed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from fitune.errors import PluginError, RunError
from fitune.plugin.code import code_of_plugin
from fitune.plugin.provided import Plugin, Provided
from fitune.plugin.recipe import Recipe, Use
from fitune.plugin.records import Listener
from fitune.plugin.registry import KINDS, Registry
from fitune.plugin.versions import OURS
from fitune.runs.layout import IDENTITY, read_json

KEY = "plugins"
"""What `--allow-changed` takes for all of them."""

UNKNOWN = "it is not known which versions of plugins this began with, so that they cannot be compared"
"""Of runs that were made before they were kept."""

Kept: TypeAlias = "Mapping[str, Mapping[str, str | None]]"
"""By kind and name, e.g. "adapter lora": "distribution", "version" and "digest", None for what a plugin has not."""


def plugins_of(registry: Registry, *recipes: Recipe) -> Kept:
    """The plugins of all providers that recipes use, as they are; by the names that a provider had, too, under which an
    older run may have kept it. Raises `RunError` if their code cannot be read.
    """
    found: dict[str, Mapping[str, str | None]] = {}
    known: dict[str, Mapping[str, str | None]] = {}
    for use in (use for recipe in recipes for use in _uses(recipe)):
        if (one := _provided(registry, use)) is not None:
            if one.plugin not in known:
                known[one.plugin] = _as_it_is(registry.plugins[one.plugin])
            found |= {f"{one.kind} {name}": known[one.plugin] for name in _names(one)}
    return found


def kept_plugins(run: Path) -> Kept | None:
    """Those that a run's directory says it was made with; None where it does not, as those of before 0.2."""
    found = read_json(run / IDENTITY).get("plugins")
    return found if are_kept(found) else None


def are_kept(values: Any) -> bool:
    """Whether values are of the types of `Kept`."""
    tables = isinstance(values, dict) and all(isinstance(kept, dict) for kept in values.values())
    return tables and all(isinstance(text, (str, type(None))) for kept in values.values() for text in kept.values())


def is_third_party(kept: Mapping[str, str | None]) -> bool:
    """Whether a plugin is none that comes with fitune."""
    return kept.get("distribution") != OURS


def plugin_differences(before: Kept | None, now: Kept) -> Iterator[tuple[str, str]]:
    """What used plugins were and what they are, each in words, where a plugin is not what it was: of providers that are
    used now and were then, but listeners, which change nothing that is computed.
    """
    named: dict[tuple[str, str], list[str]] = {}
    for what, was in (before or {}).items():
        if what in now and now[what] != was and not what.startswith(f"{KINDS[Listener]} "):
            one, other = _told(was), _told(now[what])
            if one == other:  # the same version of other code
                one, other = f"{one} ({_code(was)})", f"{other} ({_code(now[what])})"
            named.setdefault((one, other), []).append(what)
    for (one, other), names in named.items():
        yield f"{', '.join(names)} of {one}", other


def must_be_trained_with(run: Path, before: Kept | None, now: Kept, *, allowed: bool) -> str | None:
    """What to say of plugins that are not those that a run was trained with, where that is allowed; None where they
    are. Raises `RunError` where it is not allowed.
    """
    found = [f"{one} then, {other} now" for one, other in plugin_differences(before, now)]
    if not found:
        return None
    if allowed:
        return f"this was trained with other plugins: {'; '.join(found)}"
    flag = f"--allow-changed {KEY}"
    error = RunError(f"{run} was trained with other plugins: {'; '.join(found)}. If that is meant: {flag}")
    error.lines = (
        f"{run} was trained with other plugins, and may not be what was trained with these",
        *(f"{run}: {one}" for one in found),
        f"Install what it was trained with, or, if that is meant, add: {flag}",
    )
    raise error


def must_have_plugins(run: Path, before: Kept | None, registry: Registry) -> None:
    """Raise `RunError` where a plugin that a run was made with is not there, with what to install."""
    missing: dict[str, tuple[str, str]] = {}
    for what, kept in (before or {}).items():
        distribution = kept.get("distribution")
        provided = {f"{one.kind} {called}" for one in registry.provided for called in _names(one)
                    if registry.plugins[one.plugin].distribution == distribution}  # fmt: skip
        if distribution is not None and is_third_party(kept) and what not in provided:
            kind, _, name = what.rpartition(" ")
            missing.setdefault(distribution, (f'the {kind} "{name}" of {_told(kept)}', kept.get("version") or ""))
    if not missing:
        return
    lines = [f"{run} used {what}, {_why_not(registry, name, version)}" for name, (what, version) in missing.items()]
    error = RunError(". ".join(lines))
    error.lines = tuple(lines)
    raise error


def _names(one: Provided) -> tuple[str, ...]:
    return (one.record.name, *(mark.name for mark in one.record.formerly))


def _why_not(registry: Registry, distribution: str, version: str) -> str:
    """Why what it provided is not there, and what to do."""
    here = [plugin for plugin in registry.plugins.values() if plugin.distribution == distribution]
    exactly = f"pip install '{distribution}{f'=={version}' if version else ''}'"
    if any(plugin.cause for plugin in here):
        return f"which is broken here: {next(plugin.cause for plugin in here if plugin.cause)}"
    if here:
        return f"which is {here[0].told} here, and does not provide that. Install what the run had: {exactly}"
    if not registry.third_party:
        return "and no installed plugin is loaded. Leave out --no-third-party (FT_NO_THIRD_PARTY)"
    return f"which is not installed here. Install it: {exactly}"


def _uses(recipe: Recipe) -> Iterator[Use[Any]]:
    yield from (recipe.model, recipe.adapter, recipe.objective)
    for uses in (recipe.strategies, recipe.sources, recipe.stages, recipe.eval_sources, recipe.listeners):
        yield from uses


def _provided(registry: Registry, use: Use[Any]) -> Provided | None:
    """What a table is served by; None where no plugin of this registry gave it, as in a recipe that a program made."""
    if (one := registry.provided_by(use.record)) is None:  # the recipe was read with another registry
        with contextlib.suppress(PluginError):
            one = registry.provider(type(use.record), use.given or use.record.name)
    return one


def _as_it_is(plugin: Plugin) -> Mapping[str, str | None]:
    if plugin.origin == "built-in":
        return {"distribution": OURS, "version": None, "digest": None}
    try:
        digest = code_of_plugin(plugin)
    except OSError as error:
        raise RunError(f"the code of plugin {plugin.name} cannot be read: {error}. Install it again") from error
    return {"distribution": plugin.distribution, "version": plugin.version, "digest": digest}


def _code(kept: Mapping[str, str | None]) -> str:
    return f"code {(kept.get('digest') or 'unknown')[:8]}"


def _told(kept: Mapping[str, str | None]) -> str:
    name = kept.get("distribution")
    if name == OURS:
        return "fitune itself"
    version = kept.get("version")
    return "a single file" if name is None else name if version is None else f"{name} {version}"
