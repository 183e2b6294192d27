"""Checkpoints that bitsandbytes has quantised take of a card what is forecast."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import forecast
from fitune.memory.shapes import shapes_of_recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune.train.loop import train as steps_of
from support.quantized import BITSANDBYTES
from support.tiny import parts_of

pytestmark = pytest.mark.gpu

LENGTH = 2048


def _recipe(directory: Path, kind: str, strategies: list[dict[str, object]]) -> Path:
    path = write_recipe(
        directory,
        {
            "model": {"dtype": "bfloat16"},
            "adapter": {"targets": ["q_proj", "v_proj", "gate_proj"], "r": 4},
            "memory": {"strategy": strategies},
            "train": {"length": LENGTH, "micro_batch": 2, "steps": 3},
        },
    )
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=4,
        num_attention_heads=16,
        vocab_size=260,
        bos_token_id=None,
        eos_token_id=257,
        pad_token_id=258,
    )
    model = path.parent / "model"
    torch.manual_seed(0)
    made: Any = LlamaForCausalLM(config)
    made.to(torch.bfloat16).save_pretrained(model)
    load: Any = AutoModelForCausalLM.from_pretrained
    quantization = BitsAndBytesConfig(**BITSANDBYTES[kind])
    quantised = load(model, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": 0})
    quantised.save_pretrained(model)
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!" * 2 * LENGTH}]}
    (path.parent / "data.jsonl").write_text((json.dumps(row) + "\n") * 8, encoding="utf-8")
    return path


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["4bit", "double", "8bit"])
def test_the_peak_is_the_forecast(kind: str, checkpointing: bool, tmp_path: Path) -> None:
    names = ["chunked-loss", "expandable-segments", *(["gradient-checkpointing"] if checkpointing else [])]
    path = _recipe(tmp_path / "recipe", kind, [{"use": name} for name in names])
    recipe = read_recipe(path, open_registry())
    expected = forecast(recipe, shapes_of_recipe(recipe, 1), find_card("h100")).allocated
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    before = torch.cuda.memory_allocated()
    parts = parts_of(path)
    torch.cuda.reset_peak_memory_stats()
    list(steps_of(parts))
    found = torch.cuda.max_memory_allocated() - before
    print(f"{kind} checkpointing={checkpointing}: forecast {expected / 2**20:.1f}, measured {found / 2**20:.1f} MiB")
    assert found == pytest.approx(expected, rel=0.02)
