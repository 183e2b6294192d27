"""Optimizers beside AdamW: each is what its paper says, is forecast event by event, and goes on to the bit."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fitune import ModelError, OptimizerSettings, RecipeError
from fitune.plugin.model import decay_groups
from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import assert_strategy, open_registry
from fitune.testing.contracts.trial import Trial, must_go_on_to_the_bit
from fitune.train.loop import train as steps_of
from fitune_plugins.memory import lion_optimizer
from fitune_plugins.memory.lion import Lion, LionOptions
from support.architectures import recipe_of
from support.nothing import nothing
from support.real_steps import both_logs, events
from support.tiny import adapter, losses, metrics, parts_of, train

CASES = {
    "adafactor": '{use="adafactor"}',
    "lion": '{use="lion"}',
    "lion in bfloat16": '{use="lion", state="bfloat16"}',
    "muon": '{use="muon"}',
    "schedule-free": '{use="schedule-free"}',
}
CONSTANT = 'train.schedule="constant"'
SETTINGS = OptimizerSettings(learning_rate=1e-2, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-7, fused=False)


def _strategy(case: str) -> str:
    return f"memory.strategy=[{CASES[case]}]"


def _recipe(directory: Path, case: str, **how: Any) -> Recipe:
    recipe_of(directory, "llama", length=32, **how)
    return read_recipe(directory / "recipe.toml", open_registry(), [_strategy(case), CONSTANT])


def _parameters() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in ((24, 16), (16, 40), (16,))]


def _steps(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], number: int = 5) -> None:
    random = torch.Generator().manual_seed(1)
    for _ in range(number):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=random)
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "options"), [("adafactor", {}), ("lion", {}), ("lion", {"state": "bfloat16"}), ("muon", {})]
)
def test_contracts(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    assert_strategy(nothing(), name, tmp_path, options)


def test_contract_of_schedule_free(tmp_path: Path) -> None:
    """Its recipe needs a schedule, which `assert_strategy` has no place for."""
    changes = {"memory": {"strategy": [{"use": "schedule-free"}]}, "train": {"steps": 4, "schedule": "constant"}}
    trial = Trial(plugin=nothing(), directory=tmp_path, changes=changes)
    must_go_on_to_the_bit(trial)
    trial.forecast()


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_what_is_traced_is_what_is_done(tmp_path: Path, case: str, lora: bool) -> None:
    """Operation by operation, with an evaluation behind the steps."""
    forecast, real = both_logs(_recipe(tmp_path, case, lora=lora, evaluates=True))
    if case == "adafactor":  # which makes its state on the host
        assert [e for e in events(forecast) if e[2] > 4096] == [e for e in events(real) if e[2] > 4096]
    else:
        assert events(forecast) == events(real)


@pytest.mark.parametrize("case", CASES)
def test_a_run_learns(recipe_path: Path, tmp_path: Path, case: str) -> None:
    rate = "train.learning_rate=0.01"
    train(
        recipe_path, tmp_path / "run", _strategy(case), CONSTANT, rate, "train.steps=8", 'adapter.targets="all-linear"'
    )
    found = losses(tmp_path / "run")
    assert found[-1] < found[0] - 0.1


@pytest.mark.parametrize("together", [4 * 2**20, 100])
def test_lion_is_that_of_its_paper(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    """With tensors together, and with a few rows at a time."""
    monkeypatch.setattr(lion_optimizer, "TOGETHER", together)
    found, expected = _parameters(), _parameters()
    _steps(Lion(LionOptions(beta2=0.9)).make_optimizer(found, SETTINGS), found)
    random, means = torch.Generator().manual_seed(1), [torch.zeros_like(p) for p in expected]
    for _ in range(5):
        for parameter, mean in zip(expected, means, strict=True):
            gradient = torch.randn(parameter.shape, generator=random)
            parameter.data *= 1 - 1e-2 * (0.1 if parameter.ndim > 1 else 0)
            parameter.data -= 1e-2 * (0.9 * mean + 0.1 * gradient).sign()
            mean.copy_(0.9 * mean + 0.1 * gradient)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("state", "size"), [("float32", 4), ("bfloat16", 2)])
def test_lion_keeps_one_moment(recipe_path: Path, state: str, size: int) -> None:
    parts = parts_of(recipe_path, f'memory.strategy=[{{use="lion", state="{state}"}}]', "train.steps=1")
    list(steps_of(parts))
    for master in parts.step.trainables.masters:
        (mean,) = parts.step.optimizer.state[master].values()
        assert mean.nbytes == size * master.numel()


def test_muon_is_torchs_and_adamw_torchs(recipe_path: Path) -> None:
    """Of full fine-tuning: layers' matrices are Muon's, the embeddings, which are the head too, and norms AdamW's."""
    parts = parts_of(recipe_path, 'adapter={use="none"}', 'memory.strategy=[{use="muon"}]', "train.weight_decay=0.1")
    named = [(n, p) for n, p in parts.run.model.named_parameters() if p.requires_grad]
    masters = parts.step.trainables.masters
    by_muon = {id(p) for g in parts.step.optimizer.param_groups if "momentum" in g for p in g["params"]}
    names = [name for (name, _), master in zip(named, masters, strict=True) if id(master) in by_muon]
    assert names == [name for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    assert parts.run.told == (f"muon: {len(names)} matrices by Muon, {len(named) - len(names)} other tensors by AdamW",)

    clones = [nn.Parameter(m.detach().clone()) for m in masters]
    matrices = [c for c, m in zip(clones, masters, strict=True) if id(m) in by_muon]
    others = [c for c, m in zip(clones, masters, strict=True) if id(m) not in by_muon]
    rate = parts.run.recipe.train.learning_rate
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(decay_groups(others), lr=rate, weight_decay=0.1)
    random = torch.Generator().manual_seed(1)
    for _ in range(2):
        for master, clone in zip(masters, clones, strict=True):
            master.grad = clone.grad = torch.randn(master.shape, generator=random)
        for optimizer in (parts.step.optimizer, muon, adamw):
            optimizer.step()
    assert all(torch.equal(m, c) for m, c in zip(masters, clones, strict=True))


def test_muon_and_adafactor_refuse_parts_of_matrices(tmp_path: Path) -> None:
    for name in ("muon", "adafactor"):
        recipe_of(tmp_path / name, "llama", lora=False, length=32)
        overrides = [f'memory.strategy=[{{use="{name}"}}, {{use="fsdp"}}]']
        recipe = read_recipe(tmp_path / name / "recipe.toml", open_registry(), overrides)
        with pytest.raises(ModelError, match=f'"{name}" works on whole matrices'):
            both_logs(recipe, 2)


@pytest.mark.parametrize(
    ("case", "override", "said"),
    [
        ("lion", "train.beta1=0.8", '"beta1" is AdamW\'s, and the optimizer of "lion" does not have it'),
        ("adafactor", "train.epsilon=1e-6", '"epsilon" is AdamW\'s'),
        ("schedule-free", 'train.schedule="cosine"', '"schedule-free" averages weights in place of a schedule'),
        ("schedule-free", "train.beta1=0", "trains between the newest weights and their average"),
    ],
)
def test_what_has_no_effect_is_refused(recipe_path: Path, case: str, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_recipe(recipe_path, open_registry(), [_strategy(case), CONSTANT, override])


def test_without_schedulefree(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if "schedulef" in name else found(name))
    with pytest.raises(RecipeError, match=r"pip install 'fitune\[schedule-free\]'"):
        read_recipe(recipe_path, open_registry(), [_strategy("schedule-free"), CONSTANT])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_average_is_evaluated_and_saved(recipe_path: Path, tmp_path: Path, dtype: str) -> None:
    held = ["eval.every=2", f'eval.source=[{{use="jsonl", path="{recipe_path.parent / "data.jsonl"}"}}]']
    how = [_strategy("schedule-free"), CONSTANT, "train.steps=4", "train.learning_rate=0.05", f'model.dtype="{dtype}"']
    train(recipe_path, tmp_path / "run", *how, *held)

    parts = parts_of(recipe_path, *how)
    list(steps_of(parts))
    trained = [p.detach().clone() for p in parts.step.trainables.masters]
    optimizer = parts.step.optimizer
    with parts.step.averaged():
        average = [p.detach().clone() for p in parts.step.trainables.parameters]
    for master, before in zip(parts.step.trainables.masters, trained, strict=True):
        assert torch.equal(master, before)
    expected = [
        before.lerp(optimizer.state[master]["z"], 1 - 1 / 0.9).to(mean.dtype)
        for before, master, mean in zip(trained, parts.step.trainables.masters, average, strict=True)
    ]
    assert all(torch.equal(one, other) for one, other in zip(average, expected, strict=True))
    assert not all(torch.equal(one, other.to(one.dtype)) for one, other in zip(average, trained, strict=True))

    saved = adapter(tmp_path / "run")
    names = [n for n, p in parts.run.model.named_parameters() if p.requires_grad]
    for name, mean in zip(names, average, strict=True):
        assert torch.equal(saved[name.replace(".default", "")], mean)
    train(recipe_path, tmp_path / "bare", *how)  # evaluations leave no trace
    assert losses(tmp_path / "bare") == losses(tmp_path / "run")
    assert len({line["loss"] for line in metrics(tmp_path / "run", "evaluation")}) == 3


def test_few_launches_only_while_little_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    from fitune_plugins.memory import optimizers

    monkeypatch.setattr(optimizers, "FEW", 24 * 16 + 16 * 40 + 16)
    assert optimizers.in_few_launches(_parameters())
    assert not optimizers.in_few_launches([*_parameters(), nn.Parameter(torch.zeros(1))])
