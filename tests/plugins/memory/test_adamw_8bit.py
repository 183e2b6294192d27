"""`adamw-8bit` is AdamW but for the bits of its state."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch
from bitsandbytes.optim.adamw import AdamW8bit
from torch import nn

from fitune import OptimizerSettings, Plan, RecipeError, RunError
from fitune.plugin.model import decay_groups
from fitune.train.loop import train as steps_of
from fitune_plugins.memory import adamw_8bit
from fitune_plugins.memory.adamw_8bit import AdamW8bitOptions
from fitune_plugins.memory.paged_adamw import PagedAdamW8bit
from support.tiny import losses, parts_of, train

EIGHT_BIT = 'memory.strategy=[{use="adamw-8bit"}]'
FULL = 'adapter={use="none"}'
SETTINGS = OptimizerSettings(learning_rate=1e-3, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-7, fused=False)


def _strategy(*, paged: bool = False) -> adamw_8bit.AdamW8bit:
    return adamw_8bit.AdamW8bit(AdamW8bitOptions(paged=paged))


def _parameters() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in ((64, 64), (8, 8), (4096,), (8,))]


def _steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], number: int) -> None:
    random = torch.Generator().manual_seed(1)
    for _ in range(number):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=random)
        optimizer.step()


def test_the_settings_are_the_recipes() -> None:
    optimizer = _strategy().make_optimizer(_parameters(), SETTINGS)
    assert type(optimizer) is AdamW8bit
    assert isinstance(_strategy(paged=True).make_optimizer(_parameters(), SETTINGS), PagedAdamW8bit)
    for group, decay, shapes in zip(
        optimizer.param_groups, (0.1, 0.0), ([(64, 64), (8, 8)], [(4096,), (8,)]), strict=True
    ):
        assert [tuple(p.shape) for p in group["params"]] == shapes
        found = (group["lr"], group["betas"], group["eps"], group["weight_decay"])
        assert found == (1e-3, (0.8, 0.95), 1e-7, decay)


def test_updates_are_those_of_adamw() -> None:
    """Small tensors' to rounding, for their state has 32 bits; large ones' nearly, after ten steps of 1e-3."""
    found, expected = _parameters(), _parameters()
    _steps(_strategy().make_optimizer(found, SETTINGS), found, 10)
    plain = torch.optim.AdamW(decay_groups(expected), lr=1e-3, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.1)
    _steps(plain, expected, 10)
    for one, other, start in zip(found, expected, _parameters(), strict=True):
        moved = float((other - start).detach().norm())
        assert float((one - other).detach().norm()) < (0.1 if one.numel() >= 4096 else 1e-5) * moved


def test_the_state_has_8_bits_where_tensors_are_large(recipe_path: Path) -> None:
    parts = parts_of(recipe_path, EIGHT_BIT, FULL, "train.steps=1")
    list(steps_of(parts))
    optimizer, masters = parts.step.optimizer, parts.step.trainables.masters
    found = {p.numel() >= 4096: optimizer.state[p]["state1"].dtype for p in masters}
    assert found == {True: torch.uint8, False: torch.float32}
    for parameter in masters:
        state = optimizer.state[parameter]
        assert state["state1"].numel() == state["state2"].numel() == parameter.numel()
        if parameter.numel() >= 4096:
            assert state["absmax1"].numel() == -(-parameter.numel() // 256)


@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_goes_as_with_adamw(recipe_path: Path, tmp_path: Path, adapter: str, dtype: str) -> None:
    overrides = [f'adapter={{use="{adapter}"}}', f'model.dtype="{dtype}"', "train.steps=8"]
    train(recipe_path, tmp_path / "run", EIGHT_BIT, *overrides)
    train(recipe_path, tmp_path / "plain", *overrides)
    found, expected = losses(tmp_path / "run"), losses(tmp_path / "plain")
    assert found == pytest.approx(expected, rel=0.05)
    assert found[-1] < found[0] - 0.1
    if adapter == "none":
        assert found != expected  # LoRA's matrices of a tiny model are too small for 8 bits


def test_paging_without_a_gpu_is_refused(recipe_path: Path) -> None:
    with pytest.raises(RunError, match="adamw-8bit: paged = true needs a GPU, and there is none here"):
        _strategy(paged=True).plan(Plan(gpu=False))
    assert _strategy(paged=True).plan(Plan(gpu=True)) == Plan(gpu=True)
    assert _strategy().plan(Plan(gpu=False)) == Plan(gpu=False)
    (recipe_path.parent / "model" / "model.safetensors").unlink()  # no weight is read before it is said
    if not torch.cuda.is_available():
        with pytest.raises(RunError, match="needs a GPU"):
            parts_of(recipe_path, 'memory.strategy=[{use="adamw-8bit", paged=true}]')


@pytest.mark.parametrize("paged", [False, True])
def test_shapes_alone(paged: bool) -> None:
    """What a forecast sees: the same state, without values; pages of the large one are not the allocator's."""
    shapes = [*(p.shape for p in _parameters()), (400, 300)]
    parameters = [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    optimizer = _strategy(paged=paged).make_optimizer(parameters, SETTINGS)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    states = [[optimizer.state[p][name] for name in ("state1", "state2")] for p in parameters]
    assert [sum(s.nbytes for s in both) for both in states] == [2 * 4096, 8 * 64, 2 * 4096, 8 * 8, 2 * 120_000]
    on_host = [both[0].device.type == both[1].device.type == "cpu" for both in states]
    assert on_host == [False, False, False, False, paged]
    of_large = states[-1][0].untyped_storage().nbytes()
    assert of_large == (1 if paged else 120_000)
    assert optimizer.state[parameters[-1]]["absmax1"].device.type == "meta"


def test_without_bitsandbytes(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def find(name: str) -> str:
        return "0.49.2" if name == "bitsandbytes" else installed(name)

    monkeypatch.setattr(importlib.metadata, "version", find)
    with pytest.raises(RecipeError, match=r"bitsandbytes 0\.49\.2 is too old"):
        parts_of(recipe_path, EIGHT_BIT)
