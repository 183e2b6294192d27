"""Weights that another process reads take no memory in those that wait for them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fitune.compose.shards import give_room

GIB = 2**30


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_no_memory_is_taken_until_something_is_written() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8192, 32768, dtype=torch.bfloat16), nn.Linear(8, 8))
    before = _resident()
    give_room(model)
    assert _resident() - before < GIB // 16, "of a weight of half a GiB"
    weight = model.get_parameter("0.weight").data
    weight[0] = 1
    assert weight[0].sum() == 8192
    assert not weight[1:].any()


def test_tensors_are_what_they_were() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Embedding(0, 4))
        model.register_buffer("turned", torch.empty(4, 2, dtype=torch.int64).t())
    model[1].weight = model[0].weight
    model[0].weight.requires_grad_(False)
    give_room(model)
    assert model[1].weight is model[0].weight
    assert not model[0].weight.requires_grad
    assert model[2].weight.shape == (0, 4)
    turned = model.get_buffer("turned")
    assert turned.dtype == torch.int64
    assert turned.stride() == (1, 2)
    assert not turned.any()
