"""A GPU without triton, which torch brings along on Linux alone: layers and loss are computed by torch."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from fitune_plugins.memory import fused_cross_entropy
from fitune_plugins.speed.fast_layers import _why_not
from fitune_plugins.speed.kernels.library import launches_on

CUDA = torch.device("cuda")


@pytest.fixture(params=[True, False], ids=["with triton", "without"])
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether triton is installed."""
    there = bool(request.param)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return there


def test_kernels_are_launched_where_it_is(there: bool) -> None:
    assert launches_on(CUDA) is there
    assert launches_on(torch.device("cpu"))
    assert launches_on(torch.device("meta"))  # a forecast is of a card that has it


@pytest.mark.parametrize("version", [None, "13.0"])
def test_a_forecast_on_a_machine_of_that_kind_is_of_such_a_run(
    there: bool, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    assert launches_on(torch.device("meta")) is (there or version is None)
    assert launches_on(torch.device("cpu"))


def test_layers_and_loss_are_left_to_torch_without_it(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cast(Any, SimpleNamespace(device=CUDA, dtype=torch.bfloat16))
    assert _why_not(model, None) == ("" if there else "its kernels need triton, which is not installed")
    head = nn.Linear(4, 8, bias=False).requires_grad_(False)
    monkeypatch.setattr(fused_cross_entropy, "launches_on", lambda device: launches_on(CUDA))
    assert fused_cross_entropy.suits(head) is there
