"""Forecasts without bitsandbytes: a process that has none forecasts to the byte what one that has it does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fitune.cli.main import main
from fitune.plugin.options import toml_text
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune_plugins.loaders.bitsandbytes_layers import check_bitsandbytes
from support.quantized import write

WITHOUT = """
import importlib.metadata, json, sys

known = importlib.metadata.version

def version(name):
    if name == "bitsandbytes":
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)

importlib.metadata.version = version
sys.modules["bitsandbytes"] = None

from fitune.cli.main import main

for arguments in json.load(sys.stdin):
    try:
        main([*arguments, "--no-third-party"])
    except SystemExit as ended:
        print(json.dumps({"code": ended.code}))
    print("----")
"""
"""A program that has `ft` do one thing after the other as if bitsandbytes was not installed."""

STRATEGIES: dict[str, list[dict[str, object]]] = {
    "nf4 and AdamW in 8 bits": [
        {"use": "nf4", "double_quantization": True},
        {"use": "adamw-8bit", "paged": True},
        {"use": "gradient-checkpointing"},
    ],
    "nf4 in fast layers": [{"use": "nf4"}, {"use": "fast-layers"}],
    "AdamW in 8 bits": [{"use": "adamw-8bit"}],
}
CHECKPOINTS = ("fp4", "double", "8bit")


def without(*commands: list[str]) -> list[tuple[str, str]]:
    """What these commands print where it is not installed: (output, all errors)."""
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT], input=json.dumps(commands), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return [(part.strip(), ended.stderr) for part in ended.stdout.split("----\n")[:-1]]


def recipe(directory: Path) -> Path:
    """Of a model whose adapter has tensors of more than 4096 elements."""
    return write_recipe(directory, {"adapter": {"use": "lora", "targets": "all-linear", "r": 64, "dropout": 0.1}})


@pytest.fixture
def commands(tmp_path: Path) -> list[list[str]]:
    path, card = str(recipe(tmp_path / "plain")), ("--gpu", "a10g", "--json")
    uses = [f"memory.strategy={toml_text(one)}" for one in STRATEGIES.values()]
    plain = [["plan", path, *card, "--set", one] for one in uses]
    return [*plain, *(["plan", str(write(tmp_path / kind, kind)), *card] for kind in CHECKPOINTS)]


def test_a_forecast_is_the_same(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    found = without(*commands)
    assert len(found) == len(STRATEGIES) + len(CHECKPOINTS)
    for command, (text, errors) in zip(commands, found, strict=True):
        capsys.readouterr()
        main([*command, "--no-third-party"])
        there = json.loads(capsys.readouterr().out)
        assert text.startswith("{"), errors
        assert json.loads(text) == there, errors
        assert there["allocated"] > 0


def test_what_computes_says_to_install_it(tmp_path: Path) -> None:
    path, eight = recipe(tmp_path / "plain"), write(tmp_path / "8bit", "8bit")
    asked = [[name, str(path), "--set", 'memory.strategy=[{use="nf4"}]'] for name in ("run", "check")]
    found = without(*asked, ["run", str(eight)])
    assert [json.loads(text.splitlines()[-1])["code"] for text, _ in found] == [2, 2, 2]
    errors = found[0][1]
    assert errors.count("is not installed. Install it: pip install 'fitune[bitsandbytes]'") == 3
    assert (
        "the checkpoint is quantised by bitsandbytes, 8 bits, and the package bitsandbytes is not installed" in errors
    )


def test_what_is_missing_is_asked_for_by_whoever_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", type("Standing", (), {"STANDS_IN": True}))
    (problem,) = check_bitsandbytes(None)
    assert (problem.what, problem.fix) == (
        "the package bitsandbytes was installed after a forecast was made without it",
        "Start Python anew",
    )
    registry = open_registry()
    registry.forecasts = True
    assert read_recipe(recipe(tmp_path / "plain"), registry, ['memory.strategy=[{use="nf4"}]']).strategies
