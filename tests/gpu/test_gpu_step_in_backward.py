"""On a GPU: `step-in-backward` takes what is forecast, and learns what ordinary AdamW does, to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import forecast
from fitune.memory.shapes import of_recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune.testing.contracts.trial import weights
from support.tiny import losses, train

pytestmark = pytest.mark.gpu

USE, PLAIN = 'memory.strategy=[{use="step-in-backward"}]', "memory.strategy=[]"
SHARED = ('adapter={use="none"}', "train.max_grad_norm=0", "train.weight_decay=0.1", 'model.dtype="bfloat16"')


def _wide_model(directory: Path) -> None:
    """Of 170 million parameters, most of them in layers, so that gradients are a large part of all."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    config.update({"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 10, "head_dim": 256})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory)


def test_it_learns_what_adamw_does_to_the_bit(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"deterministic": True, "train": {"steps": 6}})
    for name, strategy in (("own", USE), ("plain", PLAIN)):
        train(recipe, tmp_path / name, *SHARED, strategy)
    assert losses(tmp_path / "own") == losses(tmp_path / "plain")
    found, expected = weights(tmp_path / "own"), weights(tmp_path / "plain")
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_its_memory_is_the_forecast(tmp_path: Path) -> None:
    """Each in a process of its own: what torch has measured is the process' peak."""
    path = write_recipe(tmp_path / "recipe", {"train": {"steps": 3}})
    _wide_model(path.parent / "model")
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!" * 2048}]}
    (path.parent / "data.jsonl").write_text((json.dumps(row) + "\n") * 16, encoding="utf-8")  # as long as rows may be
    measured, expected = {}, {}
    for name, strategy in (("own", USE), ("plain", PLAIN)):
        recipe = read_recipe(path, open_registry(), [*SHARED, strategy])
        expected[name] = forecast(recipe, of_recipe(recipe), find_card("h100")).allocated
        sets = [part for override in (*SHARED, strategy) for part in ("--set", override)]
        command = [sys.executable, "-m", "fitune", "run", str(path), "--out", str(tmp_path / name), *sets]
        done = subprocess.run([*command, "--no-third-party"], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        kept = json.loads((tmp_path / name / "memory.json").read_text(encoding="utf-8"))
        measured[name] = kept["measured"]["allocated"]
    print(
        {name: f"forecast {expected[name] / 2**20:.1f}, measured {measured[name] / 2**20:.1f} MiB" for name in measured}
    )
    for name, bytes_ in measured.items():
        assert expected[name] == pytest.approx(bytes_, rel=0.01), (expected, measured)
    parameters = read_parameters(tmp_path / "own")
    assert measured["plain"] - measured["own"] > 3.5 * parameters, "what is freed: 4 bytes of the sums, at the least"


def read_parameters(run: Path) -> int:
    """How many train."""
    return sum(tensor.numel() for name, tensor in weights(run / "model").items())
