"""What is deprecated reaches who reads: by `ft check`, `plan`, `run`, `data` and `plugins`, for people and programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from fitune import (
    Deprecation,
    Formerly,
    FtDeprecationWarning,
    MemoryStrategy,
    NoOptions,
    StepReport,
    Strategy,
    TaskSuite,
    hookimpl,
)
from fitune.cli.main import main
from fitune.cli.settings import Settings
from fitune.plugin import deprecation
from fitune.plugin.deprecation import HOOK
from fitune.plugin.eventspecs import EventHooks
from fitune.testing import open_registry, write_recipe
from support.commands import Capture, ft, refused
from support.light import LIGHT, write_light

NOTICE = (
    '"every" of [log] is deprecated since fitune 0.2 and gone in 0.4. It is an option of the listener "metrics" now: '
    'remove it, and add these lines at the end: [[listener]] | use = "metrics" | every = 2'
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def light() -> str:
    """A recipe with a key of 0.1 in its 25th line."""
    write_light(Path(), f"{LIGHT}\n[log]\nevery = 2\n")
    return f"r.toml:25: [log] every: {NOTICE}"


@pytest.fixture
def tiny() -> str:
    """One that can be traced and run, with such a key."""
    recipe = write_recipe(Path("tiny"), {"log": {"every": 2}})
    lines = recipe.read_text(encoding="utf-8").splitlines()
    return f"tiny/recipe.toml:{lines.index('[log]') + 2}: [log] every: {NOTICE}"


def test_check_lists_it_and_ends_well(light: str, capsys: Capture) -> None:
    main(["check", "r.toml", "--no-third-party"])
    printed = capsys.readouterr()
    assert printed.err == f"note: {light}\n"
    assert printed.out.startswith("r.toml: no problem found (")


def test_check_as_json_prints_nothing_else(light: str, capsys: Capture) -> None:
    found = json.loads(ft("check", "r.toml", "--json", "--no-third-party", capsys=capsys))
    assert found["notices"] == [light]
    assert found["recipe"] == "r.toml"
    assert found["uses"][:2] == ["hf", "lora"]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_strict_check_takes_no_notice(light: str, as_json: bool, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["check", "r.toml", "--strict", "--no-third-party", *(["--json"] if as_json else [])])
    assert exit_.value.code == 2
    told = "error: r.toml: 1 to be noted, and --strict takes none\n"
    assert capsys.readouterr().err == (told if as_json else f"note: {light}\n{told}")


def test_a_strict_check_of_what_is_as_it_is_now(capsys: Capture) -> None:
    write_light(Path())
    assert ft("check", "r.toml", "--strict", "--no-third-party", capsys=capsys).startswith("r.toml: no problem found")


def test_a_later_release_refuses_it(light: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecation, "__version__", "0.4")
    gone = light.replace("is deprecated since fitune 0.2 and gone in 0.4", "is gone since fitune 0.4")
    assert refused("check", "r.toml", "--no-third-party", capsys=capsys) == f"error: {gone}\n"


def test_a_plan_tells_it(tiny: str, capsys: Capture) -> None:
    plan = ("plan", "tiny/recipe.toml", "--gpu", "a10g", "--no-third-party")
    assert f"  note       {tiny}\n" in ft(*plan, capsys=capsys)
    assert tiny in json.loads(ft(*plan, "--json", capsys=capsys))["notices"]


def test_a_run_tells_it_once_and_is_the_same_run(tiny: str, capsys: Capture) -> None:
    main(["run", "tiny/recipe.toml", "--out", "run", "--no-third-party"])
    printed = capsys.readouterr()
    assert " ".join(printed.out.split()).count(tiny) == 1
    assert tiny not in printed.err
    kept = json.loads(Path("run/identity.json").read_text(encoding="utf-8"))["recipe"]
    assert "log" not in kept
    assert {"use": "metrics", "every": 2} in kept["listener"]
    assert NOTICE not in Path("run/recipe.toml").read_text(encoding="utf-8")
    now = Path("tiny/recipe.toml").read_text(encoding="utf-8").replace("[log]", '[[listener]]\nuse = "metrics"')
    Path("tiny/recipe.toml").write_text(now, encoding="utf-8")
    assert "is done" in ft("run", "tiny/recipe.toml", "--resume", "--out", "run", "--no-third-party", capsys=capsys)


def test_the_data_are_shown_with_it(tiny: str, capsys: Capture) -> None:
    main(["data", "tiny/recipe.toml", "--no-third-party"])
    assert f"note: {tiny}" in capsys.readouterr().out
    main(["data", "tiny/recipe.toml", "--json", "--no-third-party"])
    assert json.loads(capsys.readouterr().out)["notices"] == [tiny]


# -------------------------------------------------------------------------------------------------------------- plugins


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Two that are not what they were."""

    rate: Annotated[int, Formerly(name="speed", since="0.1", removed_in="0.4")] = 1
    """How fast."""
    slow: Annotated[bool, Deprecation(since="0.1", removed_in="0.3", instead="Write rate")] = False
    """Whether it is slow."""


class Plugin:
    """Offers a strategy that is deprecated, and hears an event."""

    @hookimpl
    def ft_memory_strategies(self) -> Iterator[MemoryStrategy[Options]]:
        """Offer it."""
        yield MemoryStrategy(
            name="aged",
            summary="For a test",
            options=Options,
            make=lambda options: Strategy(),
            deprecated=Deprecation(since="0.1", removed_in="0.4", instead="Write theirs"),
            formerly=(Formerly(name="older", since="0.1", removed_in="0.3"),),
        )

    @hookimpl
    def ft_step_done(self, step: StepReport) -> None:
        """Do nothing."""


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, and its hook is deprecated."""
    mark = Deprecation(since="0.1", removed_in="0.4", instead="Implement ft_evaluated")
    monkeypatch.setattr(EventHooks.ft_step_done, HOOK, mark, raising=False)
    with pytest.warns(FtDeprecationWarning):
        registry = open_registry(Plugin())
    monkeypatch.setattr(Settings, "registry", lambda settings: registry)
    monkeypatch.setenv("COLUMNS", "120")


def words(text: str) -> str:
    return " ".join(text.split())


HOOKS = "the hook ft_step_done (cli/test_deprecations_told.py:"
STATUS = "deprecated since fitune 0.1 and gone in 0.4. Write theirs"


@pytest.mark.usefixtures("plugin")
def test_the_list_of_plugins_shows_releases(capsys: Capture) -> None:
    printed = words(ft("plugins", capsys=capsys))
    assert f"aged For a test (plugin-1); {STATUS}" in printed
    assert f"DEPRECATED, and used by plugins plugin-1 {HOOKS}" in printed
    (entry,) = [one for one in json.loads(ft("plugins", "--json", capsys=capsys)) if one["name"] == "aged"]
    assert (entry["status"], entry["formerly"]) == (STATUS, ["older"])
    assert entry["notices"][0].startswith(HOOKS)


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("name", ["aged", "older"])
def test_a_plugin_is_shown_with_what_is_deprecated(name: str, capsys: Capture) -> None:
    printed = words(ft("plugins", "show", name, capsys=capsys))
    assert f"For a test it is {STATUS}" in printed
    assert 'its name "older" is deprecated since fitune 0.1 and gone in 0.3. Write "aged"' in printed
    assert "How fast. formerly speed" in printed
    assert "Whether it is slow. is deprecated since fitune 0.1 and gone in 0.3. Write rate" in printed
    (found,) = json.loads(ft("plugins", "show", name, "--json", capsys=capsys))
    assert [option["formerly"] for option in found["options"]] == [["speed"], []]
    assert found["deprecated"][0] == f"it is {STATUS}"


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("name", ["aged", "older"])
def test_why_tells_its_status(name: str, capsys: Capture) -> None:
    printed = words(ft("plugins", "--why", name, capsys=capsys))
    assert f"status it is {STATUS}" in printed
    assert '"speed" is called rate now' in printed
    assert HOOKS in printed
    assert "status ok" in words(ft("plugins", "--why", "nf4", capsys=capsys))


@pytest.mark.usefixtures("plugin")
def test_what_a_plugin_uses_is_told_with_each_recipe(capsys: Capture) -> None:
    write_light(Path())
    main(["check", "r.toml"])
    assert capsys.readouterr().err.startswith(f"note: plugin plugin-1: {HOOKS}")


@pytest.mark.parametrize("command", [("plugins", "show", "aged"), ("plugins", "--why", "aged")])
def test_what_is_gone_is_said_to_be(command: tuple[str, ...], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecation, "__version__", "0.4")
    registry = open_registry(Plugin())
    monkeypatch.setattr(Settings, "registry", lambda settings: registry)
    told = 'error: the memory strategy "aged" is gone since fitune 0.4. Write theirs\n'
    assert refused(*command, capsys=capsys) == told


def test_an_option_that_is_gone_is_shown_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from fitune.plugin.options import describe

    monkeypatch.setattr(deprecation, "__version__", "0.3")
    assert [(one.name, one.formerly) for one in describe(Options)] == [("rate", ("speed",))]
    monkeypatch.setattr(deprecation, "__version__", "0.4")
    assert [(one.name, one.formerly) for one in describe(Options)] == [("rate", ())]


def test_the_contracts_check_tells_what_a_plugin_uses(capsys: Capture) -> None:
    text = """
from fitune import Deprecation, deprecated, hookimpl
import click

@deprecated(Deprecation(since="0.1", removed_in="9.0", instead="Say it yourself"))
def greeting():
    return "hello"

@hookimpl
def ft_commands(cli):
    @cli.command()
    def hello():
        \"\"\"Greet.\"\"\"
    greeting()
"""
    Path("hello.py").write_text(text, encoding="utf-8")
    with pytest.warns(FtDeprecationWarning):
        main(["plugins", "check", "hello.py"])
    assert capsys.readouterr().err == (
        "note: hello.greeting() is deprecated since fitune 0.1 and gone in 9.0. Say it yourself\n"
    )


def test_a_suite_of_tasks_is_told_of_as_it_is_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Suites:
        @hookimpl
        def ft_task_suites(self) -> Iterator[TaskSuite[NoOptions]]:
            """Offer one."""
            yield TaskSuite(
                name="tests",
                summary="For a test",
                options=NoOptions,
                measure=lambda options, asked: {},
                formerly=(Formerly(name="exams", since="0.1", removed_in="0.4"),),
            )

    registry = open_registry(Suites())
    monkeypatch.setattr(Settings, "registry", lambda settings: registry)
    said = refused("eval", "nowhere", "--tasks", "x", "--suite", "exams", capsys=capsys)
    assert said.startswith(
        'note: --suite exams: the task suite "exams" is deprecated since fitune 0.1 and gone in 0.4. Write "tests"\n'
    )
