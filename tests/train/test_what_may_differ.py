"""What may differ in a run that goes on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fitune import RunError
from fitune.checkpoint.files import newest
from fitune.testing import write_recipe, write_tiny_data
from support.resuming import Stopper, go, stop, weights, write_resumed
from support.states import assert_same
from support.tiny import metrics


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_resumed(tmp_path_factory.mktemp("resume") / "recipe")


@pytest.fixture(scope="module")
def plain(recipe: Path) -> Path:
    """A run of it that nothing disturbs."""
    go(recipe, out=recipe.parent / "plain")
    return recipe.parent / "plain"


@pytest.fixture(scope="module")
def stopped(recipe: Path) -> Path:
    """A run that was stopped after two steps; nobody goes on with it."""
    stop(recipe, recipe.parent / "stopped", 2)
    return recipe.parent / "stopped"


def _refused(run: Path, *overrides: str, **asked: Any) -> tuple[str, ...]:
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))
    with pytest.raises(RunError) as raised:
        go(run, *overrides, **asked)
    assert sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*")) == before
    return raised.value.lines


def test_another_recipe_is_refused_key_by_key(stopped: Path) -> None:
    lines = _refused(stopped, "train.learning_rate=0.5", 'memory.strategy=[{use="gradient-checkpointing"}]')[:-1]
    assert lines[0] == f"{stopped} cannot go on: it would not be the same run"
    assert f"{stopped}: train.learning_rate: 0.01 before, 0.5 now" in lines


def test_what_is_refused_says_how_to_allow_it(stopped: Path) -> None:
    lines = _refused(stopped, "train.learning_rate=0.5", "train.steps=9", allowed=["train.steps"])
    assert lines[1:] == (
        f"{stopped}: train.learning_rate: 0.01 before, 0.5 now",
        "If that is meant, add: --allow-changed train.learning_rate",
    )


def test_a_step_must_take_as_many_rows(stopped: Path) -> None:
    (line,) = _refused(stopped, "train.micro_batch=3", allowed=["train"])
    assert "a step took 2 rows, and now takes 6" in line


def test_longer_with_leave(recipe: Path, tmp_path: Path) -> None:
    """A run that is done goes on to more steps; what it had trained stays."""
    constant = ('train.schedule="constant_with_warmup"', "eval.every=100")
    go(recipe, *constant, "train.steps=3", out=tmp_path / "run")
    first = weights(tmp_path / "run")
    go(tmp_path / "run", "train.steps=5", allowed=["train.steps"])
    go(recipe, *constant, "train.steps=5", out=tmp_path / "plain")
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "plain"))
    (moved,) = (tmp_path / "run").glob("adapter.1/*.safetensors")
    assert_same(list(load_file(moved).values()), first)
    assert go(tmp_path / "run").done  # what was allowed once is part of the run


def test_settings_that_change_no_number_need_no_leave(recipe: Path, plain: Path, tmp_path: Path) -> None:
    stop(recipe, tmp_path / "run", 2)
    go(tmp_path / "run", "checkpoint.steps=3", 'listener=[{use="metrics", every=2}]')
    assert [line["step"] for line in metrics(tmp_path / "run", "checkpoint")][-3:] == [3, 6, 8]
    assert_same(weights(tmp_path / "run"), weights(plain))


@pytest.mark.parametrize("what", ["data", "eval", "model"])
def test_other_data_and_another_model_are_refused(tmp_path: Path, what: str) -> None:
    recipe = write_recipe(
        tmp_path / "recipe", {"eval": {"source": [{"use": "jsonl", "path": "held_out.jsonl"}]}, "train": {"steps": 4}}
    )
    write_tiny_data(recipe.parent / "held_out.jsonl", rows=3)
    stop(recipe, tmp_path / "run", 2)
    if what == "model":
        file = recipe.parent / "model" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-2] ^= 0x40
        file.write_bytes(content)
    else:
        file = recipe.parent / {"data": "data.jsonl", "eval": "held_out.jsonl"}[what]
        file.write_text(file.read_text().replace("Count to 1.", "Count to 7."))
    with pytest.raises(RunError) as raised:
        go(tmp_path / "run")
    word = {"data": "rows", "eval": "held-out rows", "model": "weights"}[what]
    assert raised.value.lines[1].startswith(f"{tmp_path / 'run'}: {what}: {word} ")
    assert raised.value.lines[2] == f"If that is meant, add: --allow-changed {what}"
    go(tmp_path / "run", allowed=[what])


def test_other_versions_are_told(recipe: Path, tmp_path: Path) -> None:
    stop(recipe, tmp_path / "run", 7)
    file = tmp_path / "run" / "identity.json"
    values = json.loads(file.read_text())
    values["versions"]["peft"] = "0.0.1"
    del values["sha256"], values["place"]
    file.write_text(json.dumps(values))
    told = Stopper()
    go(tmp_path / "run", plugins=[told])
    assert [notice.kind for notice in told.notices] == ["versions"]
    assert "peft 0.0.1, now " in told.notices[0].what


def test_what_is_no_run_is_refused(tmp_path: Path, recipe: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"holds no run: there is no identity\.json in it"):
        go(tmp_path / "empty")
    with pytest.raises(RunError, match="--out has no effect"):
        go(recipe.parent, out=tmp_path / "run")
    with pytest.raises(RunError, match="--allow-changed is for a run that goes on"):
        go(recipe, out=tmp_path / "run", allowed=["train"])


def test_the_newest_checkpoint_is_read_whole(stopped: Path) -> None:
    checkpoint, damaged = newest(stopped)
    assert checkpoint is not None
    assert damaged == []
    assert checkpoint.progress.step == checkpoint.state.step == 2
    assert checkpoint.progress.seconds > 0
