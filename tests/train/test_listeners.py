"""Listeners of a run: made for it, and told of it alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli

from fitune import Listener, PluginError, RunError, StepReport, hookimpl
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune.train.run import run
from support.counting import MINE, Counter, Offering, Options
from support.tiny import metrics, train


def failing_at_a_step(error: Exception) -> Callable[[Options], object]:
    """Makes a counter that fails at the first step."""

    class Failing(Counter):
        @hookimpl
        def ft_step_done(self, step: StepReport) -> None:
            raise error

    return Failing


# ---------------------------------------------------------------------------------------------------------- in a recipe


def test_those_by_default_stand_in_the_runs_recipe_with_every_option(recipe_path: Path, tmp_path: Path) -> None:
    train(recipe_path, tmp_path / "run", 'listener=[{use="metrics", every=2}]')
    written = tomli.loads((tmp_path / "run" / "recipe.toml").read_text(encoding="utf-8"))
    assert written["listener"] == [
        {"use": "console", "quiet": False},
        {"use": "memory"},
        {"use": "record"},
        {"use": "metrics", "every": 2},
    ]
    again = read_recipe(tmp_path / "run" / "recipe.toml", open_registry())
    assert again.to_toml()["listener"] == written["listener"]


def test_a_plugins_own_listener_may_be_there_by_default(recipe_path: Path, tmp_path: Path) -> None:
    class Default(Offering):
        @hookimpl
        def ft_listeners(self) -> Iterator[Listener[Options]]:
            yield Listener(name="mine", summary="For a test", options=Options, make=self._kept, default=True)

    plugin = Default(Counter)
    train(recipe_path, tmp_path / "run", plugins=[plugin])
    assert [listener.told for listener in plugin.made] == [["started at 0", "finished at 3"]]


def test_options_are_checked_and_given(recipe_path: Path, tmp_path: Path) -> None:
    plugin = Offering(Counter)
    with pytest.raises(Exception, match=r'"first" is -1\. It takes: integer >= 0'):
        read_recipe(recipe_path, open_registry(plugin), ['listener=[{use="mine", first=-1}]'])
    train(recipe_path, tmp_path / "run", 'listener=[{use="mine", first=5}]', plugins=[plugin])
    assert plugin.made[0].told == ["started at 5", "finished at 8"]


def test_a_listener_of_a_single_file_plugin(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "recipe", {"plugins": ["./mine.py"], "listener": [{"use": "steps", "file": "steps.txt"}]}
    )
    (recipe.parent / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\nfrom fitune import Listener, hookimpl\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Options:\n    file: Path\n"
        "class Steps:\n    def __init__(self, options):\n        self.file = options.file.open('w')\n"
        "    @hookimpl\n    def ft_step_done(self, step):\n        print(step.step, file=self.file)\n"
        "    @hookimpl\n    def ft_run_finished(self):\n        self.file.close()\n"
        "@hookimpl\ndef ft_listeners():\n"
        "    yield Listener(name='steps', summary='Steps in a file', options=Options, make=Steps)\n",
        encoding="utf-8",
    )
    train(recipe, tmp_path / "run")
    assert (recipe.parent / "steps.txt").read_text() == "1\n2\n3\n"


# ------------------------------------------------------------------------------------------------------------ contract


class _Deaf:
    """Hears nothing."""


class _Misspelled:
    @hookimpl
    def ft_step_don(self) -> None:
        """Never called."""


class _Unmarked:
    def ft_evaluatd(self) -> None:
        """Never called."""


class _Offers:
    @hookimpl
    def ft_adapters(self) -> None:
        """No event."""


class _Forgetful(Counter):
    restore = None  # type: ignore[assignment]


class _WrongArgument:
    @hookimpl
    def ft_step_done(self, stepp: StepReport) -> None:
        """Never called."""


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda options: _Deaf(), "it hears no event: mark methods such as ft_step_done with @fitune.hookimpl"),
        (lambda options: _Misspelled(), 'there is no hook "ft_step_don". Did you mean "ft_step_done"?'),
        (lambda options: _Unmarked(), 'there is no hook "ft_evaluatd". Did you mean "ft_evaluated"?'),
        (lambda options: _Offers(), "ft_adapters is no event of a run: a listener hears ft_run_started, "),
        (lambda options: _WrongArgument(), 'ft_step_done has no argument "stepp". Did you mean "step"?'),
        (lambda options: _Forgetful(options), "it has state, but not the other of state and restore"),
        (lambda options: Counter, "make gave no object of a class: give a new one for each run"),
        (lambda options: sys, "make gave no object of a class: give a new one for each run"),
        (lambda options: None, "it hears no event"),
        (lambda options: 1 / 0, "make failed: ZeroDivisionError: division by zero (support/counting.py:"),
    ],
)
def test_what_make_gives_is_checked_before_a_weight_is_read(
    recipe_path: Path, tmp_path: Path, make: Callable[[Options], object], says: str
) -> None:
    (recipe_path.parent / "model" / "model.safetensors").unlink()
    with pytest.raises(PluginError) as raised:
        train(recipe_path, tmp_path / "run", MINE, plugins=[Offering(make)])
    assert raised.value.message.startswith('listener "mine": ')
    assert says in raised.value.message


def test_an_object_that_is_a_plugin_already_is_none_of_a_run(recipe_path: Path, tmp_path: Path) -> None:
    plugin = Offering(lambda options: plugin)
    with pytest.raises(PluginError, match='listener "mine": make gave what is plugin plugin-1 already'):
        train(recipe_path, tmp_path / "run", MINE, plugins=[plugin])


def test_a_listener_that_is_there_by_default_needs_no_options() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needs:
        cloud: str

    class Plugin:
        @hookimpl
        def ft_listeners(self) -> Iterator[Listener[Any]]:
            yield Listener(name="mine", summary="s", options=Needs, make=Counter, default=True)

    with pytest.raises(PluginError, match='the Listener "mine" is there by default, so its option "cloud" needs a'):
        open_registry(Plugin())


# -------------------------------------------------------------------------------------------------------------- events


def test_events_come_to_listeners_in_the_recipes_order_and_before_plugins(recipe_path: Path, tmp_path: Path) -> None:
    told: list[str] = []

    class Told:
        def __init__(self, name: str) -> None:
            self.name = name

        @hookimpl
        def ft_step_done(self, step: StepReport) -> None:
            """Note it."""
            written = metrics(tmp_path / "run")
            told.append(f"{self.name} {step.step} {len(written)}")

    class Two:
        @hookimpl
        def ft_listeners(self) -> Iterator[Listener[Options]]:
            yield Listener(name="a", summary="s", options=Options, make=lambda options: Told("a"))
            yield Listener(name="b", summary="s", options=Options, make=lambda options: Told("b"))

    train(
        recipe_path,
        tmp_path / "run",
        "train.steps=1",
        'listener=[{use="b"}, {use="a"}]',
        plugins=[Two(), Told("plugin")],
    )
    assert told == ["b 1 1", "a 1 1", "plugin 1 1"]


def test_two_runs_in_one_process_do_not_hear_each_other(tmp_path: Path) -> None:
    """Not even of one registry, and one within the other."""
    plugin = Offering(Counter)
    recipe = write_recipe(tmp_path / "recipe")
    registry = open_registry(plugin)
    read = read_recipe(recipe, registry, [MINE])

    class Within:
        """A plugin that makes a whole run in the midst of another."""

        begun = False

        @hookimpl
        def ft_step_done(self) -> None:
            if not self.begun:
                self.begun = True
                (tmp_path / "inner").mkdir()
                run(read_recipe(recipe, registry, [MINE, "train.steps=2"]), registry, tmp_path / "inner")

    registry.register(Within(), "within")
    (tmp_path / "outer").mkdir()
    run(read, registry, tmp_path / "outer")
    outer, inner = plugin.made
    assert (outer.told, inner.told) == (["started at 0", "finished at 3"], ["started at 0", "finished at 2"])
    assert len(metrics(tmp_path / "outer")) == 3
    assert len(metrics(tmp_path / "inner")) == 2


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            ValueError("odd"),
            r'^listener "mine": ft_step_done failed: ValueError: odd \(train/test_listeners\.py:\d+\)$',
        ),
        (RunError("the card is on fire"), "^the card is on fire$"),
    ],
)
def test_an_error_in_a_listener_ends_the_run_and_names_it(
    recipe_path: Path, tmp_path: Path, error: Exception, says: str
) -> None:
    plugin = Offering(failing_at_a_step(error))
    with pytest.raises((PluginError, RunError), match=says):
        train(recipe_path, tmp_path / "run", MINE, plugins=[plugin])
    assert plugin.made[0].told == ["started at 0", "finished at 0"]  # it is told of the end all the same
    assert len(metrics(tmp_path / "run")) == 1  # the metrics were told before
