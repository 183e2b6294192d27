"""On a GPU: a rehearsal restores to the bit, and a run that is given less memory in its midst goes on with less."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fitune import Recovery, Run, StepReport, hookimpl
from fitune.checkpoint.module_state import module_state
from fitune.checkpoint.state import capture, restore
from fitune.cli.main import main
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe, write_tiny_model
from fitune.train.loop import train as steps_of
from fitune.train.rehearsal import rehearse
from fitune.train.run import run
from support.states import CASES, assert_same, values_of
from support.tiny import losses, losses_of, metrics, parts_of, train
from support.wide_model import write_wide_model

pytestmark = pytest.mark.gpu

MIB = 2**20
LEFT = 1800 * MIB
"""Bytes that are left to a run which was forecast to take 2874 MiB, and 1116 MiB with every layer checkpointed."""


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A recipe whose activations are most of its memory: rows of 470 tokens, 64 at a time, in 8 layers."""
    path = write_recipe(
        tmp_path / "recipe",
        {
            "adapter": {"use": "lora", "dropout": 0.1},
            "memory": {"strategy": [{"use": "chunked-loss", "tokens": 64}, {"use": "expandable-segments"}]},
            "train": {"micro_batch": 64, "length": 512, "steps": 5},
        },
    )
    write_tiny_model(path.parent / "model", layers=8)
    row = {"messages": [{"role": "user", "content": "?" * 400}, {"role": "assistant", "content": "!" * 50}]}
    (path.parent / "data.jsonl").write_text((json.dumps(row) + "\n") * 192, encoding="utf-8")
    return path


@pytest.fixture
def whole_card() -> Iterator[None]:
    """The next test has the whole card again."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("case", CASES)
def test_a_rehearsal_restores_to_the_bit(recipe_path: Path, case: str) -> None:
    parts = parts_of(recipe_path, *CASES[case])
    parts.run.directory.mkdir()
    before, generator = values_of(parts), torch.cuda.get_rng_state()
    report = rehearse(parts, capture(parts, 0, module_state(parts.run.model)))
    assert_same(values_of(parts), before)
    assert torch.equal(torch.cuda.get_rng_state(), generator)
    assert report.memory.kind == "gpu"
    after = losses_of(steps_of(parts))
    assert after == pytest.approx(losses_of(steps_of(parts_of(recipe_path, *CASES[case]))), rel=1e-4)


def test_a_run_is_rehearsed(recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", str(recipe_path), "--out", str(tmp_path / "run"), "--no-third-party"])
    assert "rehearsed the longest batch (2 x " in capsys.readouterr().out
    (line,) = metrics(tmp_path / "run", "rehearsal")
    assert 0 < line["gpu_memory_peak"] <= line["gpu_memory_reserved_peak"]
    # What was rehearsed is the most that the run takes.
    assert metrics(tmp_path / "run")[-1]["gpu_memory_peak"] <= 1.02 * line["gpu_memory_peak"]


class Thief:
    """A plugin that takes memory away after the second step."""

    def __init__(self) -> None:
        self.recoveries: list[Recovery] = []

    @hookimpl
    def ft_step_done(self, run: Run, step: StepReport) -> None:
        """Leave less to this process, once."""
        if step.step == 2 and not self.recoveries:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(LEFT / torch.cuda.get_device_properties(0).total_memory)

    @hookimpl
    def ft_recovered(self, recovery: Recovery) -> None:
        """Keep it."""
        self.recoveries.append(recovery)


def test_less_memory_in_mid_run_costs_no_number(wide: Path, tmp_path: Path, whole_card: None) -> None:
    """By the search itself, from torch's own message."""
    train(wide, tmp_path / "plain")
    registry, thief = open_registry(), Thief()
    registry.register(thief, "thief")
    (tmp_path / "run").mkdir()
    gc.collect()  # what is left of the run before, which its cycles keep
    torch.cuda.empty_cache()
    run(read_recipe(wide, registry), registry, tmp_path / "run")
    (recovery,) = thief.recoveries
    assert (recovery.step, recovery.phase) == (2, "step")
    assert set(recovery.before) <= set(recovery.after)
    assert len(recovery.after) > len(recovery.before)
    assert recovery.forecast is not None
    assert recovery.forecast.reserved < LEFT
    assert torch.cuda.max_memory_reserved() <= LEFT
    # But for rounding: what it adds may compute layers by other kernels, and three steps at this rate make more of it.
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_paged_state_is_paged_again(tmp_path: Path) -> None:
    """bitsandbytes itself would load it on the card."""
    path = write_recipe(tmp_path / "recipe", {"adapter": {"use": "none"}})
    write_wide_model(path.parent / "model")
    strategy = 'memory.strategy=[{use="adamw-8bit", paged=true}]'
    parts, other = parts_of(path, strategy), parts_of(path, strategy)
    loaded = module_state(parts.run.model)
    list(steps_of(parts))
    restore(other, capture(parts, 3, loaded))
    assert_same(values_of(other), values_of(parts))
    pages = [
        [getattr(state["state1"], "is_paged", False) for state in one.step.optimizer.state.values()]
        for one in (parts, other)
    ]
    assert pages[0] == pages[1]
    assert any(pages[0])
