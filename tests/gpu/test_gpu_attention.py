"""On a GPU: which attention ran is in the record, whatever strategies do; and rows that cuDNN fails have gradients."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fitune.compose.cudnn_guard import attention
from fitune.compose.flash_attention import taken
from fitune.runs.layout import MEMORY, read_json
from fitune.runs.record import read_record
from fitune.testing import write_recipe
from fitune_plugins.speed.flash_attention import installed
from support.tiny import losses, train

pytestmark = pytest.mark.gpu

PACKED = 'data.stage=[{use="chat"}, {use="tokenize"}, {use="pack"}]'
FASTEST = 'memory.strategy=[{use="fast-layers"}, {use="cuda-graphs"}]'
CHECKPOINTS = 'memory.strategy=[{use="fast-layers"}, {use="gradient-checkpointing"}, {use="offload-checkpoints"}]'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe", {"model": {"dtype": "bfloat16"}})


def _ran(recipe: Path, place: Path, *overrides: str) -> tuple[str, ...]:
    train(recipe, place, "train.steps=2", *overrides)
    record = read_record(place)
    assert record is not None
    return record.attention


@pytest.mark.parametrize("strategies", ["memory.strategy=[]", FASTEST, CHECKPOINTS], ids=["plain", "graphs", "offload"])
def test_the_record_names_the_kernel(recipe: Path, tmp_path: Path, strategies: str) -> None:
    dense = _ran(recipe, tmp_path / "dense", strategies)
    assert len(dense) == 1
    assert dense[0] in ("cuDNN", "flash attention (FA2)", "memory-efficient attention", "math")
    if torch.cuda.get_device_capability() == (9, 0):
        assert dense == ("cuDNN",)
    if torch.cuda.get_device_capability() >= (8, 0):
        assert _ran(recipe, tmp_path / "packed", strategies, PACKED) == ("variable-length flash attention (FA2)",)


def test_a_deterministic_run_has_another(recipe: Path, tmp_path: Path) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no flash attention here")
    assert _ran(recipe, tmp_path / "run", "deterministic=true") == ("flash attention (FA2)",)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("tokens", [192, 704])
def test_gradients_under_a_mask_are_numbers(tokens: int) -> None:
    """Scores of -120 everywhere, as in https://github.com/pytorch/pytorch/issues/196678."""
    size = 64
    query, key, value = (torch.randn(1, 1, tokens, size, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    with torch.no_grad():
        query, key = query * 0.1, key * 0.1
        query[..., 0], key[..., 0] = 1.0, -120 * math.sqrt(size)
    leaves = query, key, value = [tensor.requires_grad_() for tensor in (query, key, value)]
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device="cuda").tril()[None, None]
    out, _ = attention(torch.nn.Module(), query, key, value, mask)
    out.backward(torch.randn_like(out))
    assert all(leaf.grad is not None and bool(torch.isfinite(leaf.grad).all()) for leaf in leaves)


@pytest.mark.parametrize("name", ["FA3", "FA4"])
def test_packed_rows_by_an_installed_flash_attention(recipe: Path, tmp_path: Path, name: str) -> None:
    capability = torch.cuda.get_device_capability()
    if name not in installed() or taken((name,), capability) != name:
        pytest.skip(f"{name} is not installed, or not for this card")
    strategy = f'memory.strategy=[{{use="flash-attention", implementation="{name}"}}]'
    assert _ran(recipe, tmp_path / "run", PACKED, strategy) == (f"variable-length flash attention ({name})",)
    _ran(recipe, tmp_path / "own", PACKED)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "own"), rel=0.01)
    forecast, measured = (read_json(tmp_path / "run" / MEMORY)[key]["allocated"] for key in ("forecast", "measured"))
    assert measured == pytest.approx(forecast, rel=0.001)
