"""Processes that each compute a part of every row train what one does that computes rows whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

from fitune.testing import write_recipe, write_tiny_data
from support.blows import join
from support.fault_suite import free_port
from support.forked import Ended, Forks
from support.row_parts import FAMILIES, REFUSED, compare, refuse
from support.tiny import adapter, assert_close, losses, metrics

LESS = ('{use="gradient-checkpointing"}', '{use="chunked-loss", tokens=16}', '{use="fused-lora"}')


class Home(NamedTuple):
    """A recipe, and where its runs are."""

    recipe: Path
    forks: Forks

    def start(self, processes: int, given: list[str | Path]) -> list[Ended]:
        """Processes that train together, to their end."""
        folder = self.recipe.parent.parent
        if processes == 1:
            return [self.forks.run(["run", *given], cwd=folder)]
        return started(self.forks, folder, processes, join, given)

    def run(self, name: str, processes: int, *strategies: str, sets: tuple[str, ...] = ()) -> Path:
        """A run to its end; gives its directory."""
        out = self.recipe.parent.parent / name
        memory = f"memory.strategy=[{', '.join(strategies)}]"
        more = [part for one in (memory, *sets) for part in ("--set", one)]
        ended = self.start(processes, [self.recipe, "--out", out, *more])
        assert [one.code for one in ended] == [0] * processes, [one.output for one in ended]
        return out


def started(
    forks: Forks, folder: Path, processes: int, prepare: Callable[..., Any], given: list[str | Path]
) -> list[Ended]:
    """So many processes at the same time, to their end."""
    together = {"processes": processes, "port": free_port()}
    ranks = range(processes)
    children = [forks.start(["run", *given], cwd=folder, prepare=prepare, rank=rank, **together) for rank in ranks]
    return [forks.wait(child) for child in children]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Home:
    """Rows of many lengths, two to a micro-batch, so that parts end within them and within their padding; three
    micro-batches in the last step of an epoch, of which one of two groups has two.
    """
    folder = tmp_path_factory.mktemp("context-parallel")
    changes = {
        "train": {"micro_batch": 2, "steps": 3, "epochs": 3, "epsilon": 1e-4},
        "eval": {"every": 2, "micro_batch": 1, "source": [{"use": "jsonl", "path": "held_out.jsonl"}]},
        "checkpoint": {"steps": 1, "keep": 9},
    }
    recipe = write_recipe(folder / "recipe", changes)
    write_tiny_data(recipe.parent / "data.jsonl", rows=9)
    write_tiny_data(recipe.parent / "held_out.jsonl", rows=3)
    return Home(recipe, forks)


@pytest.mark.parametrize("processes", [2, 4])
def test_losses_and_gradients_of_parts_are_those_of_rows(forks: Forks, tmp_path: Path, processes: int) -> None:
    """Of heads that each process has several of, one of, or that are repeated; with labels that begin or end at a
    part's border, and parts that have none; computed again, where what was exchanged is exchanged once more.
    """
    for one in started(forks, tmp_path, processes, compare, []):
        assert one.code == 0, one.output
        assert [name for name in FAMILIES[processes] if f"equal: {name}\n" in one.output] == list(FAMILIES[processes])


def test_what_cannot_be_computed_in_parts_is_refused(forks: Forks, tmp_path: Path) -> None:
    for one in started(forks, tmp_path, 2, refuse, []):
        assert one.code == 0, one.output
        assert [name for name in REFUSED if f"refused: {name}\n" in one.output] == list(REFUSED)


def test_a_run_in_parts_is_that_of_one_process(home: Home) -> None:
    """And goes on to the bit; and in two groups of two, each of which has rows of its own and shards of the model."""
    one = home.run("one", 1, '{use="accumulation", steps=2}')
    two = home.run("two", 2, '{use="accumulation", steps=2}', '{use="context-parallel"}', *LESS)
    _must_be_equal(one, two)
    ends = losses(two), adapter(two)

    shutil.rmtree(two / "adapter")
    for step in (2, 3):
        shutil.rmtree(two / "checkpoints" / f"step-{step}")
    ended = home.start(2, [two])
    assert [process.code for process in ended] == [0, 0], [process.output for process in ended]
    assert losses(two) == ends[0]
    assert all(tensor.equal(ends[1][name]) for name, tensor in adapter(two).items())

    _must_be_equal(one, home.run("four", 4, '{use="context-parallel", cards=2}', '{use="fsdp"}'))


def test_full_fine_tuning_in_parts_and_shards(home: Home) -> None:
    full = ('adapter={use="none"}', "eval.exact_match=true", "eval.max_new_tokens=4")
    one = home.run("full-one", 1, '{use="accumulation", steps=2}', sets=full)
    two = home.run(
        "full-two", 2, '{use="accumulation", steps=2}', '{use="context-parallel"}', '{use="fsdp"}', sets=full
    )
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, two)]
    assert_close(weights[1].values(), weights[0].values(), relative=1e-3)
    answers = [json.loads((run / "examples.json").read_text(encoding="utf-8")) for run in (one, two)]
    assert answers[1] == answers[0], "of which each process has some"


def _must_be_equal(one: Path, two: Path) -> None:
    assert len(losses(one)) == 3
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for event, key in (("step", "grad_norm"), ("evaluation", "loss"), ("step", "tokens")):
        found = [[line[key] for line in metrics(run, event)] for run in (one, two)]
        assert found[0]
        assert found[1] == pytest.approx(found[0], rel=1e-4)
    mine, theirs = adapter(one), adapter(two)
    assert mine.keys() == theirs.keys()
    assert_close(theirs.values(), mine.values(), relative=1e-4)
