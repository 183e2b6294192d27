"""`bfloat16-adamw` keeps the contract of strategies, is AdamW but for rounding, and takes what it says."""

from pathlib import Path
from typing import Any

import fitune_bfloat16_adamw
import pytest
import torch
from fitune_bfloat16_adamw import BFloat16AdamW, BFloat16AdamWOptions

from fitune import OptimizerSettings
from fitune.testing import assert_strategy

SETTINGS = OptimizerSettings(learning_rate=0.01, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8, fused=False)


def trained(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> torch.Tensor:
    """The weight after ten steps of a least-squares problem."""
    torch.manual_seed(0)
    for _ in range(10):
        optimizer.zero_grad()
        (torch.randn(8, 16) @ weight).square().mean().backward()
        optimizer.step()
    return weight.detach().clone()


def start() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.linspace(-1, 1, 64).view(16, 4))


@pytest.mark.parametrize("options", [{}, {"nesterov": True}])
def test_it_keeps_its_contract(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_strategy(fitune_bfloat16_adamw, "bfloat16-adamw", tmp_path, options)


def test_it_is_adamw_but_for_rounding() -> None:
    one, other = start(), start()
    made = BFloat16AdamW(BFloat16AdamWOptions()).make_optimizer([one], SETTINGS)
    found = trained(made, one)
    wanted = trained(torch.optim.AdamW([other], lr=0.01, weight_decay=0.1), other)
    assert 0 < (found - wanted).abs().max() < 1e-3


def test_its_state_is_six_bytes_a_parameter_also_once_it_was_loaded() -> None:
    weight = start()
    made = BFloat16AdamW(BFloat16AdamWOptions()).make_optimizer([weight], SETTINGS)
    trained(made, weight)
    made.load_state_dict(made.state_dict())
    state = made.state[weight]
    assert sum(t.nbytes for t in state.values() if isinstance(t, torch.Tensor)) == 6 * weight.numel()
