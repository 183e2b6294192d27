"""One of two processes runs out of memory, or fails: both do the same, and one of them says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitune.testing import write_recipe, write_tiny_data
from support.blows import join
from support.fault_suite import free_port
from support.forked import Ended, Forks
from support.tiny import adapter, assert_close, losses, metrics

TRAP = '''
"""Has the second process fail in one of its steps, where it says; memory that runs out is met with checkpointing."""
import dataclasses
import os

import fitune.train.run
import torch
from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl
from fitune.memory.fit.refit import Composition

HOW, WHERE, STEP = "{how}", "{where}", 3
MESSAGE = "CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a total capacity of 22.30 GiB."
steps = 0


def spring(where):
    if where == WHERE and steps == STEP and os.environ.get("RANK") == "1":
        raise torch.OutOfMemoryError(MESSAGE) if HOW == "memory" else ZeroDivisionError("on purpose")


class Trap(Strategy):
    def prepare(self, model):
        model.get_input_embeddings().register_forward_hook(lambda *_: spring("forward"))
        next(p for p in model.parameters() if p.requires_grad).register_hook(lambda grad: spring("backward"))
        return model

    def make_optimizer(self, parameters, settings):
        made = torch.optim.AdamW(parameters, lr=settings.learning_rate, eps=settings.eps, weight_decay=0.0)
        made.register_step_post_hook(lambda *_: spring("optimizer"))
        return made

    def around_step(self):
        global steps
        steps += 1
        return super().around_step()


def refit(registry):
    (record,) = (p.record for p in registry.provided if p.record.name == "gradient-checkpointing")

    def less(asked, used, run_data, room):
        use = dataclasses.replace(asked.strategies[0], record=record, options=record.options())
        return Composition(recipe=dataclasses.replace(asked, strategies=(*asked.strategies, use)))

    return less


fitune.train.run._refitter = refit
if {rehearsed}:
    STEP = 1
    fitune.train.run.on_gpu = lambda parts: True


@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="trap", summary="Fails", options=NoOptions, make=lambda options: Trap())
'''


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recovery")
    changes = {"train": {"micro_batch": 1, "steps": 5, "epsilon": 1e-4}, "checkpoint": {"minutes": 0}}
    path = write_recipe(folder / "recipe", changes)
    write_tiny_data(path.parent / "data.jsonl", rows=6)
    return path


@pytest.fixture(scope="module")
def plain(recipe: Path, forks: Forks) -> Path:
    """A run of both that nothing disturbs."""
    out = recipe.parent.parent / "plain"
    ended = _together(recipe, forks, out, "nothing", "nowhere")
    assert [one.code for one in ended] == [0, 0], ended
    return out


def _together(
    recipe: Path, forks: Forks, out: Path, how: str, where: str, more: str = "", *, rehearsed: bool = False
) -> list[Ended]:
    plugin = out.with_suffix(".py")
    plugin.write_text(_trap(how, where, rehearsed=rehearsed), encoding="utf-8")
    sets = [f'plugins=["{plugin}"]', f'memory.strategy=[{{use="accumulation", steps=2}}, {{use="trap"}}{more}]']
    given: list[str | Path] = ["run", recipe, "--out", out, *(part for one in sets for part in ("--set", one))]
    port = free_port()
    children = [
        forks.start(given, cwd=out.parent, prepare=join, rank=rank, processes=2, port=port) for rank in range(2)
    ]
    return [forks.wait(child) for child in children]


def _trap(how: str, where: str, *, rehearsed: bool = False) -> str:
    """The plugin; a run is rehearsed, as on a GPU, if it says so, and then fails in the first step of that."""
    return TRAP.replace("{how}", how).replace("{where}", where).replace("{rehearsed}", str(rehearsed))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_both_go_on_with_less(recipe: Path, plain: Path, forks: Forks, where: str) -> None:
    out = recipe.parent.parent / f"less-{where}"
    ended = _together(recipe, forks, out, "memory", where)
    assert [one.code for one in ended] == [0, 0], ended
    assert "out of GPU memory in the step after 2 steps: CUDA out of memory. Tried to allocate" in ended[0].output
    assert len(metrics(out, "recovery")) == 1
    assert losses(out) == pytest.approx(losses(plain), rel=1e-5)
    assert_close(adapter(out).values(), adapter(plain).values(), relative=1e-4)
    assert "OutOfMemoryError" in (out / "error.txt").read_text(encoding="utf-8")  # the traceback of the other process


def test_what_the_optimizer_has_begun_ends_both(recipe: Path, forks: Forks) -> None:
    """The first process has made the step by then, and the second half of it."""
    ended = _together(recipe, forks, recipe.parent.parent / "begun", "memory", "optimizer")
    assert [one.code for one in ended] == [2, 2], ended
    assert "out of GPU memory" in ended[0].output
    assert ended[0].output.count("error: out of GPU memory") == 1
    assert "error" not in ended[1].output


def test_memory_that_runs_out_in_a_shard_ends_both(recipe: Path, forks: Forks) -> None:
    """The first process waits for a layer by then, and hears nothing but that the other one is gone."""
    out = recipe.parent.parent / "sharded"
    ended = _together(recipe, forks, out, "memory", "backward", ', {use="fsdp"}')
    assert [one.code for one in ended] == [2, 2], ended
    assert "error: another process of the run has ended, and this one cannot go on without it" in ended[0].output
    assert "error: process 1: out of GPU memory in training: CUDA out of memory." in ended[1].output
    assert "Traceback" not in ended[0].output + ended[1].output


@pytest.mark.parametrize("strategy", ["fsdp", "context-parallel"])
def test_memory_that_runs_out_amid_a_layer_of_the_rehearsal_ends_both(
    recipe: Path, forks: Forks, strategy: str
) -> None:
    """And does not have the one that is left wait for half an hour."""
    out = recipe.parent.parent / f"rehearsed-{strategy}"
    ended = _together(recipe, forks, out, "memory", "backward", f', {{use="{strategy}"}}', rehearsed=True)
    assert [one.code for one in ended] == [2, 2], ended
    assert "error: another process of the run has ended, and this one cannot go on without it" in ended[0].output
    assert "error: process 1: out of GPU memory in training: CUDA out of memory." in ended[1].output


def test_an_error_of_one_is_kept_from_by_both(recipe: Path, plain: Path, forks: Forks) -> None:
    """What was learnt is in a checkpoint, which both go on from to the same end."""
    out = recipe.parent.parent / "failed"
    ended = _together(recipe, forks, out, "bug", "forward")
    assert [one.code for one in ended] == [2, 1], ended
    assert "error: process 1: ZeroDivisionError: on purpose" in ended[0].output
    assert "Traceback" not in ended[0].output
    assert "Go on with: ft run" in ended[0].output
    assert (out / "checkpoints" / "step-2" / "process-1.json").is_file()
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["state"] == "failed"
    (out.with_suffix(".py")).write_text(_trap("nothing", ""), encoding="utf-8")
    port = free_port()
    given: list[str | Path] = ["run", out, "--allow-changed", "plugins"]
    children = [
        forks.start(given, cwd=out.parent, prepare=join, rank=rank, processes=2, port=port) for rank in range(2)
    ]
    again = [forks.wait(child) for child in children]
    assert [one.code for one in again] == [0, 0], again
    assert losses(out) == losses(plain)
