"""What two GPUs of one host show: replicas and shards train what one does, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fitune.testing import write_recipe, write_tiny_data
from support.tiny import adapter, assert_close, losses, metrics
from support.traps import write_trap

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")]

FULL = ("--set", 'adapter={use="none"}')


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """In float32, so that sums in another order show as rounding alone; five rows in windows of four."""
    changes = {"train": {"micro_batch": 1, "steps": 4, "epsilon": 1e-4}, "checkpoint": {"steps": 2, "keep": 9}}
    path = write_recipe(tmp_path / "recipe", changes)
    write_tiny_data(path.parent / "data.jsonl", rows=5)
    return path


def ft(recipe: Path, out: Path, gpus: int, *given: str, strategies: str = "", groups: int | None = None) -> Path:
    """A run on so many GPUs, which are so many groups that have rows of their own; gives its directory."""
    memory = f'memory.strategy=[{{use="accumulation", steps={4 // (groups or gpus)}}}{strategies}]'
    command = ["run", str(recipe), "--out", str(out), "--gpus", str(gpus), "--set", memory, *given]
    done = subprocess.run([sys.executable, "-m", "fitune", *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def test_replicas_train_as_one_does(recipe: Path, tmp_path: Path) -> None:
    one, two = ft(recipe, tmp_path / "one", 1), ft(recipe, tmp_path / "two", 2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert_close(adapter(two).values(), adapter(one).values(), relative=1e-3)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("options", ["", ", reshard_after_forward=false", ", prefetch=2", ", offload=true"])
def test_shards_train_as_one_does(recipe: Path, tmp_path: Path, kind: str, options: str) -> None:
    more = FULL if kind == "full" else ()
    one = ft(recipe, tmp_path / "one", 1, *more)
    less = ', {use="gradient-checkpointing"}, {use="chunked-loss"}'
    two = ft(recipe, tmp_path / "two", 2, *more, strategies=f'{less}, {{use="fsdp"{options}}}')
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_shards_in_bfloat16(recipe: Path, tmp_path: Path) -> None:
    """Gathered in bfloat16, reduced in float32, from float32 shards: near what one process makes of float32 masters."""
    given = ("--set", 'model.dtype="bfloat16"', *FULL)
    one = ft(recipe, tmp_path / "one", 1, *given)
    two = ft(recipe, tmp_path / "two", 2, *given, strategies=', {use="fsdp"}')
    assert losses(two) == pytest.approx(losses(one), rel=2e-2)


def test_fast_layers_in_shards(recipe: Path, tmp_path: Path) -> None:
    given = ("--set", 'model.dtype="bfloat16"')
    one = ft(recipe, tmp_path / "one", 1, *given)
    two = ft(recipe, tmp_path / "two", 2, *given, strategies=', {use="fast-layers"}, {use="fsdp"}')
    assert losses(two) == pytest.approx(losses(one), rel=2e-2)


def test_memory_that_runs_out_in_a_shard_starts_both_again(recipe: Path, tmp_path: Path) -> None:
    """The second process asks for more than there is, in the third step after the rehearsal's two."""
    write_trap(tmp_path / "trap.py", step=5)
    given = ("--allow-plugins", "--set", f'plugins=["{tmp_path / "trap.py"}"]')
    plain = ft(recipe, tmp_path / "plain", 2, strategies=', {use="fsdp"}')
    again = ft(recipe, tmp_path / "again", 2, *given, strategies=', {use="trap"}, {use="fsdp"}')
    (recovery,) = metrics(again, "recovery")
    assert "Tried to allocate" in str(recovery)
    assert losses(again) == pytest.approx(losses(plain), rel=1e-4)


PACKED = ("--set", 'data.stage=[{use="chat"}, {use="tokenize"}, {use="truncate"}, {use="pack"}]')


@pytest.mark.parametrize("more", ["", ', {use="fsdp"}'])
def test_parts_of_rows_train_as_rows_do(recipe: Path, tmp_path: Path, more: str) -> None:
    one = ft(recipe, tmp_path / "one", 1)
    parts = ', {use="gradient-checkpointing"}, {use="chunked-loss"}, {use="context-parallel"}'
    two = ft(recipe, tmp_path / "two", 2, strategies=parts + more, groups=1)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert_close(adapter(two).values(), adapter(one).values(), relative=1e-3)


def test_parts_of_packed_rows_in_bfloat16(recipe: Path, tmp_path: Path) -> None:
    """By variable-length attention, which is given whole rows, and by kernels of whole layers."""
    given = ("--set", 'model.dtype="bfloat16"', *PACKED)
    one = ft(recipe, tmp_path / "one", 1, *given)
    two = ft(
        recipe, tmp_path / "two", 2, *given, strategies=', {use="fast-layers"}, {use="context-parallel"}', groups=1
    )
    assert losses(two) == pytest.approx(losses(one), rel=2e-2)


def test_one_that_is_killed_ends_the_other(recipe: Path, tmp_path: Path) -> None:
    """The one that is left waits in a collective operation of NCCL, and would for ten minutes."""
    (tmp_path / "killed.py").write_text(KILLED, encoding="utf-8")
    memory = 'memory.strategy=[{use="fsdp"}, {use="killed"}]'
    sets = ["--set", memory, "--set", f'plugins=["{tmp_path / "killed.py"}"]']
    command = ["run", str(recipe), "--out", str(tmp_path / "run"), "--gpus", "2", *sets]
    environment = {**os.environ, "FT_ALLOW_PLUGINS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fitune", *command], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 2
    assert f"process 1 of the run was ended by {signal.Signals.SIGKILL.name}" in done.stderr
    assert "Traceback" not in done.stderr


KILLED = '''
"""Kills the second process in its fourth step, a rehearsal's two among them."""
import os
import signal

from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl


class Killed(Strategy):
    steps = 0

    def around_step(self):
        self.steps += 1
        if os.environ["RANK"] == "1" and self.steps == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().around_step()


@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="killed", summary="Dies", options=NoOptions, make=lambda options: Killed())
'''
