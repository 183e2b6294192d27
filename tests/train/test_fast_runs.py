"""`[memory] fast` in a run: what is added is told, written and kept; without a GPU nothing is."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fitune import MemoryStrategy, ModelError, NoOptions, Plan, Run, Strategy, hookimpl
from fitune.cli.console import RunConsole
from fitune.compose import parts
from fitune.errors import RunError
from fitune.memory.cards.cards import find_card
from fitune.memory.fit import resolve
from fitune.memory.fit.refit import Composition, refitter_of
from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.runs.identity import read_identity, write_identity
from fitune.runs.layout import IDENTITY, RECIPE
from fitune.testing import open_registry
from fitune.testing import write_recipe as write_tiny
from fitune.train import choose
from fitune.train.start import start_of
from support.resuming import Stopper, go, stop
from support.tiny import losses, train

FREE = ["fast-layers", "chunked-loss", "expandable-segments", "fused-rms-norm", "fused-lora"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe, which leaves open what is added."""
    return write_tiny(tmp_path / "recipe", {"memory": {"fast": True}})


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this machine had a GPU to choose for; the run itself stays on the CPU."""
    monkeypatch.setattr(choose, "card_here", lambda: find_card("a10g"))


def names(recipe: Recipe) -> list[str]:
    return [use.record.name for use in recipe.strategies]


def written(run: Path) -> Recipe:
    return read_recipe(run / RECIPE, open_registry())


def test_without_a_gpu_nothing_is_added(recipe: Path, tmp_path: Path) -> None:
    made = train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "off", "memory.fast=false")
    assert (names(made.recipe), made.fitted) == ([], ())
    assert written(tmp_path / "run").memory.fast is True
    assert losses(tmp_path / "run") == losses(tmp_path / "off")


@pytest.mark.usefixtures("on_a_card")
def test_what_is_added_is_told_and_written(recipe: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    made = train(recipe, tmp_path / "run", plugins=[RunConsole(Console(file=said, width=300))])
    assert names(made.recipe) == FREE
    assert f"memory   {', '.join(FREE)}\n         added, since they cost no time: fast-layers, " in said.getvalue()
    assert "to leave them out: --set memory.fast=false" in said.getvalue()
    kept = written(tmp_path / "run")
    assert (names(kept), kept.memory.fast) == (FREE, False)
    identity = read_identity(tmp_path / "run")
    assert identity is not None
    assert identity.recipe["memory"]["fast"] is True
    again = train(tmp_path / "run" / RECIPE, tmp_path / "again")
    assert names(again.recipe) == FREE
    assert losses(tmp_path / "again") == losses(tmp_path / "run")


@pytest.mark.usefixtures("on_a_card")
def test_it_can_be_turned_off(recipe: Path, tmp_path: Path) -> None:
    made = train(recipe, tmp_path / "run", "memory.fast=false")
    assert (names(made.recipe), made.fitted) == ([], ())


@pytest.mark.usefixtures("on_a_card")
def test_a_run_goes_on_with_what_was_added_when_it_began(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(recipe, tmp_path / "run", 1)
    monkeypatch.setattr(choose, "with_fast", lambda *_: pytest.fail("it was chosen"))
    heard = Heard()
    go(tmp_path / "run", "checkpoint.keep=3", plugins=[heard])
    assert heard.fitted == ("as it was chosen when the run began",)
    assert names(heard.recipe) == FREE
    assert heard.recipe.checkpoint.keep == 3  # what is not chosen is as it is asked for


@pytest.mark.usefixtures("on_a_card")
def test_what_a_strategy_refuses_is_told_before_data_are_read(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Composing plans the run: choosing does not do so too."""
    plans: list[bool] = []

    class Refusing(Strategy):
        def plan(self, plan: Plan) -> Plan:
            """Refuse."""
            plans.append(plan.gpu)
            raise ModelError("refusing: not on this machine")

    class Plugin:
        @hookimpl
        def ft_memory_strategies(self) -> Iterator[MemoryStrategy[NoOptions]]:
            """Offer it."""
            yield MemoryStrategy(name="refusing", summary="One", options=NoOptions, make=lambda options: Refusing())

    monkeypatch.setattr(parts, "gather", lambda *_: pytest.fail("data were read"))
    with pytest.raises(ModelError, match="refusing: not on this machine"):
        train(recipe, tmp_path / "run", 'memory.strategy=[{use="refusing"}]', plugins=[Plugin()])
    assert plans.count(False) == 1


class Heard(Stopper):
    """Keeps how a run started."""

    fitted: tuple[str, ...]
    recipe: Recipe

    @hookimpl
    def ft_run_started(self, run: Run) -> None:
        """Keep it."""
        self.fitted, self.recipe = run.fitted, run.recipe


def as_before(run: Path) -> None:
    """Make a run one of before there was the key."""
    identity = read_identity(run)
    assert identity is not None
    recipe = {**identity.recipe, "memory": {k: v for k, v in identity.recipe["memory"].items() if k != "fast"}}
    write_identity(run, replace(identity, recipe=recipe))
    assert "fast" not in json.loads((run / IDENTITY).read_text(encoding="utf-8"))["recipe"]["memory"]
    text = (run / RECIPE).read_text(encoding="utf-8").partition("\n")[2]
    (run / RECIPE).write_text(text.replace("fast = true\n", ""), encoding="utf-8")


@pytest.mark.parametrize("by", ["its directory", "its recipe"])
def test_a_run_of_before_goes_on_without(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    stop(recipe, tmp_path / "run", 1)
    as_before(tmp_path / "run")
    assert written(tmp_path / "run").memory.fast is False
    monkeypatch.setattr(choose, "card_here", lambda: find_card("a10g"))
    heard = Heard()
    if by == "its directory":
        go(tmp_path / "run", plugins=[heard])
    else:
        without = recipe.read_text(encoding="utf-8").replace("fast = true\n", "")
        recipe.write_text(without, encoding="utf-8")
        go(recipe, plugins=[heard], out=tmp_path / "run", resume=True)
    assert (names(heard.recipe), heard.fitted) == ([], ())
    train(recipe, tmp_path / "plain", "memory.fast=false")
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")


def test_to_add_something_to_such_a_run_is_a_change(recipe: Path, tmp_path: Path) -> None:
    stop(recipe, tmp_path / "run", 1)
    as_before(tmp_path / "run")
    asked = ["memory.fast=true"]
    for given, out in ((tmp_path / "run", None), (recipe, tmp_path / "run")):
        with pytest.raises(RunError, match=r"memory\.fast: false before, true now"):
            start_of(given, open_registry(), asked, out=out, resume=out is not None, allowed=())
    allowed = start_of(tmp_path / "run", open_registry(), asked, out=None, resume=False, allowed=["memory.fast"])
    assert allowed.recipe.memory.fast


def test_a_shortage_of_memory_looks_for_all_that_is_free(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Recipe] = []
    monkeypatch.setattr(resolve, "resolve", lambda recipe, *_, **__: asked.append(recipe))
    plain = read_recipe(recipe, open_registry(), ["memory.fast=false"])
    with pytest.raises(RunError, match="takes less than"):
        refitter_of(open_registry())(plain, [Composition(recipe=plain)], None, 2**30)  # type: ignore[arg-type]
    assert (asked[0].memory.fit, asked[0].memory.fast) == (True, True)
