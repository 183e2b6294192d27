"""The contract of plugins: what breaks it is found as a plugin is loaded, in words that say what to change."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fitune.plugin.built_in
from fitune import Adapter, DataStage, MemoryStrategy, NoOptions, PluginError, RunError, hookimpl
from fitune.plugin.contract import blame
from fitune.plugin.provided import Plugin
from fitune.plugin.registry import Registry
from support.made_plugins import STRATEGY, giving, install, strategy

HEAD = "from fitune import *\nfrom fitune import hookimpl\n"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Plugin]]:
    """Installs one plugin of this source and gives what the registry of all plugins says about it."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)

    def load(source: str) -> Plugin:
        install(tmp_path, "fitune-tried", source)
        registry = Registry.open()
        sound = {p.name for p in registry.plugins.values() if p.cause is None}
        assert sound >= set(fitune.plugin.built_in.built_in())
        return registry.plugins["fitune-tried"]

    yield load
    for name in set(sys.modules) - modules:
        if name.startswith("fitune_tried"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nothing_of_this_name",
         "ModuleNotFoundError: No module named 'nothing_of_this_name' (PLACE:1)"),
        ("\n\n1 / 0", "ZeroDivisionError: division by zero (PLACE:3)"),
        ("raise SystemExit('bye')", "SystemExit: bye (PLACE:1)"),
        ("", "it implements no hook: mark its functions with @fitune.hookimpl"),
        (HEAD + "def ft_step_done(step): ...",
         "ft_step_done is not marked: put @fitune.hookimpl above it"),
        (HEAD + "@hookimpl\ndef ft_step_don(step): ...",
         'there is no hook "ft_step_don". Did you mean "ft_step_done"?'),
        (HEAD + "@hookimpl(specname='ft_stepdone')\ndef after(step): ...",
         'there is no hook "ft_stepdone". Did you mean "ft_step_done"?'),
        (HEAD + "@hookimpl\ndef ft_step_done(stepp): ...",
         'ft_step_done has no argument "stepp". Did you mean "step"?'),
        (HEAD + "@hookimpl\ndef ft_step_done(*, stepp=None): ...",
         'ft_step_done has no argument "stepp". Did you mean "step"?'),
        (HEAD + "@hookimpl\ndef ft_step_done(**arguments): ...",
         "ft_step_done takes **arguments: name the arguments that it needs"),
        (HEAD + "@hookimpl(wrapper=True)\ndef ft_step_done(step):\n    yield",
         "ft_step_done is a wrapper: fitune's hooks take none"),
        (HEAD + "@hookimpl(hookwrapper=True)\ndef ft_step_done(step):\n    yield",
         "ft_step_done is a wrapper: fitune's hooks take none"),
        (HEAD + "@hookimpl\ndef ft_adapters():\n    raise OSError('no disk')",
         "ft_adapters failed: OSError: no disk (PLACE:5)"),
        (HEAD + "@hookimpl\ndef ft_adapters():\n    yield\n    exit(1)",
         "ft_adapters failed: SystemExit: 1 (PLACE:6)"),
        (HEAD + "@hookimpl\ndef ft_adapters():\n    raise PluginError('libthing is missing. Install it')",
         "libthing is missing. Install it"),
        (HEAD + "@hookimpl\ndef ft_adapters():\n    return 7",
         "ft_adapters gave 7: yield each Adapter"),
        (HEAD + "from fitune import Adapter, NoOptions\n@hookimpl\ndef ft_adapters():\n"
         "    return Adapter(name='a', summary='s', options=NoOptions, attach=print, save=print)",
         "ft_adapters gave one Adapter: yield each Adapter"),
        ("from fitune import MemoryStrtegy",
         'ImportError: fitune has no "MemoryStrtegy". Did you mean "MemoryStrategy"? (PLACE:1)'),
        ("from fitune import qqqqqq",
         'ImportError: fitune has no "qqqqqq". docs/api.md lists what it has (PLACE:1)'),
        ("from fitune.core import Strategy",
         "ModuleNotFoundError: there is no fitune.core. Plugins import names from fitune itself: docs/api.md lists "
         "them (PLACE:1)"),
        (HEAD + "@hookimpl\ndef ft_adapters():\n    yield 'lora'",
         "ft_adapters gave 'lora', not a Adapter"),
        ("from fitune_plugins.adapters.lora import *\nfrom fitune_plugins.adapters.lora import ft_adapters",
         "its ft_adapters is that of plugin fitune_plugins.adapters.lora: import it under another name"),
    ],
)  # fmt: skip
def test_a_broken_plugin_is_listed_with_its_cause(load: Callable[..., Plugin], source: str, cause: str) -> None:
    plugin = load(source)
    place = f"{Path(sys.path[0]).name}/fitune_tried.py"
    assert plugin.cause == cause.replace("PLACE", place)
    assert (plugin.origin, plugin.version, plugin.hooks) == ("installed", "1.0", ())


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        (Adapter(name="a", summary="s", options=NoOptions, attach=lambda o, m: m, save=lambda m, d: None),
         "not a MemoryStrategy"),
        (strategy(name=""), "has name = '': give it one line of text"),
        (strategy(name=7), "has name = 7: give it one line of text"),  # type: ignore[arg-type]
        (strategy(summary="two\nlines"), "has summary = 'two\\nlines': give it one line of text"),
        (strategy(options=NoOptions()), "options that are not a dataclass. Without any, give fitune.NoOptions"),
        (strategy(options=dict), "options that are not a dataclass"),
        (strategy(make="Strategy"), 'the MemoryStrategy "mine" has a make that cannot be called'),
        (strategy(check=None), 'the MemoryStrategy "mine" has a check that cannot be called'),
    ],
)  # fmt: skip
def test_a_record_that_would_fail_later_is_refused(record: object, cause: str) -> None:
    registry = Registry()
    with pytest.raises(PluginError) as error:
        registry.register(giving(strategy("sound"), record), "given")
    assert error.value.message.startswith("plugin given: ")
    assert cause in error.value.message
    assert registry.names(MemoryStrategy) == []


def test_options_whose_types_cannot_be_read_are_refused(load: Callable[..., Plugin]) -> None:
    plugin = load(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Options:\n    path: Path\n"
        + STRATEGY.format(name="mine").replace("options=NoOptions", "options=Options")
    )  # fmt: skip
    assert plugin.cause == (
        "the MemoryStrategy \"mine\" has options whose types cannot be read at run time: name 'Path' is not defined"
    )


@pytest.mark.parametrize(
    ("field", "flow", "cause"),
    [("takes", "row", 'takes "row". Did you mean "rows"?'), ("gives", "nothing", 'gives "nothing"')],
)
def test_a_stage_takes_and_gives_what_is_known(load: Callable[..., Plugin], field: str, flow: str, cause: str) -> None:
    fields = {"takes": "rows", "gives": "rows", field: flow}
    plugin = load(
        HEAD + "@hookimpl\ndef ft_data_stages():\n    yield DataStage(name='s', summary='s', options=NoOptions, "
        f"make=print, takes='{fields['takes']}', gives='{fields['gives']}')"
    )
    assert plugin.cause is not None
    assert f'the DataStage "s" {cause}' in plugin.cause


@pytest.mark.parametrize("field", ["load", "merge"])
def test_what_an_adapter_may_leave_out_must_be_callable_where_it_is_given(
    load: Callable[..., Plugin], field: str
) -> None:
    plugin = load(
        HEAD + "@hookimpl\ndef ft_adapters():\n    yield Adapter(name='a', summary='s', options=NoOptions, "
        f"attach=print, save=print, {field}='it')"
    )
    assert plugin.cause == f'the Adapter "a" has a {field} that cannot be called'


def test_the_dialogue_of_a_stage_must_be_callable() -> None:
    class Giving:
        @hookimpl
        def ft_data_stages(self) -> list[object]:
            fields: dict[str, Any] = {"takes": "conversations", "gives": "documents", "dialogue": "it"}
            return [DataStage(name="s", summary="s", options=NoOptions, make=lambda o, c: iter, **fields)]

    with pytest.raises(PluginError, match='the DataStage "s" has a dialogue that cannot be called'):
        Registry().register(Giving(), "given")


@pytest.mark.parametrize("other", ["another name", "no stage", "takes nothing known"])
def test_what_works_in_the_place_of_a_stage_is_one_like_it(other: str) -> None:
    def stage(name: str, takes: Any, **more: Any) -> DataStage[Any]:
        return DataStage(
            name=name, summary="s", options=NoOptions, make=lambda o, c: iter, takes=takes, gives="examples", **more
        )

    given = {"another name": stage("t", "preferences"), "takes nothing known": stage("s", "prefs")}.get(other, "it")
    cause = 'takes "prefs"' if other == "takes nothing known" else "for_preferences is no DataStage of the same name"

    class Giving:
        @hookimpl
        def ft_data_stages(self) -> list[object]:
            return [stage("s", "conversations", for_preferences=given)]

    with pytest.raises(PluginError, match=f'the DataStage "s" {cause}'):
        Registry().register(Giving(), "given")


def test_blame_names_what_failed_and_the_line_of_the_plugin_not_of_what_it_called() -> None:
    def make() -> object:
        return json.loads("{")

    with pytest.raises(PluginError) as raised, blame('memory strategy "mine": make'):
        make()
    message = raised.value.message
    assert message.startswith('memory strategy "mine": make failed: JSONDecodeError: Expecting property name')
    assert message.endswith(f"(plugin/test_contract.py:{make.__code__.co_firstlineno + 1})")
    with pytest.raises(RunError, match=r"^the disk is full$"), blame("a plugin"):
        raise RunError("the disk is full")
