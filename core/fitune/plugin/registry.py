"""Finds plugins, keeps a broken one from harming the rest, and hands out what they provide.

Plugins come from three places, in this order: those built in, those that installed distributions announce in the
entry-point group `fitune`, and single files that a recipe names. Everything a plugin does wrong is caught here and
carries its name: pluggy's own loading has no isolation, and its errors do not say which plugin raised them.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import pluggy

from fitune._version import __version__
from fitune.errors import FtError, PluginError
from fitune.plugin import contract
from fitune.plugin.built_in import built_in
from fitune.plugin.deprecation import hearing
from fitune.plugin.eventspecs import EventHooks
from fitune.plugin.extendspecs import ExtendHooks
from fitune.plugin.hookspecs import OfferHooks
from fitune.plugin.launching import Launcher
from fitune.plugin.provided import Plugin, Provided, built_in_plugin, is_gone, meant, not_clear, not_there, spelling
from fitune.plugin.records import Adapter, DataStage, Listener, MemoryStrategy, ModelLoader, Objective, Provider
from fitune.plugin.single_file import import_file, source_of
from fitune.plugin.tasks import TaskSuite
from fitune.plugin.trust import Trust
from fitune.plugin.versions import entries_of, load_for_this

GROUP = "fitune"

P = TypeVar("P", bound=Provider)

KINDS: dict[type[Any], str] = {
    ModelLoader: "model loader",
    Adapter: "adapter",
    Objective: "objective",
    MemoryStrategy: "memory strategy",
    DataStage: "data stage",
    Listener: "listener",
    Launcher: "launcher",
    TaskSuite: "task suite",
}


class Registry:
    """The plugins of one process; made once and passed on, never global."""

    def __init__(
        self,
        *,
        trace: Callable[[str], None] | None = None,
        trusts_remote_code: bool = False,
        trust: Trust | None = None,
    ) -> None:
        """An empty registry. `trace` is told of every hook call: hook, plugin, seconds. With `trusts_remote_code`
        recipes may have models run code of their own (`fitune.recipe.checks`); `trust` says which files of recipes
        may run, by default those that are known on this machine.
        """
        self.trusts_remote_code = trusts_remote_code
        self.trust = Trust() if trust is None else trust
        self.third_party = False
        """Whether installed plugins were loaded."""
        self.takes_other_plugins = False
        """Whether what was trained with other versions of plugins may be opened with these."""
        self.forecasts = False
        """Whether recipes are read for a forecast alone, so that what only a run needs may be missing here."""
        self._manager = _new_manager()
        self._trace = trace
        self._homes = set(built_in())
        self.plugins: dict[str, Plugin] = {}
        self.provided: list[Provided] = []
        self.gone: list[Provided] = []
        """What was deprecated, and cannot be used any more."""
        self._errors: dict[str, BaseException] = {}

    @classmethod
    def open(
        cls,
        *,
        third_party: bool = True,
        trace: Callable[[str], None] | None = None,
        trusts_remote_code: bool = False,
        trust: Trust | None = None,
    ) -> Registry:
        """A registry of all built-in and, unless `third_party` is false, all installed plugins."""
        registry = cls(trace=trace, trusts_remote_code=trusts_remote_code, trust=trust)
        registry.third_party = third_party
        entries = entries_of(GROUP) if third_party else []
        registry._homes |= {entry.value.partition(":")[0].strip() for entry, _, _ in entries}
        for dotted in built_in():
            registry._load(built_in_plugin(dotted, __version__), partial(importlib.import_module, dotted))
        announced = Counter(entry.name for entry, _, _ in entries)
        for entry, distribution, version in entries:
            plugin = Plugin(
                name=entry.name if announced[entry.name] == 1 else f"{entry.name} ({distribution})",
                origin="installed",
                version=version,
                distribution=distribution,
                module=entry.value.partition(":")[0].strip(),
            )
            registry._load(plugin, partial(load_for_this, entry))
        return registry

    def load_file(self, path: Path) -> None:
        """Load the single-file plugin that a recipe names. Raises `PluginError` if it is broken: it was asked for; and
        `fitune.plugin.trust.UnknownCode`, before any of it has run, if it is not known on this machine.
        """
        name = os.path.normpath(path)
        if (plugin := self.plugins.get(name)) is None:
            source = source_of(path, self.trust)
            plugin = Plugin(name=name, origin="file", digest=hashlib.sha256(source).hexdigest())
            plugin = self._load(plugin, partial(import_file, path, source))
        if plugin.cause is not None:
            raise PluginError(f"plugin {path}: {plugin.cause}") from self._errors.get(name)

    def register(self, plugin: object, name: str) -> None:
        """Register an object that is a plugin. Raises `PluginError` if it is broken."""
        cause = self._load(Plugin(name=name, origin="given"), lambda: plugin).cause
        if cause is not None:
            raise PluginError(f"plugin {name}: {cause}")

    def find(self, record_type: type[P], name: str) -> P:
        """The provider of this type that a name picks in a recipe. Raises `PluginError` if it picks none or several."""
        return cast(P, self.provider(record_type, name).record)

    def provider(self, record_type: type[Any], name: str, *, ever: bool = False) -> Provided:
        """The same, with the plugin that gave it; `ever` says that it may be an old name that is gone."""
        kind = KINDS[record_type]
        found = meant(self._of_kind(kind), self.plugins, name, ever=ever)
        if len(found) == 1:
            return found[0]
        if found:
            raise PluginError(not_clear(found, self.plugins, name))
        raise PluginError(not_there(kind, name, self.names(record_type), [*self.provided, *self.gone], self.plugins))

    def names(self, record_type: type[Any]) -> list[str]:
        """The names by which recipes pick the providers of a type, sorted."""
        return sorted({self.name_of(one) for one in self._of_kind(KINDS[record_type])})

    def name_of(self, one: Provided) -> str:
        """What a recipe writes behind `use` to pick a provider: `OWNER:NAME` where its name alone does not do it."""
        return spelling(one, self._of_kind(one.kind), self.plugins)

    def spelled(self, record: Provider) -> str:
        """`OWNER:NAME`, where a recipe picks this record by no less; empty where its name does."""
        one = self.provided_by(record)
        return "" if one is None or (name := self.name_of(one)) == record.name else name

    def provided_by(self, record: Provider) -> Provided | None:
        """Which of all that plugins provide a record is, or works in the place of; None for one of no plugin's."""
        return next(
            (
                o
                for o in self.provided
                if any(record is r for r in (o.record, getattr(o.record, "for_preferences", None)))
            ),
            None,
        )

    def _of_kind(self, kind: str) -> list[Provided]:
        return [one for one in self.provided if one.kind == kind]

    def call(self, hook: str, **arguments: object) -> list[tuple[str, Any]]:
        """Call a hook in every plugin that implements it, last registered first: (plugin, result) each.

        Raises `PluginError`, which names the plugin, on the first exception that is not an `FtError`.
        """
        return [(name, self._call(name, hook, function, arguments)) for name, function in self._functions(hook)]

    def call_of(self, plugin: str, hook: str, **arguments: object) -> None:
        """Like `call`, of one plugin alone, where it implements the hook."""
        for name, function in self._functions(hook):
            if name == plugin:
                self._call(name, hook, function, arguments)

    def call_every(self, hook: str, **arguments: object) -> list[FtError]:
        """Like `call`, but an error keeps no other plugin from being called: the errors."""
        errors: list[FtError] = []
        for name, function in self._functions(hook):
            try:
                self._call(name, hook, function, arguments)
            except FtError as error:
                errors.append(error)
        return errors

    def for_run(self, listeners: Mapping[str, object]) -> Registry:
        """A registry of the same plugins that knows these listeners too, by name; this one does not.

        Events come to the listeners before they come to plugins, and in this order. Raises `PluginError` for one that
        breaks its contract.
        """
        made = copy.copy(self)
        made.plugins, made.provided, made._errors = dict(self.plugins), list(self.provided), dict(self._errors)
        made._manager = _new_manager()
        for name, plugin in self._manager.list_name_plugin():
            made._manager.register(plugin, name)
        for name, listener in reversed(list(listeners.items())):  # what is registered last is called first
            contract.check_listener(made._manager, name, listener)
            made._manager.register(listener, contract.listener_title(name))
        return made

    def _functions(self, hook: str) -> list[tuple[str, Callable[..., Any]]]:
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        return [(i.plugin_name, i.function) for i in reversed(implementations)]

    def _call(self, plugin: str, hook: str, function: Callable[..., Any], arguments: dict[str, object]) -> Any:
        wanted = inspect.signature(function).parameters
        start = time.perf_counter()
        ended = " failed"
        try:
            with contract.blame(f"{contract.title(plugin)}: {hook}"):
                result = function(**{k: v for k, v in arguments.items() if k in wanted})
                if isinstance(result, Iterable):
                    result = list(result)  # a generator's body runs here, where its errors get a name
            ended = ""
        finally:
            if self._trace:
                self._trace(f"{hook} {plugin} {time.perf_counter() - start:.4f} s{ended}")
        return contract.check_given(plugin, hook, result) if hook in contract.RECORDS else result

    def _load(self, plugin: Plugin, get: Callable[[], object]) -> Plugin:
        """Load one plugin; whatever goes wrong, only this plugin is broken."""
        shown = plugin.name
        while shown in self.plugins:  # an entry point may have a built-in's name, or a test give one twice
            shown += "'"
        plugin = replace(plugin, name=shown)
        try:
            with hearing() as heard:
                module = get()
                plugin = replace(
                    plugin,
                    path=getattr(module, "__file__", None),
                    module=plugin.module or (module.__name__ if inspect.ismodule(module) else None),
                )
                other = self._manager.get_name(module)
                if other is not None:
                    raise PluginError(f'it is the same as plugin "{other}"')
                contract.check_hooks(self._manager, module, self._homes)
                self._manager.register(module, shown)
                self._manager.check_pending()
                callers = self._manager.get_hookcallers(module) or []
                provided = self._provided(shown)
            plugin = replace(plugin, hooks=tuple(sorted(caller.name for caller in callers)), notices=tuple(heard))
            for one in provided:
                (self.gone if is_gone(one, plugin) else self.provided).append(one)
        except (Exception, SystemExit) as error:
            if self._manager.has_plugin(shown):
                self._manager.unregister(name=shown)
            self._errors[shown] = error
            plugin = replace(plugin, hooks=(), cause=contract.cause(error).removeprefix(f"plugin {shown}: "))
        self.plugins[shown] = plugin
        return plugin

    def _provided(self, plugin: str) -> list[Provided]:
        """All that a plugin provides: nothing of it counts if any of it is wrong."""
        found: list[Provided] = []
        for hook, record_type in contract.PROVIDERS.items():
            kind = KINDS[record_type]
            functions = [function for name, function in self._functions(hook) if name == plugin]
            for record in (record for function in functions for record in self._call(plugin, hook, function, {})):
                if any((p.kind, p.record.name) == (kind, record.name) for p in found):
                    raise PluginError(f'it provides the {kind} "{record.name}" twice')
                found.append(Provided(kind=kind, record=record, plugin=plugin))
        return found


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("fitune")
    for specifications in (OfferHooks, ExtendHooks, EventHooks):
        manager.add_hookspecs(specifications)
    return manager
