"""Rows of which cuDNN may give no gradient are computed by another kernel, in a run and in its forecast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fitune.compose import cudnn_guard
from fitune.compose.cudnn_guard import attention
from fitune.compose.model import loaded
from fitune.memory.trace import attention as traced
from fitune.memory.trace import functional
from fitune.memory.trace.patches import as_on_card
from support.packed import tiny

WINDOW = 100


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Those that an H100 takes, call by call."""
    seen: list[str] = []
    choose = traced.choose

    def noted(*given: Any, **named: Any) -> str:
        seen.append(choose(*given, **named))
        return seen[-1]

    monkeypatch.setattr(functional, "choose", noted)
    with as_on_card((9, 0), (2, 13)):
        yield seen


def _heads(tokens: int, *, trains: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query, key, value = (
        torch.empty(1, 4, tokens, 64, device="meta", dtype=torch.bfloat16, requires_grad=trains) for _ in range(3)
    )
    return query, key, value, torch.empty(1, 1, tokens, tokens, device="meta", dtype=torch.bool)


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [(64, "efficient"), (192, "efficient"), (704, "efficient"), (128, "cudnn"), (640, "cudnn"), (100, "cudnn")],
)
def test_lengths_of_64_modulo_128_with_a_mask_are_not_cudnns(kernels: list[str], tokens: int, wanted: str) -> None:
    module = torch.nn.Module()
    query, key, value, mask = _heads(tokens)
    attention(module, query, key, value, mask)
    attention(module, query, key, value, None, is_causal=True)
    with torch.no_grad():
        attention(module, query, key, value, mask)
    assert kernels == [wanted, "cudnn", "cudnn"]
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(("tokens", "wanted"), [(192, {"efficient"}), (128, {"cudnn"}), (64, {"cudnn"})])
def test_of_a_model_with_a_window(kernels: list[str], tokens: int, wanted: set[str]) -> None:
    """Rows longer than the window have a mask."""
    with torch.device("meta"):
        found: Any = tiny("mistral", sliding_window=WINDOW)
        model = loaded((), found.to(device="meta", dtype=torch.bfloat16))
    model.train()
    model(input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"))
    assert set(kernels) == wanted


def test_it_computes_what_transformers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn_guard.switch_on()
    assert AttentionInterface()["sdpa"] is attention
    monkeypatch.setattr(cudnn_guard, "may_fail", lambda query, key, mask: mask is not None)
    query, key, value = (torch.randn(2, 4, 64, 16, requires_grad=True) for _ in range(3))
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
    found, _ = attention(torch.nn.Module(), query, key, value, mask)
    plain, _ = sdpa_attention_forward(torch.nn.Module(), query, key, value, mask)
    torch.testing.assert_close(found, plain)
    assert found.shape == (2, 64, 4, 16)
    assert F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).shape == found.shape
