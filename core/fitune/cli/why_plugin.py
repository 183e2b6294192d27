"""`ft plugins --why NAME`: where a provider comes from, which keys it owns, and what it changes in a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fitune.cli.list_plugins import wrapped
from fitune.errors import PluginError, nearest
from fitune.plugin.contract import EVENTS, blame
from fitune.plugin.options import describe, to_table, toml_text
from fitune.plugin.provided import Plugin, Provided, ages, gone_as, meant
from fitune.plugin.recipe import Recipe, Use
from fitune.plugin.records import Adapter, DataStage, Listener, MemoryStrategy, ModelLoader, Objective
from fitune.plugin.registry import Registry
from fitune.plugin.strategy import Plan, Strategy
from fitune.recipe.conflicts import TABLES
from fitune.recipe.source import TomlSource

METHODS = {
    "plan": "decides what follows before a weight is read (plan)",
    "loaded": "changes the base model before it gets its adapter (loaded)",
    "prepare": "changes the model, with its adapter on (prepare)",
    "distribute": "shares the model out over processes (distribute)",
    "split_rows": "has processes compute a part of each row (split_rows)",
    "whole": "lies around each call of the model (whole)",
    "make_optimizer": "makes the optimizer (make_optimizer)",
    "make_master": "has masters of its own (make_master)",
    "own_gradients": "takes gradients as they come (own_gradients)",
    "around_step": "lies around each step (around_step)",
    "micro_batch": "computes micro-batches in its own way (micro_batch)",
}
"""What a strategy does that has one of these methods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """What is said of one provider."""

    use: str
    """What a recipe writes to pick it."""
    kind: str
    summary: str
    plugin: str
    origin: str
    distribution: str | None
    version: str | None
    path: str | None
    hooks: tuple[str, ...]
    table: str
    """Where a recipe names it; empty for what a recipe does not name."""
    keys: tuple[str, ...]
    says: tuple[str, ...]
    """What its record says of others."""
    deprecated: tuple[str, ...]
    """What of it is deprecated: it, names that it had, options, and what its plugin uses of fitune's."""
    recipe: str | None = None
    used: bool | None = None
    """Whether the recipe uses it; None where no recipe is given."""
    options: tuple[str, ...] = ()
    """As the recipe has them, every one explicit."""
    changes: tuple[str, ...] = ()
    """What it does to the recipe's run."""


def why(registry: Registry, name: str, recipe: Path | None) -> list[Why]:
    """What is to be said of every provider of a name, or of a plugin. Raises `PluginError`, and `RecipeError`."""
    from fitune.recipe.reader import read_recipe

    read = None if recipe is None else read_recipe(recipe, registry)  # which may bring plugins of its own
    found = [one for one in registry.provided if name in (one.record.name, registry.name_of(one), one.plugin)]
    found = found or meant(registry.provided, registry.plugins, name)
    if not found:
        if (plugin := registry.plugins.get(name)) is not None:
            what = (
                f"broken: {plugin.cause}" if plugin.cause else f"there for its hooks alone: {', '.join(plugin.hooks)}"
            )
            raise PluginError(f'the plugin "{name}" is {what}')
        names = {one.record.name for one in registry.provided}
        gone = gone_as(registry.gone, registry.plugins, name)
        raise PluginError(gone or f'no plugin provides "{name}". {nearest(name, names)}')
    return [_why(registry, one, read) for one in found]


def lines(one: Why) -> Iterator[str]:
    """The same for people."""
    brought = f"{one.distribution or one.origin}{f' {one.version}' if one.version else ''}"
    yield f"{one.use} ({one.kind})"
    yield from wrapped(f"  {one.summary}", 2)
    yield from _told("from", [f"{brought}, plugin {one.plugin}", *([one.path] if one.path else [])])
    yield from _told("hooks", [", ".join(one.hooks)])
    if one.table:
        yield from _told("keys", [f'{one.table} use = "{one.use}"', *([", ".join(one.keys)] if one.keys else [])])
    yield from _told("says", one.says)
    yield from _told("status", one.deprecated or ("ok",))
    if one.used is False:
        yield from _told("recipe", [f"{one.recipe} does not use it, so that it changes nothing there"])
    elif one.used:
        yield from _told("recipe", [str(one.recipe), *one.options])
        yield from _told("changes", one.changes)


def _told(word: str, said: Sequence[str]) -> Iterator[str]:
    for number, text in enumerate(said):
        yield from wrapped(f"  {word if number == 0 else '':9}{text}", 11)


def _why(registry: Registry, one: Provided, recipe: Recipe | None) -> Why:
    record, plugin = one.record, registry.plugins[one.plugin]
    uses = [] if recipe is None else [use for use in _uses(recipe) if registry.provided_by(use.record) is one]
    former = [mark.name for mark in record.formerly]
    named = recipe is not None and bool(uses) and _is_named(recipe, registry.name_of(one), record.name, *former)
    told = [] if named or not uses else ["it is there by itself: the recipe does not name it"]
    for use in uses:
        told += _changes(use, recipe)
    return Why(
        use=registry.name_of(one),
        kind=one.kind,
        summary=record.summary,
        plugin=plugin.name,
        origin=plugin.origin,
        distribution=plugin.distribution,
        version=plugin.version,
        path=plugin.path,
        hooks=plugin.hooks,
        table=TABLES.get(one.kind, "").removeprefix("a ").replace("stage", "source" if _is_source(record) else "stage"),
        keys=tuple(option.name for option in describe(record.options, plugin.release)),
        says=tuple(_says(record)),
        deprecated=(*ages(one, plugin), *_old_options(record, plugin), *plugin.notices),
        recipe=None if recipe is None else str(recipe.path),
        used=None if recipe is None else bool(uses),
        options=tuple(f"{key} = {toml_text(value)}" for use in uses for key, value in to_table(use.options).items()),
        changes=tuple(told),
    )


def _old_options(record: Any, plugin: Plugin) -> Iterator[str]:
    for option in describe(record.options, plugin.release):
        if option.deprecated:
            yield f"{option.name} {option.deprecated}"
        yield from (f'"{name}" is called {option.name} now' for name in option.formerly)


def _is_source(record: object) -> bool:
    return isinstance(record, DataStage) and record.takes == "nothing"


def _is_named(recipe: Recipe, *names: str) -> bool:
    """Whether the recipe's file names one of these."""

    def named(value: object) -> bool:
        if isinstance(value, dict):
            return value.get("use") in names or any(map(named, value.values()))
        return isinstance(value, list) and any(map(named, value))

    return named(TomlSource.read(recipe.path).values)


def _uses(recipe: Recipe) -> Iterator[Use[Any]]:
    yield from (recipe.model, recipe.adapter, recipe.objective)
    for uses in (recipe.strategies, recipe.sources, recipe.stages, recipe.eval_sources, recipe.listeners):
        yield from uses


def _says(record: Any) -> Iterator[str]:
    for role in getattr(record, "makes", ()):
        yield f"makes the {role}, which a run has once"
    for name, reason in getattr(record, "requires", {}).items():
        yield f'needs "{name}": {reason}'
    for name, reason in getattr(record, "conflicts_with", {}).items():
        yield f'cannot be used with "{name}": {reason}'
    if before := getattr(record, "before", ()):
        yield f"works before {', '.join(before)}"


def _changes(use: Use[Any], recipe: Recipe | None) -> Iterator[str]:
    """What it does to a run, by its kind. Raises `PluginError` where its own code fails."""
    record = use.record
    if isinstance(record, MemoryStrategy):
        with blame(f'memory strategy "{record.name}"'):
            yield from _of_strategy(record.make(use.options))
    elif isinstance(record, ModelLoader):
        yield "loads the tokenizer and the base model"
    elif isinstance(record, Adapter):
        yield f"decides which parameters train, and saves them in RUN/{record.directory}"
    elif isinstance(record, Objective):
        yield f"gives the loss, of {record.takes}{', and changes what the model is' if record.convert else ''}"
    elif isinstance(record, DataStage):
        yield f"gives {record.gives}" if _is_source(record) else f"makes {record.gives} of {record.takes}"
        if recipe is not None and use in recipe.stages:
            yield f"is stage {recipe.stages.index(use) + 1} of {len(recipe.stages)}"
    elif isinstance(record, Listener):
        with blame(f'listener "{record.name}"'):
            made = record.make(use.options)
        yield f"hears {', '.join(name for name in EVENTS if hasattr(made, name))}"


def _of_strategy(strategy: Strategy) -> Iterator[str]:
    kind = type(strategy)
    for method, what in METHODS.items():
        if getattr(kind, method) is not getattr(Strategy, method):
            yield what
    before = Plan(gpu=True)
    after = strategy.plan(before)
    for field in fields(Plan):
        one, other = getattr(before, field.name), getattr(after, field.name)
        if one is not other and one != other and field.name != "notices":
            plain = all(isinstance(value, (bool, int, str, tuple)) for value in (one, other))
            yield f"plan.{field.name}: {f'{one!r} becomes {other!r}' if plain else 'its own'}"
