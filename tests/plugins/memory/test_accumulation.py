"""A step's gradient is that of its target tokens, however they are spread over micro-batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers import LlamaForCausalLM

from fitune import Example
from fitune.testing import write_recipe
from support.tiny import adapter, assert_close, gradients, losses, metrics, parts_of, train, with_lora

ROWS, WINDOW = 10, 4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rows of very uneven length: two full windows of four and a last one of two."""
    path = write_recipe(tmp_path_factory.mktemp("accumulation") / "recipe", {"train": {"epochs": 1}})
    with (path.parent / "data.jsonl").open("w", encoding="utf-8") as out:
        for number in range(ROWS):
            answer = "yes " * (1 + 7 * (number % 3))
            turns = [{"role": "user", "content": "?" * (1 + number)}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": turns}) + "\n")
    return path


def _layout(micro_batch: int, accumulation: int) -> tuple[str, str]:
    return f"train.micro_batch={micro_batch}", f'memory.strategy=[{{use="accumulation", steps={accumulation}}}]'


@pytest.mark.parametrize("adapter", ['"lora"', '"none"'])
def test_gradients_do_not_depend_on_micro_batches(recipe: Path, adapter: str) -> None:
    whole = gradients(recipe, f"adapter={{use={adapter}}}", *_layout(4, 1))
    assert len(whole) == 3  # the last window of the epoch is a partial one
    for micro_batch, accumulation in ((1, 4), (2, 2), (3, 1)):
        found = gradients(recipe, f"adapter={{use={adapter}}}", *_layout(micro_batch, accumulation))
        if micro_batch * accumulation != WINDOW:  # another window is another gradient: the comparison can fail
            assert not torch.allclose(found[0][-1], whole[0][-1], rtol=1e-2)
            continue
        for step, expected in zip(found, whole, strict=True):
            assert_close(step, expected)


def test_counts_are_of_the_whole_window(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "one", *_layout(4, 1))
    train(recipe, tmp_path / "many", *_layout(1, 4))
    keys = ("step", "epoch", "tokens", "target_tokens", "learning_rate")
    one, many = ([[line[key] for key in keys] for line in metrics(tmp_path / run)] for run in ("one", "many"))
    assert one == many
    assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_a_run_equals_plain_torch(recipe: Path, tmp_path: Path) -> None:
    """Rows one by one without padding, the mean over the window's targets, torch's clipping, torch's AdamW."""
    numbers = ["train.max_grad_norm=0.05", "train.weight_decay=0.1", "train.epsilon=1e-4", "train.epochs=2"]
    train(recipe, tmp_path / "run", *_layout(2, 2), *numbers, "train.steps=5")
    examples = parts_of(recipe).examples
    found_losses, found = _by_hand(recipe.parent / "model", list(examples), steps=5)
    assert losses(tmp_path / "run") == pytest.approx(found_losses, rel=1e-5)
    saved = adapter(tmp_path / "run")
    expected = {name.replace(".default", ""): p for name, p in found.items()}
    assert saved.keys() == expected.keys()
    assert_close(saved.values(), [expected[name] for name in saved], relative=1e-4)


def _by_hand(model: Path, examples: list[Example], *, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    set_seed(42)
    base = LlamaForCausalLM.from_pretrained(model)
    adapted: Any = with_lora(base, "q_proj", "v_proj", random=False)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, eps=1e-4, weight_decay=0.1)
    rows = [int(row) for epoch in range(2) for row in np.random.default_rng((42, epoch)).permutation(ROWS)]
    cuts = [0, 4, 8, 10, 14, 18]  # each epoch's last window holds what is left
    found: list[float] = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * step / steps))
        window = [examples[row] for row in rows[cuts[step] : cuts[step + 1]]]
        targets = sum(int((e.labels[1:] != -100).sum()) for e in window)
        total = torch.zeros(())
        for example in window:
            logits = adapted(torch.from_numpy(example.input_ids)[None].long()).logits[0, :-1]
            labels = torch.from_numpy(example.labels)[1:].long()
            total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        (total / targets).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(total.detach()) / targets)
    return found, trained
