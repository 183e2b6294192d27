"""A run that fitune 0.1 itself made, stopped after three of six steps: it goes on as it would have.

`tests/golden/run-0.1.zip` was made by commit 14e7eaf (torch 2.13, transformers 5.23, peft 0.21.2): the tiny recipe with
its model and data, the stopped run, and what the same run had trained where nobody stopped it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.after_runs import ft
from support.paths import TESTS
from support.resuming import go, weights
from support.tiny import losses

ARCHIVE = TESTS / "golden" / "run-0.1.zip"
MADE_IN = "/home/user/tiny"
"""Where it was made; its recipe names files there."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The archive's files, and paths that lead to them."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    for name in ("identity.json", "recipe.toml"):
        file = tmp_path / "stopped" / name
        file.write_text(file.read_text(encoding="utf-8").replace(MADE_IN, str(tmp_path)), encoding="utf-8")
    return tmp_path


def test_it_goes_on_as_it_would_have(home: Path) -> None:
    """Equal to the bit where it was made; elsewhere another release of torch may round otherwise."""
    run = home / "stopped"
    before = losses(run)
    go(run)
    whole = list(load_file(home / "whole" / "adapter_model.safetensors").values())
    for found, wanted in zip(weights(run), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    lines = (home / "whole" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    wanted_losses = [line["loss"] for line in map(json.loads, lines) if line["event"] == "step"]
    assert losses(run)[: len(before)] == before
    assert losses(run)[-1] == pytest.approx(wanted_losses[-1], rel=1e-5)


def test_it_is_listed_and_asked(home: Path) -> None:
    listed, _ = ft("runs", home)
    (row,) = (line.split() for line in listed.splitlines() if "stopped" in line)
    assert "3/6" in row
    go(home / "stopped")
    out, _ = ft("generate", home / "stopped", "--prompt", "Count to 3.", "--max-new-tokens", 4)
    assert out.endswith("\n")
