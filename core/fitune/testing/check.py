"""`ft plugins check`: all that a plugin provides, each held to the contract of its kind."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import tomli

from fitune import testing
from fitune.errors import FtError, PluginError, described, nearest
from fitune.plugin.contract import cause
from fitune.plugin.launching import Launcher
from fitune.plugin.options import describe, parse
from fitune.plugin.provided import Provided
from fitune.plugin.reading import read_file
from fitune.plugin.records import (
    Adapter,
    DataStage,
    Listener,
    MemoryStrategy,
    ModelLoader,
    Objective,
)
from fitune.plugin.registry import GROUP
from fitune.plugin.single_file import import_file
from fitune.testing.tiny import name_of

ASSERTIONS: Mapping[type[Any], tuple[Any, str]] = {
    ModelLoader: (testing.assert_loader, "loads the same twice, is forecast, trains"),
    Adapter: (testing.assert_adapter, "trains, saves, comes back, goes on to the bit, is forecast"),
    Objective: (testing.assert_objective, "trains, in any micro-batches, goes on to the bit, is forecast"),
    MemoryStrategy: (testing.assert_strategy, "trains, as exactly as it says, goes on to the bit, is forecast"),
    Listener: (testing.assert_listener, "changes nothing, goes on to the bit"),
}
"""By the type of a record: what asserts its contract, and in a few words what that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What became of one that a plugin provides."""

    kind: str
    name: str
    outcome: str
    """"ok", "failed" or "not tried"."""
    what: str
    seconds: float = 0.0


def modules_at(place: str) -> list[ModuleType]:
    """The plugins of a Python file, of a directory with a `pyproject.toml` that announces some, or of an installed
    distribution or entry point of this name. Raises `PluginError`.
    """
    path = Path(place)
    with _in_words(place):
        if path.is_file():
            return [import_file(path, path.read_bytes())]
        if path.is_dir():
            return _of_a_package(path)
        entries = [
            entry
            for entry in importlib.metadata.entry_points(group=GROUP)
            if place in (entry.name, entry.dist.name if entry.dist else None)
        ]
        if entries:
            return [entry.load() for entry in entries]
    raise PluginError(f"there is no file, directory or installed plugin {place}. `ft plugins` lists what is installed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A plugin that is loaded."""

    module: object
    name: str
    provided: tuple[Provided, ...]
    hooks: tuple[str, ...]


def opened(module: object) -> Opened:
    """Load a plugin beside the built-in ones. Raises `PluginError` for one that cannot be loaded."""
    registry, name = testing.open_registry(module), name_of(module)
    provided = tuple(one for one in registry.provided if one.plugin == name)
    return Opened(module=module, name=name, provided=provided, hooks=tuple(registry.plugins[name].hooks))


def must_be_options(plugin: Opened, options: Mapping[str, Mapping[str, object]]) -> None:
    """Raise `PluginError` for an option that the one of this name does not have."""
    for one in plugin.provided:
        known = [option.name for option in describe(one.record.options)]
        for key in options.get(one.record.name, {}):
            if key not in known:
                name = one.record.name
                raise PluginError(f'--set {name}.{key}: {name} has no option "{key}". {nearest(key, known)}')


def check(plugin: Opened, options: Mapping[str, Mapping[str, object]]) -> Iterator[Checked]:
    """Hold all that a plugin provides to its contract; `options` are those of each by its name."""
    module, name, provided, hooks = plugin.module, plugin.name, plugin.provided, plugin.hooks
    for one in provided:
        yield _checked(module, one, options.get(one.record.name, {}))
    if "ft_commands" in hooks:
        yield _commands(module)
    if not provided and "ft_commands" not in hooks:
        what = f"it provides nothing that has a contract: {', '.join(hooks)}"
        yield Checked(kind="events", name=name, outcome="not tried", what=what)


def _checked(module: object, one: Provided, options: Mapping[str, object]) -> Checked:
    missing = [o.name for o in describe(one.record.options) if o.default is None and o.name not in options]
    if missing:
        what = f"it needs {', '.join(missing)}. Give --set {one.record.name}.{missing[0]}=VALUE"
        return Checked(kind=one.kind, name=one.record.name, outcome="not tried", what=what)
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as home, _silently():
            what = _assert(module, one, options, Path(home))
        outcome = "not tried" if what.startswith("no contract") else "ok"
    except AssertionError as error:
        outcome, what = "failed", " ".join(str(error).split())
    except Exception as error:
        outcome, what = "failed", described(error)
    seconds = time.monotonic() - start
    return Checked(kind=one.kind, name=one.record.name, outcome=outcome, what=what, seconds=seconds)


def _assert(module: object, one: Provided, options: Mapping[str, object], home: Path) -> str:
    """Assert the contract; gives in a few words what it is."""
    record, name = one.record, one.record.name
    if isinstance(record, DataStage):
        if record.takes == "nothing":
            testing.assert_source(module, name, home, options)
            return "gives rows, with origins, the same twice"
        testing.assert_stage(module, name, home, options)
        return f"makes {record.gives} of {record.takes}, the same twice, and trains"
    if isinstance(record, Launcher):
        return _launcher(record, options, home)
    found = ASSERTIONS.get(type(record))
    if found is None:
        return "no contract for this kind"
    found[0](module, name, home, options)
    return found[1] if not isinstance(record, Adapter) else _of_adapter(record)


def _of_adapter(record: Adapter[Any]) -> str:
    """What was asserted of an adapter, and what could not be, since it gives no way for it."""
    back = record.load is not None or record.load_whole is not None
    told = ASSERTIONS[Adapter][1] if back else ASSERTIONS[Adapter][1].replace(", comes back", "")
    lacking = [] if back else ["no load (ft generate, ft eval and ft merge refuse its runs)"]
    if back and record.load is not None and record.merge is None:
        lacking.append("no merge (ft merge refuses its runs)")
    return "; it gives ".join([told, *lacking])


def _launcher(record: Launcher[Any], options: Mapping[str, object], home: Path) -> str:
    given, problems = parse(record.options, options)
    if given is None:
        raise PluginError(problems[0].what)
    testing.assert_launcher(record, given, home / "tried")
    return "submits, asks after, stops and fetches jobs"


def _commands(module: Any) -> Checked:
    """Each command that it adds says what it is for."""
    from click.testing import CliRunner

    group = click.Group("ft")
    try:
        module.ft_commands(group)
        assert group.commands, "ft_commands adds none"
        for name, command in group.commands.items():
            told = CliRunner().invoke(command, ["--help"])
            assert told.exit_code == 0, f"ft {name} --help fails: {told.output}"
            assert (command.help or "").strip(), f"ft {name} has no help"
    except Exception as error:
        return Checked(kind="commands", name=", ".join(group.commands) or "-", outcome="failed", what=str(error))
    return Checked(kind="commands", name=", ".join(group.commands), outcome="ok", what="say what they are for")


def _of_a_package(directory: Path) -> list[ModuleType]:
    file = directory / "pyproject.toml"
    if not file.is_file():
        raise PluginError(f"{directory} holds no pyproject.toml. Give a plugin's package, or its Python file")
    said: Any = tomli.loads(read_file(file).decode("utf-8"))
    announced = said.get("project", {}).get("entry-points", {}).get(GROUP, {})
    if not announced:
        raise PluginError(f"{file} announces no plugin: it has no [project.entry-points.{GROUP}]")
    places = [str(place) for place in (directory / "src", directory) if place.is_dir()]
    sys.path[:0] = places
    try:
        return [importlib.import_module(str(value).partition(":")[0].strip()) for value in announced.values()]
    finally:
        del sys.path[: len(places)]


@contextlib.contextmanager
def _in_words(place: str) -> Iterator[None]:
    try:
        yield
    except FtError:
        raise
    except Exception as error:
        raise PluginError(f"{place} cannot be imported: {cause(error)}") from error


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    """Without what runs print."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
