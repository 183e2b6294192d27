"""What only a CUDA device can show. Skipped, visibly, where there is none."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fitune.cli.main import main
from fitune.compose.loss import plain_loss
from fitune.memory import background
from fitune.memory.cards.cards import find_card, parse_size
from fitune.testing import write_recipe, write_tiny_model
from fitune.train.loop import train as steps_of
from fitune_plugins.memory.chunked_cross_entropy import chunked_loss
from support.paths import TESTS
from support.tiny import assert_close, loss_and_gradients, losses, metrics, parts_of, train

pytestmark = pytest.mark.gpu


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe in bfloat16."""
    return write_recipe(tmp_path / "recipe", {"model": {"dtype": "bfloat16"}})


def test_a_run_in_bfloat16(recipe: Path, tmp_path: Path) -> None:
    """Near the float32 run on the CPU's golden losses, and with the GPU's own memory figures."""
    golden = json.loads((TESTS / "golden" / "tiny_loss.json").read_text(encoding="utf-8"))
    run = train(recipe, tmp_path / "run", *golden["overrides"])
    assert run.device.startswith("cuda")
    assert losses(tmp_path / "run") == pytest.approx(golden["losses"], rel=0.02)
    line = metrics(tmp_path / "run")[-1]
    assert 0 < line["gpu_memory_peak"] <= line["gpu_memory_reserved_peak"]


def test_adamw_is_fused(recipe: Path) -> None:
    parts = parts_of(recipe)
    assert parts.step.optimizer.defaults["fused"] is True
    list(steps_of(parts))
    assert {p.device.type for p in parts.step.trainables.masters} == {"cuda"}
    assert {p.dtype for p in parts.step.trainables.masters} == {torch.float32}


def test_pinned_batches_give_the_same_losses(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []
    pin = torch.Tensor.pin_memory

    def count(self: torch.Tensor, *arguments: Any) -> torch.Tensor:
        pinned.append(self.numel())
        return pin(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "pin_memory", count)
    train(recipe, tmp_path / "off", 'memory.strategy=[{use="pinned-memory"}]')
    assert pinned == []
    train(recipe, tmp_path / "on", 'memory.strategy=[{use="pinned-memory", enabled=true}]')
    assert pinned
    assert losses(tmp_path / "on") == pytest.approx(losses(tmp_path / "off"), rel=1e-5)


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_chunked_loss_in_bfloat16(recipe: Path, adapter: str) -> None:
    parts = parts_of(recipe, f'adapter={{use="{adapter}"}}')
    model = parts.run.model
    batch = next(iter(parts.make_batches(iter([parts.examples[:4]])))).to(torch.device("cuda"))
    value, expected = loss_and_gradients(plain_loss, model, batch)
    found_value, found = loss_and_gradients(partial(chunked_loss, chunk=5), model, batch)
    torch.testing.assert_close(found_value, value, rtol=2e-3, atol=0)
    assert_close([g.float() for g in found], [g.float() for g in expected], relative=0.05)


def test_checkpointing_lowers_the_peak(recipe: Path) -> None:
    write_tiny_model(recipe.parent / "model", layers=8, dtype="bfloat16")
    row = {"messages": [{"role": "user", "content": "?" * 400}, {"role": "assistant", "content": "!" * 50}]}
    (recipe.parent / "data.jsonl").write_text((json.dumps(row) + "\n") * 64, encoding="utf-8")

    def peak(*overrides: str) -> int:
        parts = parts_of(recipe, "train.micro_batch=64", "train.length=512", "train.steps=1", *overrides)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        # The loss would hide it: full logits of 64 rows are larger than all activations of a tiny model.
        list(steps_of(parts))
        return torch.cuda.max_memory_allocated() - before

    chunked = '{use="chunked-loss", tokens=64}'
    plain = peak(f"memory.strategy=[{chunked}]")
    half = peak(f'memory.strategy=[{chunked}, {{use="gradient-checkpointing", layers=4}}]')
    all_layers = peak(f'memory.strategy=[{chunked}, {{use="gradient-checkpointing"}}]')
    assert all_layers < half < plain
    assert all_layers < 0.5 * plain


SEGMENTS = """
import sys
from pathlib import Path
import torch
from fitune.recipe.reader import read_recipe
from fitune.train.run import run
from fitune.testing import open_registry
registry = open_registry()
recipe = read_recipe(Path(sys.argv[1]), registry, sys.argv[2:])
out = Path(sys.argv[1]).parent / "run"
out.mkdir()
run(recipe, registry, out)
print(sorted({segment["is_expandable"] for segment in torch.cuda.memory_snapshot()}))
"""


@pytest.mark.parametrize(("enabled", "found"), [("true", "[True]"), ("false", "[False]")])
def test_segments_are_expandable(recipe: Path, enabled: str, found: str) -> None:
    """In a process of its own: the allocator takes its settings before its first segment."""
    override = f'memory.strategy=[{{use="expandable-segments", enabled={enabled}}}]'
    command = [sys.executable, "-c", SEGMENTS, str(recipe), override]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == found


def test_a_run_keeps_its_forecast_beside_what_was_measured(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: what torch has measured is the process' peak."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-m", "fitune", "run", str(recipe), "--out", str(tmp_path / "run"), "--no-third-party"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "run" / "memory.json").read_text(encoding="utf-8"))
    assert kept["forecast"]["error"] is None
    assert kept["forecast"]["allocated"] == pytest.approx(kept["measured"]["allocated"], rel=0.05)  # of a tiny model
    (known,) = json.loads((tmp_path / "cache" / "cards.json").read_text(encoding="utf-8")).values()
    assert known["runs"] == 1


def test_a_run_that_will_not_fit_is_refused_before_its_first_step(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = dataclasses.replace(find_card("h100"), memory=parse_size("60MiB"), context=parse_size("50MiB"))
    monkeypatch.setattr(background, "local_card", lambda: card)
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as exit_:
        main(["run", str(recipe), "--out", str(tmp_path / "run"), "--no-third-party"])
    assert exit_.value.code == 2
    assert "would not fit" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
