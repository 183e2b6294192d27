"""What a plugin must keep to: the hooks that it implements and the records that it gives, checked as it is loaded.

pluggy itself lets pass what would fail late or do nothing at all: hooks of unknown names, functions that lack their
mark, keyword arguments that no call has. Every finding here is a `PluginError` that says what to change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import inspect
import os
import re
import reprlib
import traceback
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from fitune.errors import FtError, PluginError, Problem, described, nearest
from fitune.plugin.dataflow import Flow, Takes
from fitune.plugin.deprecation import wrong_marks
from fitune.plugin.eventspecs import EventHooks
from fitune.plugin.extendspecs import ExtendHooks
from fitune.plugin.hook_age import warn_of_hook
from fitune.plugin.hookspecs import OfferHooks
from fitune.plugin.launching import Launcher
from fitune.plugin.levers import Lever
from fitune.plugin.option_types import is_required, wrong_fields
from fitune.plugin.records import Adapter, DataStage, Listener, MemoryStrategy, MemoryTwin, ModelLoader, Objective
from fitune.plugin.relations import ROLES
from fitune.plugin.tasks import TaskSuite


def _arguments(*specifications: type) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(inspect.signature(function).parameters)[1:]
        for specification in specifications
        for name, function in vars(specification).items()
        if name.startswith("ft_")
    }


SPECS = _arguments(OfferHooks, ExtendHooks, EventHooks)
"""Each hook with the names of its arguments."""

EVENTS = _arguments(EventHooks)
"""Those that a listener may have."""

PROVIDERS: dict[str, type[Any]] = {
    "ft_model_loaders": ModelLoader,
    "ft_adapters": Adapter,
    "ft_objectives": Objective,
    "ft_memory_strategies": MemoryStrategy,
    "ft_data_stages": DataStage,
    "ft_listeners": Listener,
    "ft_launchers": Launcher,
    "ft_task_suites": TaskSuite,
}

RECORDS: dict[str, type[Any]] = {**PROVIDERS, "ft_check": Problem, "ft_levers": Lever, "ft_memory_twins": MemoryTwin}
"""The hooks that give something, and of which type."""

CALLABLES = ("load_tokenizer", "load_model", "attach", "save", "make", "needs_reference", "check")

OPTIONAL = (
    "build_model", "load_quantized", "stored", "load", "load_whole", "merge", "fill", "off", "fingerprint", "dialogue",
)  # fmt: skip
"""Fields that hold something to call, or None."""


def check_hooks(manager: pluggy.PluginManager, plugin: object, homes: Collection[str]) -> None:
    """Check all hook implementations of a plugin; `homes` are the modules that are plugins. Raises `PluginError`."""
    if inspect.isclass(plugin):
        raise PluginError("it is a class: name a module, or an object of the class")
    found = False
    for name in dir(plugin):
        hook = _hook_of(manager, plugin, name, SPECS)
        if hook is None:
            continue
        found = True
        home = getattr(plugin, name).__module__
        if isinstance(plugin, ModuleType) and home != plugin.__name__ and home in homes:
            raise PluginError(f"its {hook} is that of plugin {home}: import it under another name")
    if not found:
        raise PluginError("it implements no hook: mark its functions with @fitune.hookimpl")


def listener_title(name: str) -> str:
    """What errors call a listener."""
    return f'listener "{name}"'


def title(plugin: str) -> str:
    """What errors call a plugin, or a listener that is registered as one."""
    return plugin if plugin.startswith('listener "') else f"plugin {plugin}"


def check_listener(manager: pluggy.PluginManager, name: str, listener: object) -> None:
    """Check what a listener's `make` gave: its events, and what checkpoints ask of it. Raises `PluginError`."""
    with _naming(listener_title(name)):
        if inspect.isclass(listener) or isinstance(listener, ModuleType):
            raise PluginError("make gave no object of a class: give a new one for each run")
        if (other := manager.get_name(listener)) is not None:
            raise PluginError(f"make gave what is {title(other)} already: give a new object for each run")
        hooks = {method: _hook_of(manager, listener, method, EVENTS) for method in dir(listener)}
        for method, hook in hooks.items():
            if method.startswith("ft_") and hook is None:
                raise PluginError(f'there is no hook "{method}". {nearest(method, EVENTS)}')
        if not any(hooks.values()):
            raise PluginError("it hears no event: mark methods such as ft_step_done with @fitune.hookimpl")
        stated = [method for method in ("state", "restore") if callable(getattr(listener, method, None))]
        if len(stated) == 1:
            raise PluginError(f"it has {stated[0]}, but not the other of state and restore: what one gives, one takes")


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Around what raises a `PluginError` that does not say whose it is."""
    try:
        yield
    except PluginError as error:
        raise PluginError(f"{what}: {error.message}") from None


def _hook_of(
    manager: pluggy.PluginManager, plugin: object, name: str, hooks: Mapping[str, tuple[str, ...]]
) -> str | None:
    """Which of the hooks an attribute implements; None if it is none. Raises `PluginError` if it does so wrongly."""
    options = manager.parse_hookimpl_opts(plugin, name)
    if options is None:
        if name in hooks:
            raise PluginError(f"{name} is not marked: put @fitune.hookimpl above it")
        return None
    hook: str = options.get("specname") or name
    if hook not in SPECS:
        raise PluginError(f'there is no hook "{hook}". {nearest(hook, hooks)}')
    if hook not in hooks:
        raise PluginError(f"{hook} is no event of a run: a listener hears {', '.join(hooks)}")
    if options.get("wrapper") or options.get("hookwrapper"):
        raise PluginError(f"{hook} is a wrapper: fitune's hooks take none")
    _check_arguments(hook, getattr(plugin, name))
    warn_of_hook(hook, getattr(plugin, name))
    return hook


def check_given(plugin: str, hook: str, given: object) -> list[Any]:
    """What a plugin's hook of `RECORDS` gave, checked. Raises `PluginError` if it is not what the hook asks for."""
    wanted = RECORDS[hook]
    if given is None:
        return []
    if not isinstance(given, list):
        gave = f"one {wanted.__name__}" if isinstance(given, wanted) else reprlib.repr(given)
        raise PluginError(f"plugin {plugin}: {hook} gave {gave}: yield each {wanted.__name__}")
    for record in given:
        if not isinstance(record, wanted):
            raise PluginError(f"plugin {plugin}: {hook} gave {reprlib.repr(record)}, not a {wanted.__name__}")
        wrong = _wrong(record) if hook in PROVIDERS else None
        if wrong:
            raise PluginError(f"plugin {plugin}: {wrong}")
    return given


def _check_arguments(hook: str, function: Any) -> None:
    """Calls are made by keyword: an argument that no call has, or that takes no keyword, would fail or stay empty."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise PluginError(f"{hook} takes {parameter}: name the arguments that it needs")
        if parameter.name not in SPECS[hook]:
            raise PluginError(f'{hook} has no argument "{parameter.name}". {nearest(parameter.name, SPECS[hook])}')


def _wrong(record: Any) -> str | None:
    """What is wrong with a provider record that would only fail once a recipe names it, or once it is listed."""
    kind = type(record).__name__
    for field in ("name", "summary"):
        text = getattr(record, field)
        if not isinstance(text, str) or not text.strip() or len(text.splitlines()) != 1:
            return f"a {kind} has {field} = {reprlib.repr(text)}: give it one line of text"
    what = f'the {kind} "{record.name}"'
    if not inspect.isclass(record.options) or not dataclasses.is_dataclass(record.options):
        return f"{what} has options that are not a dataclass. Without any, give fitune.NoOptions"
    try:
        hints = typing.get_type_hints(record.options, include_extras=True)
    except Exception as error:
        return f"{what} has options whose types cannot be read at run time: {error}"
    beside = _BESIDE.get(type(record), {"weight"} if _is_source(record) else set())
    if wrong := list(wrong_fields(record.options, hints, beside)):
        return f"{what} has options that no recipe could give: {'; '.join(wrong)}"
    for field in (*CALLABLES, *(f for f in OPTIONAL if getattr(record, f, None) is not None)):
        if not callable(getattr(record, field, _wrong)):
            return f"{what} has a {field} that cannot be called"
    odd = wrong_marks(record) or _wrong_of_others(record) or _wrong_of_its_kind(record)
    return odd and f"{what} {odd}"


_BESIDE: dict[type, set[str]] = {Objective: {"reference"}, ModelLoader: {"add_tokens", "add_special_tokens"}}
"""Keys of the core's beside the options of a kind of provider."""


def _is_source(record: Any) -> bool:
    return isinstance(record, DataStage) and record.takes == "nothing"


def _wrong_of_others(record: Any) -> str | None:
    """What is wrong with what it says of other providers (`fitune.plugin.relations`)."""
    for field in ("conflicts_with", "requires"):
        said = getattr(record, field, {})
        named = isinstance(said, Mapping) and (text for two in said.items() for text in two)
        if not (named and all(isinstance(text, str) and text for text in named)):
            return f"has a {field} that is no mapping of names, each to why"
        if record.name in said:
            return f"names itself in {field}"
    makes = getattr(record, "makes", ())
    unknown = [role for role in makes if role not in ROLES] if isinstance(makes, tuple) else [makes]
    return f'makes "{unknown[0]}". {nearest(str(unknown[0]), ROLES)}' if unknown else None


def _wrong_of_its_kind(record: Any) -> str | None:
    """What is wrong with a field that only records of this type have."""
    if isinstance(record, Adapter) and not is_plain(record.directory):
        wanted = "name a directory of its own within a run's, in letters, digits, - and _"
        return f"has directory = {reprlib.repr(record.directory)}: {wanted}"
    if isinstance(record, Listener) and record.default:
        required = [field.name for field in dataclasses.fields(record.options) if is_required(field)]
        if required:
            return f'is there by default, so its option "{required[0]}" needs a default, too'
    if isinstance(record, Objective):
        kinds = typing.get_args(Takes)
        known = record.takes in kinds
        return None if known else f'takes "{record.takes}". {nearest(str(record.takes), kinds)}'
    if isinstance(record, DataStage) and (other := record.for_preferences) is not None:
        same = isinstance(other, DataStage) and (other.name, other.options) == (record.name, record.options)
        return _wrong_of_its_kind(other) if same else "for_preferences is no DataStage of the same name and options"
    flows = typing.get_args(Flow)
    for field in ("takes", "gives"):
        flow = getattr(record, field, flows[1])
        if flow not in flows or (field, flow) == ("gives", "nothing"):
            return f'{field} "{flow}". {nearest(str(flow), flows)}'
    return None


@contextlib.contextmanager
def blame(what: str, *, but: type[Exception] | tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Around a call of a plugin's code: an error that is not meant for users becomes one that says what failed.

    Errors of the types `but` are let through too.
    """
    try:
        yield
    except FtError:
        raise
    except but:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{what} failed: {cause(error)}") from error


A_MODEL = "a model of transformers, or a wrapper with a get_base_model() that gives it"
"""What a hook that gives a model must give."""


def wrong_gift(who: str, found: object, wanted: str) -> PluginError:
    """What is said of a plugin that gave something else than it must: `who` is its title and, where it has one, the
    name of the function that gave it.
    """
    gave = "None" if found is None else "a class" if isinstance(found, type) else f"a {type(found).__name__}"
    return PluginError(f"{who} gave {gave}, and must give {wanted}")


def cause(error: BaseException) -> str:
    """An exception in one line; one that is not meant for users with its type, and its place in the plugin."""
    if isinstance(error, FtError):
        return described(error)
    own = {contextlib.__file__, importlib.__file__, importlib.metadata.__file__}
    core = f"{Path(__file__).parents[1]}{os.sep}"
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    frames = [f for f in frames if f[0] not in own and not f[0].startswith(("<frozen ", core))]
    lines = [line for file, line in frames if file == frames[0][0]]  # not within what the plugin called
    place = f" ({'/'.join(Path(frames[0][0]).parts[-2:])}:{lines[-1]})" if lines else ""
    return f"{described(error)}{place}"


PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A directory's name that means the same everywhere, and that no file of a run can have: those have a suffix."""

TAKEN = frozenset({"checkpoints", "non-finite", "lock"})
"""What else a run's directory holds."""


def is_plain(directory: object) -> bool:
    """Whether a name can be that of the directory with what was trained: no path, and not another of a run's."""
    return isinstance(directory, str) and bool(PLAIN.fullmatch(directory)) and directory.lower() not in TAKEN
