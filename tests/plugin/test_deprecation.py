"""Marks by themselves, in code that plugins use, on records and on hooks, and held against whose releases they are."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from fitune import (
    Deprecation,
    Formerly,
    FtDeprecationWarning,
    MemoryStrategy,
    PluginError,
    StepReport,
    deprecated,
    former_names,
    hookimpl,
)
from fitune.plugin import deprecation
from fitune.plugin.deprecation import HOOK, Release, deprecated_hook, hook_mark
from fitune.plugin.eventspecs import EventHooks
from fitune.plugin.registry import Registry
from fitune.recipe.listeners import with_defaults
from fitune.testing import open_registry
from support.made_plugins import giving, install, strategy

MARK = Deprecation(since="0.1", removed_in="0.4", instead="Call other")


@pytest.mark.parametrize(
    ("since", "removed_in", "instead", "says"),
    [
        ("0.2", "0.2", "x", "deprecated since 0.2, it cannot be gone in 0.2"),
        ("0.10", "0.9", "x", "it cannot be gone in 0.9"),
        ("soon", "0.9", "x", '"soon" is no release'),
        ("0.2", "0.4", "", "say in a line what to do instead"),
    ],
)
def test_a_mark_that_says_nothing_sensible_is_refused(since: str, removed_in: str, instead: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Deprecation(since=since, removed_in=removed_in, instead=instead)


@pytest.mark.parametrize(
    ("version", "gone"),
    [("0.1.0", False), ("0.3.9", False), ("0.4.0.dev1", False), ("0.4", True), ("0.4.0", True), ("0.10", True),
     ("1.0rc1", True), ("unknown", False)],
)  # fmt: skip
def test_it_is_gone_from_its_release_on(version: str, gone: bool) -> None:
    assert MARK.is_gone(Release(name="x", version=version)) is gone


# ------------------------------------------------------------------------------------------------------- code that uses


@deprecated(MARK)
def twice(number: int) -> int:
    """Twice a number."""
    return 2 * number


def test_a_call_of_a_deprecated_function_warns_where_it_is_made() -> None:
    with pytest.warns(FtDeprecationWarning) as told:
        assert twice(2) == 4
    (one,) = told
    assert str(one.message) == f"{__name__}.twice() is deprecated since fitune 0.1 and gone in 0.4. Call other"
    assert one.filename == __file__
    assert twice.__doc__ == "Twice a number."


def test_and_is_an_error_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecation, "__version__", "0.4.1")
    with pytest.raises(PluginError, match=r"twice\(\) is gone since fitune 0\.4\. Call other"):
        twice(2)


def test_warnings_can_be_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FtDeprecationWarning)
        with pytest.raises(FtDeprecationWarning, match="Call other"):
            twice(2)


def test_the_releases_may_be_those_of_another_distribution() -> None:
    marked: Callable[[], None] = deprecated(
        Deprecation(since="0.1", removed_in="0.2", instead="Leave it"), distribution="pluggy"
    )(lambda: None)
    with pytest.raises(PluginError, match=r"is gone since pluggy 0\.2\. Leave it"):
        marked()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module with a name that was another."""
    made: Any = types.ModuleType("made_for_a_test")
    made.double = twice
    made.__getattr__ = former_names("made_for_a_test", {"double": Formerly(name="two", since="0.1", removed_in="0.4")})
    monkeypatch.setitem(sys.modules, "made_for_a_test", made)
    found: types.ModuleType = made
    return found


def test_an_old_name_of_a_module_is_the_new_one(module: Any) -> None:
    says = (
        r"made_for_a_test\.two is deprecated since fitune 0\.1 and gone in 0\.4\. It is called made_for_a_test\.double"
    )
    with pytest.warns(FtDeprecationWarning, match=says) as told:
        assert module.two is twice
    assert told[0].filename == __file__
    with pytest.warns(FtDeprecationWarning, match=says):
        exec("from made_for_a_test import two", {})
    with pytest.raises(AttributeError, match="has no attribute 'three'"):
        module.three  # noqa: B018


def test_and_an_error_that_an_import_shows_later(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecation, "__version__", "0.4")
    with pytest.raises(PluginError, match=r"two is gone since fitune 0\.4\. It is called made_for_a_test\.double now"):
        exec("from made_for_a_test import two", {})


# -------------------------------------------------------------------------------------------------------------- plugins


class Hears:
    """A plugin that hears an event."""

    @hookimpl
    def ft_step_done(self, step: StepReport) -> None:
        """Do nothing."""


@pytest.fixture
def old_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ft_step_done` is deprecated."""
    mark = Deprecation(since="0.1", removed_in="0.4", instead="Implement ft_evaluated")
    monkeypatch.setattr(EventHooks.ft_step_done, HOOK, mark, raising=False)


def test_a_specification_keeps_its_mark() -> None:
    @deprecated_hook(MARK)
    def ft_of_a_test() -> None:
        """Nothing."""

    assert hook_mark(ft_of_a_test) is MARK
    assert hook_mark(EventHooks.ft_step_done) is None


@pytest.mark.usefixtures("old_hook")
def test_who_implements_a_deprecated_hook_is_told_and_works() -> None:
    with pytest.warns(FtDeprecationWarning, match="the hook ft_step_done"):
        registry = open_registry(Hears())
    plugin = registry.plugins["plugin-1"]
    assert plugin.cause is None
    (notice,) = plugin.notices
    place, _, said = notice.partition(") ")
    assert place.startswith("the hook ft_step_done (plugin/test_deprecation.py:")
    assert said == "is deprecated since fitune 0.1 and gone in 0.4. Implement ft_evaluated"


@pytest.mark.usefixtures("old_hook")
def test_and_is_broken_once_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecation, "__version__", "0.4")
    registry = open_registry()
    with pytest.raises(
        PluginError, match=r"the hook ft_step_done .* is gone since fitune 0\.4\. Implement ft_evaluated"
    ):
        registry.register(Hears(), "late")


PLUGIN = """\
from dataclasses import dataclass
from typing import Annotated
from fitune import Deprecation, Formerly, MemoryStrategy, Strategy, deprecated, hookimpl

@deprecated(Deprecation(since="0.1", removed_in="0.9", instead="Call nothing"))
def old():
    pass

old()

@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    rate: Annotated[int, Formerly(name="speed", since="1.0", removed_in="2.0")] = 1
    '''How fast.'''

@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="mine", summary="For a test", options=Options, make=lambda options: Strategy(),
                         deprecated=Deprecation(since="1.0", removed_in="2.0", instead="Write theirs"))
"""


@pytest.mark.parametrize(("version", "gone"), [("1.5", False), ("2.0", True)])
def test_a_distributions_marks_count_its_own_releases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, gone: bool
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fitune_aged", raising=False)
    install(tmp_path, "fitune-aged", PLUGIN, version=version)
    with pytest.warns(FtDeprecationWarning, match="Call nothing"):
        registry = Registry.open()
    plugin = registry.plugins["fitune-aged"]
    assert plugin.notices == ("fitune_aged.old() is deprecated since fitune 0.1 and gone in 0.9. Call nothing",)
    assert plugin.release == Release(name="fitune-aged", version=version)
    assert [one.record.name for one in registry.gone] == (["mine"] if gone else [])
    if gone:
        with pytest.raises(
            PluginError, match=r'the memory strategy "mine" is gone since fitune-aged 2\.0\. Write theirs'
        ):
            registry.find(MemoryStrategy, "mine")
    else:
        assert registry.find(MemoryStrategy, "mine").summary == "For a test"


def test_python_shows_such_warnings_to_nobody_by_itself(tmp_path: Path) -> None:
    """Users of a plugin are told by `ft`; its author by pytest."""
    install(tmp_path, "fitune-aged", PLUGIN)
    code = "from fitune.plugin.registry import Registry; print(len(Registry.open().plugins['fitune-aged'].notices))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Required:
    """An option that must be given, and is deprecated."""

    rate: Annotated[int, MARK]
    """How fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """An option that had the name of another."""

    rate: Annotated[int, Formerly(name="speed", since="0.1", removed_in="0.4")] = 1
    """How fast."""
    speed: int = 2
    """How fast, too."""


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"deprecated": True}, "has deprecated = True: give a fitune.Deprecation"),
        ({"formerly": ("old",)}, r"has formerly = \('old',\): give a tuple of fitune.Formerly"),
        ({"formerly": (Formerly(name="mine", since="0.1", removed_in="0.4"),)}, "is called now as it was formerly"),
        ({"options": Required}, '"rate" is deprecated, so that it needs a default'),
        ({"options": Taken}, '"rate" was formerly "speed", which is another key'),
    ],
)
def test_marks_that_cannot_be_are_refused_as_a_plugin_is_loaded(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(PluginError, match=says):
        open_registry(giving(strategy(**fields)))


def test_nothing_takes_a_deprecated_provider_by_itself() -> None:
    from fitune import Listener, NoOptions
    from fitune.memory.strategies import strategies_of

    class Plugin:
        @hookimpl
        def ft_listeners(self) -> Iterator[Listener[Any]]:
            yield Listener(
                name="old", summary="For a test", options=NoOptions, make=lambda options: Hears(), default=True,
                deprecated=MARK,
            )  # fmt: skip

        @hookimpl
        def ft_memory_strategies(self) -> Iterator[MemoryStrategy[Any]]:
            yield strategy("older", deprecated=MARK)

    registry = open_registry(Plugin())
    assert "old" not in {use.record.name for use in with_defaults(registry, ())}
    assert "older" not in {record.name for record in strategies_of(registry)}
    assert registry.find(MemoryStrategy, "older").deprecated is MARK
