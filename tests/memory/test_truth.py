"""A rehearsal without values does what a run with values does: the same operations, sizes and order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fitune.memory.allocator.replay import replay
from fitune.plugin.recipe import Recipe
from support.architectures import CHUNKED_LOSS, CONFIGS, GRADIENT_CHECKPOINTING, recipe_of
from support.real_steps import both_generations, both_logs, events

LAYER_NORM = {"phi", "falcon", "gpt_neox", "starcoder2", "gpt2", "dbrx", "xlm"}
"""Their norms keep float32 on a card, but the type of their input on the CPU, so float32 is what can be compared."""
ON_HOST = {"phimoe"}
"""It makes its rotary frequencies on the host in every step, which the CPU cannot be told from."""
BY_VALUE = {"jetmoe", "dbrx", "longcat_flash"}
"""How many rows their products have follows from where their tokens go; a trace takes the most."""

TO_ALL: dict[str, dict[str, Any]] = {
    "dbrx": {"ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 2, "moe_top_k": 2}},
    "longcat_flash": {"n_routed_experts": 2, "zero_expert_num": 0},
}
"""With as many experts as each token goes to, where it goes is known."""


def _same(recipe: Recipe) -> None:
    forecast, real = both_logs(recipe)
    assert events(forecast) == events(real)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ON_HOST | BY_VALUE])
def test_lora(tmp_path: Path, name: str) -> None:
    _same(recipe_of(tmp_path, name, dtype="float32" if name in LAYER_NORM else "bfloat16", length=32))


def test_encoder_that_asserts_what_it_is_given(tmp_path: Path) -> None:
    _same(recipe_of(tmp_path, "xlm", dtype="float32", length=32))


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("name", TO_ALL)
def test_experts_in_a_loop(tmp_path: Path, name: str, lora: bool) -> None:
    _same(recipe_of(tmp_path, name, lora=lora, dtype="float32", length=32, changes=TO_ALL[name]))


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("name", TO_ALL)
def test_experts_in_a_loop_take_no_more_than_is_forecast(tmp_path: Path, name: str, lora: bool) -> None:
    """Wherever random weights send the tokens."""
    forecast, real = both_logs(recipe_of(tmp_path, name, lora=lora, dtype="float32", length=32))
    most, taken = (replay(log.sized()).peak_allocated for log in (forecast, real))
    assert taken <= most < 1.05 * taken


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "qwen3_moe", "gemma2", "phi3", "deepseek_v3", "gpt_oss", "gpt_neox", "olmo2", "glm4"]
)
def test_full_fine_tuning_with_checkpoints_and_chunked_loss(tmp_path: Path, name: str) -> None:
    strategies = (GRADIENT_CHECKPOINTING, CHUNKED_LOSS)
    dtype = "float32" if name in LAYER_NORM else "bfloat16"
    _same(recipe_of(tmp_path, name, *strategies, lora=False, dtype=dtype, length=32))


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
def test_evaluation_dropout_and_a_longer_window_than_the_row(tmp_path: Path, name: str) -> None:
    recipe = recipe_of(tmp_path, name, dropout=0.05, evaluates=True, length=12)
    _same(recipe)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek_v3"])
def test_generation(tmp_path: Path, name: str, rows: int) -> None:
    """Against `generate` itself; prompts that are longer than a window."""
    forecast, real = both_generations(recipe_of(tmp_path, name), rows, 24, 12)
    peaks = [replay(log.sized()).peak_allocated for log in (forecast, real)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)
    standing = sum(block.rounded for block in real.blocks if block.phase == "load")
    assert peaks[0] - standing == pytest.approx(peaks[1] - standing, rel=0.1)
