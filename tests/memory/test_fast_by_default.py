"""`[memory] fast`: what a plain recipe gets on a GPU without asking, wherever what it takes is forecast."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitune import Batch, Fit, MemoryStrategy, NoOptions, Plan, Strategy, hookimpl
from fitune.cli.main import main
from fitune.compose.model import built
from fitune.memory.cards.cards import find_card
from fitune.memory.cards.several import several
from fitune.memory.fast import with_fast
from fitune.memory.fit.choices import choices_for
from fitune.memory.fit.refit import Composition
from fitune.memory.forecast import forecast
from fitune.memory.oom.explain import explain
from fitune.memory.oom.failure import run_out
from fitune.memory.oom.message import Figure, OutOfMemoryMessage, read_message
from fitune.memory.shapes import of_recipe
from fitune.memory.where import where
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.architectures import recipe_of
from support.oom_forecast import text_of

FREE = ["fast-layers", "chunked-loss", "expandable-segments", "fused-rms-norm", "fused-lora"]
CARD = find_card("h100")


class Others:
    """A third party's plugin: the strategies that it is given."""

    def __init__(self, *records: MemoryStrategy[Any]) -> None:
        self.records = records

    @hookimpl
    def ft_memory_strategies(self) -> Iterator[MemoryStrategy[Any]]:
        """Offer them."""
        yield from self.records


def other(name: str, make: type[Strategy] = Strategy, **says: Any) -> MemoryStrategy[NoOptions]:
    """A strategy of a third party."""
    return MemoryStrategy(name=name, summary="One", options=NoOptions, make=lambda options: make(), **says)


def added(tmp_path: Path, *strategies: str, plugins: tuple[object, ...] = (), kind: str = "llama", **how: Any) -> Any:
    """The names of a recipe's strategies on a card, and what is said of those that were added."""
    recipe_of(tmp_path, kind, **how)
    registry = open_registry(*plugins)
    listed = ", ".join(strategy if "{" in strategy else f'{{use="{strategy}"}}' for strategy in strategies)
    found = with_fast(read_recipe(tmp_path / "recipe.toml", registry, [f"memory.strategy=[{listed}]"]), registry, CARD)
    return [use.record.name for use in found.recipe.strategies], list(found.lines)


def test_what_costs_no_time_is_added_behind_what_is_named(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "llama", "pinned-memory")
    found = with_fast(recipe, open_registry(), CARD)
    assert [use.record.name for use in found.recipe.strategies] == ["pinned-memory", *FREE]
    assert found.recipe.memory.fast is False
    assert found.lines == (
        f"added, since they cost no time: {', '.join(FREE)} (to leave them out: --set memory.fast=false)",
    )
    assert with_fast(found.recipe, open_registry(), CARD) == Composition(recipe=found.recipe)


@pytest.mark.parametrize("override", ["memory.fast=false", 'memory.fit="a10g"'])
def test_a_recipe_that_says_otherwise_stays_as_it_is(tmp_path: Path, override: str) -> None:
    recipe_of(tmp_path, "llama")
    recipe = read_recipe(tmp_path / "recipe.toml", open_registry(), [override])
    assert with_fast(recipe, open_registry(), CARD) == Composition(recipe=recipe)


def test_what_is_named_keeps_its_options_and_is_there_once(tmp_path: Path) -> None:
    recipe_of(tmp_path, "llama")
    named = 'memory.strategy=[{use="chunked-loss", tokens=64}, {use="expandable-segments", enabled=false}]'
    made = with_fast(read_recipe(tmp_path / "recipe.toml", open_registry(), [named]), open_registry(), CARD).recipe
    assert sorted(use.record.name for use in made.strategies) == sorted(FREE)
    options = {use.record.name: use.options for use in made.strategies}
    assert options["chunked-loss"].tokens == 64
    assert options["expandable-segments"].enabled is False


def test_a_model_of_another_kind_gets_what_suits_it_and_a_line_says_why(tmp_path: Path) -> None:
    names, lines = added(tmp_path, kind="phi")
    assert names == ["chunked-loss", "expandable-segments", "fused-lora"]
    (line,) = [line for line in lines if line.startswith("not added: ")]
    assert "fast-layers: it does not know layers of this kind of model" in line
    assert "fused-rms-norm: PeftModelForCausalLM has no RMSNorm of the known formula" in line
    assert "[[memory.strategy]]" not in line  # nothing is to be removed


class _Shards(Strategy):
    def plan(self, plan: Plan) -> Plan:
        """Shard weights where there are several cards."""
        return replace(plan, sharded=plan.processes > 1)


def test_of_what_does_not_suit_a_model_only_what_could_have_been_added_is_told(tmp_path: Path) -> None:
    unsuited = Fit(free=True, suits=lambda config: False, unsuited="it has no layers")
    mine, others = other("mine", exact=True, fit=unsuited), other("shards", _Shards, exact=True, fit=unsuited)
    _, lines = added(tmp_path, plugins=(Others(mine, others),))
    assert lines[-1] == "not added: mine: it has no layers"
    _, lines = added(tmp_path, "mine", plugins=(Others(mine, others),))
    assert not any(line.startswith("not added") for line in lines)  # it is named


def test_without_an_adapter_nothing_is_fused_with_it(tmp_path: Path) -> None:
    names, lines = added(tmp_path, lora=False)
    assert "fused-lora" not in names
    assert "chunked-loss" in names
    assert "fused-lora: no linear layer has an adapter" in lines[-1]


class _Loss(Strategy):
    def plan(self, plan: Plan) -> Plan:
        """Have a loss."""
        return replace(plan, loss=_half)


def _half(model: Any, batch: Batch) -> Any:
    return model(**batch.inputs(), labels=batch.labels).loss * batch.targets


CONFLICTS: Mapping[str, tuple[MemoryStrategy[Any], str, str]] = {
    "excluded": (other("mine", conflicts_with={"fast-layers": "it has its own"}), "fast-layers", "it has its own"),
    "made twice": (other("mine", _Loss, makes=("loss",)), "chunked-loss", '"mine" and "chunked-loss" both'),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_what_does_not_go_with_what_is_named_is_left_out(tmp_path: Path, case: str) -> None:
    record, left_out, why = CONFLICTS[case]
    names, lines = added(tmp_path, "mine", plugins=(Others(record),))
    assert names == ["mine", *(name for name in FREE if name != left_out)]
    assert why in lines[-1]


def test_of_two_that_exclude_each_other_the_first_is_added(tmp_path: Path) -> None:
    fit = Fit(free=True)
    mine = other("mine", exact=True, fit=fit, conflicts_with={"fused-lora": "both write there"})
    names, lines = added(tmp_path, plugins=(Others(mine),))
    assert len({"mine", "fused-lora"} & set(names)) == 1
    assert set(FREE) - {"fused-lora"} < set(names)
    assert "both write there" in lines[-1]


def test_a_third_partys_free_strategy_is_added_if_it_is_exact(tmp_path: Path) -> None:
    fit = Fit(free=True)
    offered = other("free", exact=True, fit=fit), other("rough", fit=fit), other("costly", exact=True, fit=Fit())
    names, _ = added(tmp_path, plugins=(Others(*offered),))
    assert set(names) == {*FREE, "free"}


def test_layers_that_a_short_model_lacks_are_looked_for_in_the_whole_one(tmp_path: Path) -> None:
    layers = {"num_hidden_layers": 4}
    names, lines = added(tmp_path, '{use="gradient-checkpointing", layers=4}', changes=layers)
    assert sorted(names) == sorted(["gradient-checkpointing", *FREE])
    assert not any(line.startswith("not added") for line in lines)


def test_what_cannot_be_traced_is_left_as_it_is(tmp_path: Path) -> None:
    """What is wrong with it is told by the run."""
    recipe_of(tmp_path, "llama")
    wrong = read_recipe(tmp_path / "recipe.toml", open_registry(), ['adapter.targets=["no_proj"]'])
    assert with_fast(wrong, open_registry(), CARD).recipe == wrong
    (tmp_path / "model" / "config.json").write_text('{"model_type": "nobody-knows"}', encoding="utf-8")
    unknown = with_fast(wrong, open_registry(), CARD)
    assert unknown.recipe == wrong
    assert "the model cannot be built without weights" in unknown.lines[0]


def test_it_holds_for_deterministic_runs_and_several_cards(tmp_path: Path) -> None:
    recipe_of(tmp_path, "llama", "pinned-memory")
    asked = ["deterministic=true", 'memory.strategy=[{use="fsdp"}]']
    recipe = read_recipe(tmp_path / "recipe.toml", open_registry(), asked)
    made = with_fast(recipe, open_registry(), several(CARD, 2)).recipe
    assert {use.record.name for use in made.strategies} == {"fsdp", *FREE}
    assert forecast(made, of_recipe(made), several(CARD, 2)).passes


def test_a_fit_leaves_out_what_is_turned_off(tmp_path: Path) -> None:
    config = built(recipe_of(tmp_path, "llama")).config
    for fast in (True, False):
        asked = [f"memory.fast={str(fast).lower()}", 'memory.fit="a10g"']
        recipe = read_recipe(tmp_path / "recipe.toml", open_registry(), asked)
        offered = {choice.name for choice in choices_for(recipe, open_registry(), config, ())}
        assert set(FREE) <= offered if fast else not set(FREE) & offered
        assert "gradient-checkpointing" in offered


# ------------------------------------------------------------------------------------------------- who forecasts


def planned(capsys: pytest.CaptureFixture[str], recipe: Path, *arguments: str) -> str:
    main(["plan", str(recipe), "--gpu", "h100", *arguments])
    return capsys.readouterr().out


def test_a_plan_is_of_what_a_run_on_the_card_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_of(tmp_path, "llama", length=512)
    path = tmp_path / "recipe.toml"
    plain = json.loads(planned(capsys, path, "--json", "--set", "memory.fast=false"))
    found = json.loads(planned(capsys, path, "--json"))
    listed = ", ".join(f'{{use="{name}"}}' for name in FREE)
    named = json.loads(planned(capsys, path, "--json", "--set", f"memory.strategy=[{listed}]"))
    assert [table["use"] for table in found["fast"]["strategies"]] == FREE
    assert plain["fast"] == {"strategies": [], "notes": []}
    assert found["allocated"] == named["allocated"] < plain["allocated"]
    assert found["ledger"] == named["ledger"]
    assert "  note       added, since they cost no time: fast-layers, " in planned(capsys, path)


def test_levers_are_changes_to_what_a_run_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_of(tmp_path, "llama", length=512, changes={"num_hidden_layers": 4})
    path = tmp_path / "recipe.toml"
    found = json.loads(planned(capsys, path, "--json", "--levers"))
    levers = {one["name"]: one for one in found["levers"]}
    assert not set(FREE) & set(levers)
    assert levers["schedule-free"]["refused"].startswith("[train] schedule: ")  # the recipe has no such line
    shorter = levers["length 512 to 256"]
    set_so = json.loads(planned(capsys, path, "--json", *(w for o in shorter["set"] for w in ("--set", o))))
    assert set_so["allocated"] == shorter["allocated"]
    checkpointed = levers["gradient-checkpointing"]
    set_so = json.loads(planned(capsys, path, "--json", *(w for o in checkpointed["set"] for w in ("--set", o))))
    assert set_so["allocated"] == checkpointed["allocated"]


def test_places_and_shortages_are_of_what_a_run_has(tmp_path: Path) -> None:
    recipe, registry = recipe_of(tmp_path, "llama", length=512), open_registry()
    assert set(next(where(recipe, registry, of_recipe)).strategies) == set(FREE)
    size = Figure(bytes=2**20, error=0)
    message = OutOfMemoryMessage(asked=size, free=size, source="a test")
    explained = explain(recipe, registry, message, gpu="a10g")
    made = with_fast(recipe, registry, find_card("a10g")).recipe
    assert explained.forecast.allocated == forecast(made, of_recipe(made), find_card("a10g")).allocated
    assert explained.added[0].startswith("added, since they cost no time: fast-layers")


def test_a_shortage_of_a_run_without_is_told_as_such(tmp_path: Path) -> None:
    """Of another program's, or of fitune before there was the key."""
    recipe_of(tmp_path, "llama", length=512, rows=32)
    plain = read_recipe(tmp_path / "recipe.toml", open_registry(), ["memory.fast=false"])
    found = forecast(plain, of_recipe(plain), find_card("a10g"))
    failure = run_out(found.trace.log, found.needed - 2**21, expandable=False)
    assert failure is not None
    asked = read_recipe(tmp_path / "recipe.toml", open_registry())
    explained = explain(asked, open_registry(), read_message(text_of(failure)), gpu="a10g")
    assert explained.variants[0].override == "memory.fast=false"
    assert explained.variants[0].sighting.failure.block.shape == failure.block.shape
