"""Fits of a small model on budgets, by its own traces: what is chosen fits, and is what the recipe leaves to choose."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import PreTrainedModel

from fitune.compose.model import built
from fitune.data.cache import cache_directory
from fitune.errors import ModelError, RunError
from fitune.memory.cards.cards import budget_card, find_card
from fitune.memory.fit import refit, tracing
from fitune.memory.fit import resolve as resolve_module
from fitune.memory.fit.kept import keep, keep_told, kept_told
from fitune.memory.fit.refit import Composition
from fitune.memory.fit.resolve import card_of_fit, resolve, rows_of
from fitune.memory.fit.result import Considered, Fitted
from fitune.memory.forecast import forecast
from fitune.memory.trace.twins import twins_of
from fitune.plugin.events import MemoryForecast
from fitune.plugin.recipe import Recipe
from fitune.plugin.units import GIB
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.architectures import recipe_of
from support.traces import SharedTraces, shapes

LAYERS = 8
CHANGES = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
}
"""A model that keeps some 50 MiB of each layer for 4096 tokens."""
ROOMY, TIGHT, TIGHTER, HOPELESS = "1GiB", "0.45GiB", "0.33GiB", "0.15GiB"


@pytest.fixture(scope="module", autouse=True)
def _traces() -> Iterator[None]:
    """No composition is traced twice: that is tested elsewhere, and it is what takes the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "trace", SharedTraces())
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fit")


def recipe(directory: Path, *overrides: str, strategies: tuple[str, ...] = ("chunked-loss",)) -> Recipe:
    """Which names the strategy that takes longest to try."""
    recipe_of(directory, "llama", *strategies, length=4096, rows=1, changes=CHANGES)
    return read_recipe(directory / "recipe.toml", open_registry(), overrides)


def composition_of(recipe: Recipe) -> Composition:
    """As a run has it; the data are those of `shapes`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refit, "shapes_of_data", lambda recipe, data: shapes(recipe))
        return refit.fitted(recipe, open_registry(), cast(Any, None))


def fitted(recipe: Recipe) -> Fitted:
    found = resolve(recipe, open_registry(), shapes)
    assert found is not None
    assert found.forecast.passes
    assert found.forecast.reserved + found.forecast.margin <= found.card.usable
    assert found.recipe.memory.fit is False
    return found


def names(found: Fitted) -> list[str]:
    return [use.record.name for use in found.recipe.strategies]


def layers_checkpointed(found: Fitted) -> int:
    tables = [use.table() for use in found.recipe.strategies if use.record.name == "gradient-checkpointing"]
    return int(str(tables[0].get("layers") or LAYERS)) if tables else 0


def halves_checkpointed(found: Fitted) -> int:
    """Of the attention and the MLP of every layer: those that are made again."""
    parts = [use.table()["part"] for use in found.recipe.strategies if use.record.name == "gradient-checkpointing"]
    return layers_checkpointed(found) * (1 if parts == ["mlp"] else 2)


def test_without_fit_nothing_is_chosen(directory: Path) -> None:
    assert resolve(recipe(directory), open_registry(), shapes) is None


def test_this_machines_card_may_be_missing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve_module, "local_card", lambda: None)
    assert resolve(recipe(directory, "memory.fit=true"), open_registry(), shapes) is None


@pytest.mark.parametrize(
    ("wanted", "usable"), [('"a10g"', find_card("a10g").usable), ('"2GiB"', 2 * GIB)], ids=["name", "size"]
)
def test_the_card_is_named_or_a_size(directory: Path, wanted: str, usable: int) -> None:
    card = card_of_fit(recipe(directory, f"memory.fit={wanted}"))
    assert card is not None
    assert card.usable == usable


def test_with_room_only_free_strategies_are_added(directory: Path) -> None:
    found = fitted(recipe(directory, f'memory.fit="{ROOMY}"'))
    assert names(found)[0] == "chunked-loss"
    assert "expandable-segments" in names(found)
    assert not {"gradient-checkpointing", "recompute-pointwise", "nf4"} & set(names(found))


def test_less_memory_takes_more_of_what_costs_time(directory: Path) -> None:
    """And what is forecast is what the recipe that is written would take: nothing of the search stays in it."""
    found = [fitted(recipe(directory, f'memory.fit="{size}"')) for size in (ROOMY, TIGHT, TIGHTER)]
    seconds = [one.chosen.seconds for one in found]
    assert seconds[0] < seconds[1] < seconds[2]
    assert halves_checkpointed(found[0]) <= halves_checkpointed(found[1]) < halves_checkpointed(found[2]) <= 2 * LAYERS
    again = forecast(found[1].recipe, shapes(found[1].recipe), found[1].card, twins_of(open_registry()))
    assert (again.allocated, again.reserved) == (found[1].forecast.allocated, found[1].forecast.reserved)


def test_as_few_layers_are_checkpointed_as_fit(directory: Path) -> None:
    found = fitted(recipe(directory, f'memory.fit="{TIGHTER}"'))
    count = layers_checkpointed(found)
    assert 1 < count <= LAYERS
    fewer: list[Any] = [
        {**use.table(), "layers": count - 1} if use.record.name == "gradient-checkpointing" else use.table()
        for use in found.recipe.strategies
    ]
    text = ", ".join("{" + ", ".join(f"{k} = {_toml(v)}" for k, v in t.items() if v is not None) + "}" for t in fewer)
    less = read_recipe(directory / "recipe.toml", open_registry(), [f"memory.strategy=[{text}]"])
    taken = forecast(less, shapes(less), found.card, twins_of(open_registry()))
    assert taken.reserved + taken.margin > found.card.usable


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def test_a_budget_lowers_what_the_card_has(directory: Path) -> None:
    asked = recipe(directory, f'memory.fit="{ROOMY}"')
    found = resolve(asked, open_registry(), shapes, budget=int(0.45 * GIB))
    assert found is not None
    assert found.chosen.tables == fitted(recipe(directory, f'memory.fit="{TIGHT}"')).chosen.tables


def test_strategies_that_the_recipe_names_stay_as_they_are(directory: Path) -> None:
    own = 'memory.strategy=[{use="chunked-loss"}, {use="gradient-checkpointing", layers=3}]'
    found = fitted(recipe(directory, own, f'memory.fit="{ROOMY}"'))
    tables = [use.table() for use in found.recipe.strategies]
    assert (tables[1]["use"], tables[1]["layers"]) == ("gradient-checkpointing", 3)
    assert names(found).count("gradient-checkpointing") == 1


def test_nothing_fits_is_said_with_what_would(directory: Path) -> None:
    with pytest.raises(RunError) as caught:
        resolve(recipe(directory, f'memory.fit="{HOPELESS}"'), open_registry(), shapes)
    text = caught.value.message
    assert "no composition of memory strategies fits" in text
    assert "GiB" in text.split("misses")[1]
    assert "allow = [" in text or "tokens would fit" in text


def test_where_all_is_allowed_shorter_rows_would_fit(directory: Path) -> None:
    every = 'memory.allow=["nf4", "fp8", "adamw-8bit", "offload-checkpoints", "host-embeddings"]'
    with pytest.raises(RunError) as caught:
        resolve(recipe(directory, f'memory.fit="{HOPELESS}"', every), open_registry(), shapes)
    found = re.search(r"Rows of about (\d+) tokens would fit", caught.value.message)
    assert found is not None
    assert 1 < int(found[1]) < 4096


def test_a_step_is_cut_into_micro_batches(directory: Path) -> None:
    recipe(directory)
    file = directory / "recipe.toml"
    file.write_text(file.read_text(encoding="utf-8").replace("micro_batch = 1\n", ""), encoding="utf-8")
    settings = ["train.length=2048", "train.batch_tokens=8192", f'memory.fit="{TIGHT}"']
    cut = read_recipe(file, open_registry(), settings)
    assert [(rows.micro_batch, rows.accumulation) for rows in rows_of(cut)] == [(1, 4), (2, 2), (4, 1)]
    found = fitted(cut)
    steps = [use.table()["steps"] for use in found.recipe.strategies if use.record.name == "accumulation"]
    assert found.recipe.train.micro_batch * int(str(steps[0] if steps else 1)) == 4
    assert found.recipe.train.batch_tokens is None


def test_a_step_must_be_cut_alike_for_all_processes(directory: Path) -> None:
    cut = recipe(directory)
    cut = replace(cut, train=replace(cut.train, batch_tokens=8192))
    with pytest.raises(RunError, match="Give a multiple of 12288"):
        rows_of(cut, 3)


def test_a_choice_that_is_kept_is_taken_without_counting_layers(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(directory, f'memory.fit="{ROOMY}"')
    first = fitted(asked)

    def counted(model: object) -> int:
        raise AssertionError("a model was made shorter, layer by layer")

    monkeypatch.setattr(resolve_module, "layers_of", counted)
    again = fitted(asked)
    assert names(again) == names(first)
    assert any("by an earlier search" in note for note in again.notes)


def test_a_run_takes_what_is_kept_with_its_figures(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a trace: under the same key it would give the same. Each start builds one model to know the key by."""
    asked = recipe(directory, f'memory.fit="{ROOMY}"', "train.learning_rate=3e-4")
    models: list[PreTrainedModel] = []

    def counted(recipe: Recipe) -> PreTrainedModel:
        models.append(built(recipe))
        return models[-1]

    monkeypatch.setattr(resolve_module, "built", counted)
    found = [composition_of(asked) for _ in range(2)]
    assert len(models) == 2
    assert found[1].forecast == found[0].forecast
    assert found[1].tables == found[0].tables
    assert found[1].lines[:2] == found[0].lines[:2]
    monkeypatch.setattr(tracing, "trace", lambda *given, **named: pytest.fail("a run was traced"))
    assert composition_of(asked) == found[1]
    with pytest.raises(pytest.fail.Exception, match="a run was traced"):
        composition_of(recipe(directory, f'memory.fit="{ROOMY}"', "train.learning_rate=4e-4"))


@pytest.mark.parametrize("damage", [[], {"ledger": [["weights"]]}, {"ledger": [], "card": "a", "fits": True}])
def test_figures_that_are_damaged_are_not_taken(damage: object) -> None:
    chosen = Considered(
        tables=(), micro_batch=1, accumulation=1, seconds=1.0, allocated=1, reserved=2, margin=3, fits=True,
        confirmed=True,
    )  # fmt: skip
    told = MemoryForecast(card="a", allocated=1, reserved=2, needed=2, margin=3, fits=True, ledger=(("weights", 1),))
    keep("key", chosen, [])
    assert kept_told("key") is None
    keep_told("key", told)
    assert kept_told("key") == (chosen, told)
    (file,) = (cache_directory() / "fits").glob("key.json")
    entry = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**entry, "told": damage}), encoding="utf-8")
    assert kept_told("key") is None


def test_a_card_without_speeds_is_told_of(directory: Path) -> None:
    found = fitted(recipe(directory, f'memory.fit="{ROOMY}"'))
    assert found.card == budget_card(GIB)
    assert any("times are compared as on an A10G" in note for note in found.notes)


@pytest.mark.parametrize("strategies", [("chunked-loss",), ()])
def test_what_no_memory_could_mend_is_said_by_itself(directory: Path, strategies: tuple[str, ...]) -> None:
    """On 0.1: no composition fits. A target of another name is one whatever the card."""
    wrong = recipe(directory, f'memory.fit="{ROOMY}"', 'adapter.targets=["q_proi"]', strategies=strategies)
    with pytest.raises(
        ModelError, match=r'^\[adapter\] targets: the model has no layer "q_proi"\. Did you mean "q_proj"'
    ):
        fitted(wrong)
