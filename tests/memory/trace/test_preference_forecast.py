"""The forecast of preference tuning: the same loss is traced, its reference's forward pass too."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.shapes import of_recipe
from fitune.memory.trace.load import WARM_UP
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.architectures import recipe_of
from support.paths import ROOT
from support.real_steps import both_logs, events

STRATEGIES = 'memory.strategy=[{use="gradient-checkpointing"}, {use="chunked-loss"}]'


@functools.cache
def of(objective: str = "") -> Forecast:
    """Of a 7B model, with rows of 2,048 tokens."""
    format_ = "preferences" if objective else "messages"
    asked = [f'data.stage=[{{use="{format_}"}}, {{use="chat"}}]', STRATEGIES, "model.revision=main"]
    overrides = [*asked, f"objective={objective}"] if objective else asked
    recipe = read_recipe(Path(ROOT / "recipes" / "deepseek7b_g5.toml"), open_registry(), overrides, look=False)
    return forecast(recipe, of_recipe(recipe), find_card("a10g"))


@pytest.mark.parametrize("reference", ["adapter-off", "prepared"])
def test_dpo_takes_what_sft_takes(reference: str) -> None:
    """Of the same tokens: 1.02 of it at most."""
    sft, dpo = of(), of(f'{{use="dpo", reference="{reference}"}}')
    assert sft.allocated <= dpo.allocated <= 1.02 * sft.allocated
    kinds = {entry.kind: entry.bytes for entry in dpo.ledger.entries}
    saved = {entry.kind: entry.bytes for entry in sft.ledger.entries}["saved activations"]
    assert kinds["saved activations"] == pytest.approx(saved, rel=0.01)  # not taken for a part of the loss


def test_the_reference_costs_a_forward_pass() -> None:
    """Half of what a step with frozen weights and layers computed again takes beside it."""
    off = of('{use="dpo", reference="adapter-off"}').trace.flops_per_token
    prepared = of('{use="dpo", reference="prepared"}').trace.flops_per_token
    assert 1.2 < off / prepared < 1.5


CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "dpo": ("dpo", ()),
    "dpo, prepared": ('dpo", reference="prepared', ()),
    "dpo, in chunks": ("dpo", ("chunked-loss",)),
    "dpo, fast layers": ("dpo", ("fast-layers", "chunked-loss")),
    "dpo, fused": ("dpo", ("fused-lora", "gradient-checkpointing")),
    "kto": ("kto", ("chunked-loss",)),
    "orpo": ("orpo", ()),
    "reward": ("reward", ("gradient-checkpointing",)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_forecast_does_what_a_run_does(case: str, tmp_path: Path) -> None:
    """Operation by operation: with values on a CPU, and without."""
    name, strategies = CASES[case]
    recipe = recipe_of(tmp_path, "llama", *strategies, length=32)
    asked = (f'objective={{use="{name}"}}', 'data.stage=[{use="preferences"}, {use="chat"}]')
    forecast, real = both_logs(read_recipe(recipe.path, open_registry(), asked))
    assert events(forecast) == events(real)


def test_a_reward_model_has_no_head_over_the_vocabulary() -> None:
    """It is taken as the weights are read, and given back before the first step."""
    sft, reward = of(), of('{use="reward"}')
    head = 102400 * 4096 * 2
    assert reward.trace.parameters == pytest.approx(sft.trace.parameters - head / 2, abs=10_000)
    assert reward.allocated < sft.allocated - 0.9 * head
    taken = [next(b.bytes for b in one.trace.log.blocks if b.operation == WARM_UP) for one in (sft, reward)]
    assert taken[0] == pytest.approx(taken[1], abs=2**20)
