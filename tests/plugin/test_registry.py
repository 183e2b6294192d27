"""The registry: what a plugin does wrong is found as it is loaded, carries its name, and takes no other with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fitune.plugin.registry
from fitune import Adapter, MemoryStrategy, ModelLoader, PluginError, RunError, hookimpl
from fitune.plugin.registry import Registry
from fitune.plugin.trust import Trust
from fitune.testing import open_registry
from support.made_plugins import STRATEGY, giving, install, strategy

HEAD = "from fitune import *\nfrom fitune import hookimpl\n"


def test_one_failing_hook_leaves_nothing_of_the_others_behind() -> None:
    told: list[str] = []

    class Half:
        @hookimpl
        def ft_memory_strategies(self) -> Iterator[MemoryStrategy[Any]]:
            yield strategy()

        @hookimpl
        def ft_data_stages(self) -> None:
            raise ValueError("half way")

        @hookimpl
        def ft_run_started(self) -> None:
            told.append("started")

    registry = Registry()
    with pytest.raises(PluginError, match="plugin half: ft_data_stages failed: ValueError: half way"):
        registry.register(Half(), "half")
    assert registry.provided == []
    assert registry.call("ft_run_started", run=None) == []
    assert told == []


def test_a_sound_plugin_survives_its_own_second_registration() -> None:
    told: list[str] = []

    class Told:
        @hookimpl
        def ft_run_started(self) -> None:
            told.append("started")

    registry, plugin = Registry(), Told()
    registry.register(plugin, "first")
    with pytest.raises(PluginError, match='plugin second: it is the same as plugin "first"'):
        registry.register(plugin, "second")
    registry.call("ft_run_started", run=None)
    assert told == ["started"]


def test_a_second_plugin_of_a_name_is_told_apart_and_checked_by_itself() -> None:
    registry = Registry()
    registry.register(giving(strategy("a")), "same")
    with pytest.raises(PluginError, match="plugin same: "):
        registry.register(giving(7), "same")
    assert registry.names(MemoryStrategy) == ["a"]


def test_a_class_is_no_plugin() -> None:
    with pytest.raises(PluginError, match="it is a class: name a module, or an object of the class"):
        Registry().register(type(giving()), "class")


def test_a_name_given_twice_by_one_plugin_breaks_it() -> None:
    registry = Registry()
    with pytest.raises(PluginError, match='it provides the memory strategy "a" twice'):
        registry.register(giving(strategy("a"), strategy("a")), "twice")
    assert registry.provided == []


def test_a_name_given_by_two_plugins_is_an_error_that_names_both_when_used() -> None:
    registry = Registry()
    registry.register(giving(strategy("a"), strategy("free")), "one")
    registry.register(giving(strategy("a")), "two")
    with pytest.raises(PluginError) as error:
        registry.find(MemoryStrategy, "a")
    assert error.value.message == (
        '2 plugins provide a memory strategy "a". Say which is meant: use = "one:a" or "two:a"'
    )
    assert registry.find(MemoryStrategy, "free").name == "free"
    assert registry.names(MemoryStrategy) == ["free", "one:a", "two:a"]
    for owner in ("one", "two"):
        assert registry.provider(MemoryStrategy, f"{owner}:a").plugin == owner
    with pytest.raises(PluginError, match='unknown memory strategy "three:a"'):
        registry.find(MemoryStrategy, "three:a")


def test_names_that_their_owner_does_not_tell_apart_are_an_error_that_names_both_plugins(tmp_path: Path) -> None:
    registry = Registry(trust=Trust(allow=True))
    for place in ("a", "b"):
        file = tmp_path / place / "mine.py"
        file.parent.mkdir()
        file.write_text(STRATEGY.format(name="same"))
        registry.load_file(file)
    with pytest.raises(PluginError, match=r"mine\.py and .*mine\.py\. Uninstall or rename one"):
        registry.find(MemoryStrategy, "same")


def test_an_installed_plugin_does_not_take_a_built_in_ones_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "fitune-taking", STRATEGY.format(name="chunked-loss"), entry="taking")
    registry = Registry.open()
    assert registry.find(MemoryStrategy, "chunked-loss").summary != "For a test"
    assert registry.find(MemoryStrategy, "fitune:chunked-loss").summary != "For a test"
    for spelled in ("fitune-taking:chunked-loss", "Fitune_Taking:chunked-loss"):
        assert registry.find(MemoryStrategy, spelled).summary == "For a test"
    assert {"chunked-loss", "fitune-taking:chunked-loss"} <= set(registry.names(MemoryStrategy))


def test_a_file_that_a_recipe_names_makes_a_built_in_ones_name_unclear(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(STRATEGY.format(name="chunked-loss"))
    registry = open_registry()
    registry.load_file(file)
    with pytest.raises(PluginError, match='use = "fitune:chunked-loss" or "mine:chunked-loss"'):
        registry.find(MemoryStrategy, "chunked-loss")


def test_a_name_is_taken_within_its_kind_only() -> None:
    registry = fitune.plugin.registry.Registry.open(third_party=False)
    registry.register(giving(strategy("lora")), "lora strategy")
    assert registry.find(MemoryStrategy, "lora").summary == "For a test"
    assert registry.find(Adapter, "lora").options.__name__ == "LoraOptions"
    with pytest.raises(PluginError, match='unknown model loader "lora"'):
        registry.find(ModelLoader, "lora")


def test_two_distributions_may_announce_one_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    # written in the other order, so that the order of the names is not that of the directory
    for distribution in ("fitune-twin-b", "fitune-twin-a"):
        install(tmp_path, distribution, STRATEGY.format(name=distribution), entry="twin")
    found = {p.name: p.cause for p in Registry.open().plugins.values() if p.origin == "installed"}
    assert list(found.items()) == [("twin (fitune-twin-a)", None), ("twin (fitune-twin-b)", None)]


def test_a_distribution_without_metadata_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "fitune-left", STRATEGY.format(name="left"))
    next(tmp_path.glob("*.dist-info")).joinpath("METADATA").unlink()
    assert Registry.open().find(MemoryStrategy, "left").name == "left"


def test_a_broken_file_stays_an_error_and_another_spelling_is_the_same_file(tmp_path: Path) -> None:
    broken, sound = tmp_path / "broken.py", tmp_path / "sound.py"
    broken.write_text("1 / 0")
    sound.write_text(STRATEGY.format(name="mine"))
    registry = Registry()
    for _ in range(2):
        with pytest.raises(PluginError, match="division by zero"):
            registry.load_file(broken)
    registry.load_file(sound)
    registry.load_file(tmp_path / "there" / ".." / "sound.py")
    assert registry.find(MemoryStrategy, "mine").name == "mine"


class Caller:
    """Tells its name, then raises what it was given."""

    def __init__(self, told: list[str], name: str, error: BaseException | None = None) -> None:
        self.told, self.name, self.error = told, name, error

    @hookimpl
    def ft_saved(self, directory: Path) -> None:
        """Tell, and raise."""
        self.told.append(self.name)
        if self.error is not None:
            raise self.error


class First(Caller):
    """Asks to be called first."""

    @hookimpl(tryfirst=True)
    def ft_saved(self, directory: Path) -> None:
        """Tell."""
        super().ft_saved(directory)


@pytest.fixture
def told() -> list[str]:
    """What was called, in order."""
    return []


def test_the_last_registered_is_called_first_but_for_one_that_asks(told: list[str]) -> None:
    registry = Registry()
    for plugin in (First(told, "first"), Caller(told, "a"), Caller(told, "b")):
        registry.register(plugin, plugin.name)
    results = registry.call("ft_saved", run=None, directory=Path())
    assert told == ["first", "b", "a"]
    assert results == [("first", None), ("b", None), ("a", None)]


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit("odd")])
def test_an_error_names_the_plugin_and_ends_a_call(told: list[str], error: BaseException) -> None:
    registry = Registry()
    registry.register(Caller(told, "good"), "good")
    registry.register(Caller(told, "bad", error), "bad")
    with pytest.raises(
        PluginError, match=rf"^plugin bad: ft_saved failed: {type(error).__name__}: odd \(.*\.py:\d+\)$"
    ):
        registry.call("ft_saved", run=None, directory=Path())
    assert told == ["bad"]


def test_an_error_meant_for_the_user_and_an_interruption_go_through_as_they_are(told: list[str]) -> None:
    for error in (RunError("the disk is full"), KeyboardInterrupt()):
        registry = Registry()
        registry.register(Caller(told, "bad", error), "bad")
        with pytest.raises(type(error)) as raised:
            registry.call("ft_saved", run=None, directory=Path())
        assert raised.value is error


def test_call_every_goes_on_after_an_error(told: list[str]) -> None:
    registry = Registry()
    for name, error in {"a": RunError("full"), "b": None, "c": KeyError("odd")}.items():
        registry.register(Caller(told, name, error), name)
    errors = registry.call_every("ft_saved", run=None, directory=Path())
    assert told == ["c", "b", "a"]
    assert [str(e).split(" (")[0] for e in errors] == ["plugin c: ft_saved failed: KeyError: 'odd'", "full"]


def test_a_hook_is_given_the_arguments_that_it_names_and_its_generator_is_run(told: list[str]) -> None:
    class Picks:
        @hookimpl
        def ft_step_done(self, *, step: object = "the default") -> Iterator[None]:
            told.append(f"step {step}")
            yield

    registry = Registry()
    registry.register(Picks(), "picks")
    registry.call("ft_step_done", run="a run", step=3)
    assert told == ["step 3"]


def test_what_ft_check_gives_is_checked_and_the_plugin_named() -> None:
    class Odd:
        @hookimpl
        def ft_check(self) -> list[str]:
            return ["wrong"]

    registry = Registry()
    registry.register(Odd(), "odd")
    with pytest.raises(PluginError, match="plugin odd: ft_check gave 'wrong', not a Problem"):
        registry.call("ft_check", recipe=None)


def test_the_trace_tells_of_every_call_failed_ones_included(told: list[str]) -> None:
    lines: list[str] = []
    registry = Registry(trace=lines.append)
    registry.register(giving(strategy("a")), "gives")
    registry.register(Caller(told, "bad", ValueError("odd")), "bad")
    registry.call_every("ft_saved", run=None, directory=Path())
    words = [line.split() for line in lines]
    assert [(w[0], w[1], *w[3:]) for w in words] == [
        ("ft_memory_strategies", "gives", "s"),
        ("ft_saved", "bad", "s", "failed"),
    ]
    assert all(float(w[2]) >= 0 for w in words)


def test_no_hook_is_pending_once_a_misspelled_one_was_refused() -> None:
    class Misspelled:
        @hookimpl
        def ft_step_don(self) -> None: ...

    registry = Registry()
    with pytest.raises(PluginError, match='there is no hook "ft_step_don"'):
        registry.register(Misspelled(), "misspelled")
    registry._manager.check_pending()
    assert registry._manager.get_plugins() == set()


def test_a_package_may_gather_hooks_from_its_own_modules() -> None:
    inner = ModuleType("fitune_mine.inner")
    exec(HEAD + STRATEGY.format(name="mine"), inner.__dict__)
    package = ModuleType("fitune_mine")
    package.__dict__["ft_memory_strategies"] = inner.__dict__["ft_memory_strategies"]
    registry = Registry()
    registry.register(package, "fitune_mine")
    assert registry.find(MemoryStrategy, "mine").name == "mine"
