"""Memory that runs out beside `step-in-backward`: a step that has changed no weight is undone, another is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fitune import RunError
from fitune.testing import write_recipe
from fitune_plugins.memory.adamw_in_backward import AdamWInBackward
from support.resuming import curve
from support.running_out import TRAP, Traps, fail, run_trapped


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe with dropout, the trap and the strategy."""
    changes = {
        "adapter": {"use": "lora", "dropout": 0.3},
        "memory": {"strategy": [TRAP, {"use": "step-in-backward"}]},
        "train": {"steps": 4, "max_grad_norm": 0.0},
    }
    return write_recipe(tmp_path / "recipe", changes)


def test_before_the_first_gradient_a_run_goes_on(recipe: Path, tmp_path: Path) -> None:
    run_trapped(recipe, tmp_path / "plain", Traps())
    traps = Traps(("forward", 3))
    run_trapped(recipe, tmp_path / "run", traps)
    assert [one.step for one in traps.recoveries] == [2]
    assert curve(tmp_path / "run") == curve(tmp_path / "plain")


def test_state_that_was_only_begun_is_dropped(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the first moment was there, that of the second was not."""
    run_trapped(recipe, tmp_path / "plain", Traps())
    take, calls = AdamWInBackward.take, []

    def short(self: Any, master: Any, gradient: Any) -> None:
        calls.append(master.shape)
        if len(calls) == 1:
            self._optimizer.state[master].update(step=torch.zeros(()), exp_avg=torch.zeros_like(master))
            fail()
        take(self, master, gradient)

    monkeypatch.setattr(AdamWInBackward, "take", short)
    traps = Traps()
    run_trapped(recipe, tmp_path / "run", traps)
    assert [one.step for one in traps.recoveries] == [0]
    assert curve(tmp_path / "run") == curve(tmp_path / "plain")


def test_behind_the_first_gradient_it_cannot(recipe: Path, tmp_path: Path) -> None:
    traps = Traps(("backward", 3))  # of the first layer, whose gradient comes last
    with pytest.raises(RunError, match=r"(?s)out of GPU memory in step 3.*in the midst of step 3"):
        run_trapped(recipe, tmp_path / "run", traps)
    assert not traps.recoveries
