"""A run that goes on does what its recipe says: changed settings hold, and what cannot hold is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitune.errors import RunError
from fitune.testing import write_recipe
from support.resuming import go, stop, weights
from support.tiny import metrics


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Eight steps, with checkpoints after each second one."""
    train = {"steps": 8, "learning_rate": 0.01, "schedule": "constant"}
    return write_recipe(tmp_path / "recipe", {"train": train, "checkpoint": {"steps": 2, "keep": 9}})


def rates(directory: Path) -> list[float]:
    """The learning rate of each step."""
    return [line["learning_rate"] for line in metrics(directory)]


def test_a_changed_learning_rate_holds_from_the_next_step(recipe: Path, tmp_path: Path) -> None:
    stop(recipe, tmp_path / "run", 3)
    go(tmp_path / "run", "train.learning_rate=0.002", allowed=["train.learning_rate"])
    assert rates(tmp_path / "run") == [0.01] * 3 + [0.002] * 5


def test_a_changed_schedule_has_no_stale_step(recipe: Path, tmp_path: Path) -> None:
    stop(recipe, tmp_path / "run", 3)
    go(tmp_path / "run", 'train.schedule="linear"', allowed=["train.schedule"])
    falling = [0.01 * (8 - made) / 8 for made in range(3, 8)]  # over all 8 steps, of which three are made
    assert rates(tmp_path / "run") == pytest.approx([0.01] * 3 + falling)


def test_a_longer_run_has_the_schedule_of_its_new_length(recipe: Path, tmp_path: Path) -> None:
    stop(recipe, tmp_path / "run", 4, 'train.schedule="linear"')
    go(tmp_path / "run", "train.steps=16", allowed=["train.steps"])
    before = [0.01 * (8 - made) / 8 for made in range(4)]
    assert rates(tmp_path / "run") == pytest.approx(before + [0.01 * (16 - made) / 16 for made in range(4, 16)])


@pytest.mark.parametrize("change", ["weight_decay=0.5", "beta1=0.2", "beta2=0.3", "epsilon=0.1"])
def test_other_settings_of_the_optimizer_hold(recipe: Path, tmp_path: Path, change: str) -> None:
    """What trains from there is what trains if the settings were changed by hand in what is restored."""
    key = f"train.{change.partition('=')[0]}"
    stop(recipe, tmp_path / "as-it-was", 3)
    stop(recipe, tmp_path / "changed", 3)
    go(tmp_path / "as-it-was")
    go(tmp_path / "changed", f"train.{change}", allowed=[key])
    one, other = weights(tmp_path / "as-it-was"), weights(tmp_path / "changed")
    assert not all(a.equal(b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("other", ["o_proj", "k_proj"])
def test_targets_are_not_taken_for_each_other(recipe: Path, tmp_path: Path, other: str) -> None:
    """Whether their tensors have equal shapes (o_proj) or not (k_proj, whose heads are fewer)."""
    stop(recipe, tmp_path / "run", 3, 'adapter.targets=["q_proj"]')
    with pytest.raises(RunError, match=rf"q_proj\S* there is \S*{other}\S* here. Keep \[adapter\] targets as they are"):
        go(tmp_path / "run", f'adapter.targets=["{other}"]', allowed=["adapter.targets"])


@pytest.mark.parametrize("done", [False, True])
def test_fewer_steps_than_were_made_are_refused_before_anything_is_moved(
    recipe: Path, tmp_path: Path, done: bool
) -> None:
    run = tmp_path / "run"
    if done:
        go(recipe, out=run)
    else:
        stop(recipe, run, 5)
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file() and path.suffix != ".lock"}
    made = 8 if done else 5
    with pytest.raises(RunError, match=f"has made {made} steps, and its recipe now asks for 4"):
        go(run, "train.steps=4", allowed=["train.steps"])
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path for path in run.rglob("*") if path.is_file() and path.suffix != ".lock") == sorted(before)


def test_data_that_shrink_are_refused_as_well(recipe: Path, tmp_path: Path) -> None:
    epochs = ("train.epochs=2", "train.steps=100")
    stop(recipe, tmp_path / "run", 7, *epochs)
    file = recipe.parent / "data.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(RunError, match="has made 7 steps, and its recipe now asks for 4"):
        go(tmp_path / "run", allowed=["data"])
