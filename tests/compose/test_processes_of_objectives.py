"""Two processes minimise what one does with twice the accumulation, whatever the objective, its measures too."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.blows import join
from support.fault_suite import free_port
from support.forked import Forks
from support.objectives import OBJECTIVES, asked, write_preference_recipe
from support.resuming import weights
from support.tiny import assert_close, metrics

STEPS = ("train.steps=3", "train.micro_batch=1", "train.epsilon=1e-4", "eval.micro_batch=2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_preference_recipe(tmp_path_factory.mktemp("processes") / "recipe")


SHARDED = ('memory.strategy=[{use="fsdp"}]', "model.dtype=float32")
CASES: dict[str, tuple[str, ...]] = {name: (asked(name),) for name in OBJECTIVES if not name.startswith("kto")}
CASES |= {
    "dpo, in shards": (asked("dpo"), *SHARDED),
    "reward, whole in shards": (asked("reward"), *SHARDED, 'adapter={use="none"}', "train.learning_rate=1e-3"),
}


@pytest.mark.parametrize("name", CASES)
def test_they_learn_the_same(name: str, recipe: Path, forks: Forks, tmp_path: Path) -> None:
    """KTO's estimate of how far the model has gone is of a micro-batch, so it is of other rows there."""
    runs = []
    for processes in (1, 2):
        given = (*STEPS, *CASES[name], f"train.accumulation={4 // processes}")
        directory = tmp_path / str(processes)
        words: list[str | Path] = ["run", recipe, "--out", directory]
        words += [word for override in given for word in ("--set", override)]
        port = free_port()
        children = [
            forks.start(words, cwd=tmp_path, prepare=join, rank=rank, processes=processes, port=port)
            for rank in range(processes)
        ]
        ended = [forks.wait(child) for child in children]
        assert not any(one.code for one in ended), ended[0].output
        runs.append(directory)
    for event in ("step", "evaluation"):
        for one, two in zip(*(metrics(run, event) for run in runs), strict=True):
            for key in ("loss", "accuracy", "margin", "rewards/chosen", "rewards/rejected"):
                assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), (event, key)
    found, expected = weights(runs[1]), weights(runs[0])
    if "shards" in name:  # AdamW's first steps are of one size, whichever way rounding has a gradient near 0 point
        assert [one.shape for one in found] == [one.shape for one in expected]
    else:
        assert_close(found, expected, relative=2e-4)
