"""Two processes that each hold a part of the model train what one does that holds all of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from fitune.cli.main import main
from fitune.testing import write_recipe, write_tiny_data
from support.blows import join
from support.fast_models import join_with_kernels
from support.fault_suite import free_port
from support.forked import Ended, Forks
from support.tiny import adapter, assert_close, losses, metrics

ACCUMULATED = {1: '{use="accumulation", steps=4}', 2: '{use="accumulation", steps=2}'}
LESS = ['{use="gradient-checkpointing"}', '{use="chunked-loss", tokens=16}']


OF_ADAPTERS = ['{use="fused-rms-norm"}', '{use="fused-lora"}', '{use="tiled-mlp", tokens=16}', *LESS]


class Home(NamedTuple):
    """A recipe, and where its runs are."""

    recipe: Path
    forks: Forks

    def start(self, processes: int, given: list[str | Path], prepare: Callable[..., None] = join) -> list[Ended]:
        """Processes that train together, to their end."""
        folder, port = self.recipe.parent.parent, free_port()
        together = {"processes": processes, "port": port}
        children = [
            self.forks.start(["run", *given], cwd=folder, prepare=prepare, rank=rank, **together)
            if processes > 1
            else self.forks.start(["run", *given], cwd=folder)
            for rank in range(processes)
        ]
        return [self.forks.wait(child) for child in children]

    def run(
        self,
        name: str,
        processes: int,
        *strategies: str,
        sets: tuple[str, ...] = (),
        prepare: Callable[..., None] = join,
    ) -> Path:
        """A run to its end; gives its directory."""
        out = self.recipe.parent.parent / name
        memory = f"memory.strategy=[{', '.join([ACCUMULATED[processes], *strategies])}]"
        more = [part for one in (memory, *sets) for part in ("--set", one)]
        ended = self.start(processes, [self.recipe, "--out", out, *more], prepare)
        assert [one.code for one in ended] == [0] * processes, [one.output for one in ended]
        return out


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Home:
    """Five rows in windows of four: in each epoch's last window the second process has no micro-batch; and three held
    out rows, of which it has one less.
    """
    folder = tmp_path_factory.mktemp("sharded")
    changes = {
        "train": {"micro_batch": 1, "steps": 4, "epochs": 2, "epsilon": 1e-4},
        "eval": {
            "every": 2,
            "exact_match": True,
            "max_new_tokens": 4,
            "micro_batch": 1,
            "source": [{"use": "jsonl", "path": "held_out.jsonl"}],
        },
        "checkpoint": {"steps": 1, "keep": 9},
    }
    recipe = write_recipe(folder / "recipe", changes)
    write_tiny_data(recipe.parent / "data.jsonl", rows=5)
    write_tiny_data(recipe.parent / "held_out.jsonl", rows=3)
    return Home(recipe, forks)


def _must_be_equal(one: Path, two: Path) -> None:
    assert len(losses(one)) == 4
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    norms = [[line["grad_norm"] for line in metrics(run)] for run in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    evaluations = [metrics(run, "evaluation") for run in (one, two)]
    assert len(evaluations[0]) == 3
    assert [e["loss"] for e in evaluations[1]] == pytest.approx([e["loss"] for e in evaluations[0]], rel=1e-5)
    assert [e["exact_match"] for e in evaluations[1]] == [e["exact_match"] for e in evaluations[0]]
    answers = [json.loads((run / "examples.json").read_text(encoding="utf-8")) for run in (one, two)]
    assert answers[0] == answers[1]


def test_an_adapter_on_a_sharded_base(home: Home) -> None:
    """With layers that are computed again, in pieces and by operations that use weights beside the model's own modules,
    and with the head's used outside of the model's forward pass.
    """
    one, two = home.run("lora-one", 1), home.run("lora-two", 2, *OF_ADAPTERS, '{use="fsdp", prefetch=2}')
    _must_be_equal(one, two)
    mine, theirs = adapter(one), adapter(two)
    assert mine.keys() == theirs.keys()
    assert_close(theirs.values(), mine.values(), relative=1e-4)
    identities = [json.loads((run / "identity.json").read_text(encoding="utf-8")) for run in (one, two)]
    assert identities[0]["model"] == identities[1]["model"]  # it is the same base, in parts or not


def test_rows_of_added_tokens_on_a_sharded_base(home: Home) -> None:
    """Which train in tables that each process has a part of."""
    sets = ('model.add_tokens=["Count"]', "train.learning_rate=0.02")
    one = home.run("tokens-one", 1, LESS[1], sets=sets)
    two = home.run("tokens-two", 2, LESS[1], '{use="fsdp"}', sets=sets)
    _must_be_equal(one, two)
    mine, theirs = adapter(one), adapter(two)
    assert any("trainable_tokens_delta" in name for name in mine)
    assert_close(theirs.values(), mine.values(), relative=1e-4)


def test_fast_layers_on_a_sharded_base(home: Home) -> None:
    """Which put adapters side by side before each process is given the first one's, on its own device."""
    one = home.run("fast-one", 1)
    strategies = ['{use="fast-layers"}', '{use="gradient-checkpointing"}', '{use="fsdp"}']
    two = home.run("fast-two", 2, *strategies, prepare=join_with_kernels)
    _must_be_equal(one, two)
    mine, theirs = adapter(one), adapter(two)
    assert mine.keys() == theirs.keys()
    assert_close(theirs.values(), mine.values(), relative=1e-4)


def test_full_fine_tuning_in_shards(home: Home) -> None:
    """Weights, masters and the optimizer's state in parts; what is written is whole, and goes on in one process."""
    full = ('adapter={use="none"}',)
    one, two = home.run("full-one", 1, sets=full), home.run("full-two", 2, *LESS, '{use="fsdp"}', sets=full)
    _must_be_equal(one, two)
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert_close(weights[1].values(), weights[0].values(), relative=1e-4)
    states = [load_file(run / "checkpoints" / "step-4" / "state.safetensors") for run in (one, two)]
    assert {name: t.shape for name, t in states[0].items()} == {name: t.shape for name, t in states[1].items()}
    assert_close(states[1].values(), states[0].values(), relative=1e-3)

    shutil.rmtree(two / "model")
    for step in (3, 4):
        shutil.rmtree(two / "checkpoints" / f"step-{step}")
    again = ["--set", f"memory.strategy=[{ACCUMULATED[1]}]", "--allow-changed", "memory"]
    (ended,) = home.start(1, [two, *again])
    assert ended.code == 0, ended.output
    assert "2 processes before, 1 now" in ended.output
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert_close(load_file(two / "model" / "model.safetensors").values(), weights[0].values(), relative=1e-4)


def test_one_process_goes_on_as_two_in_shards(home: Home) -> None:
    one = home.run("lora-again", 1)
    plain = adapter(one)
    shutil.rmtree(one / "adapter")
    for step in (2, 3, 4):
        shutil.rmtree(one / "checkpoints" / f"step-{step}")
    again = ["--set", f'memory.strategy=[{ACCUMULATED[2]}, {{use="fsdp"}}]', "--allow-changed", "memory"]
    ended = home.start(2, [one, *again])
    assert [process.code for process in ended] == [0, 0], [process.output for process in ended]
    assert_close(adapter(one).values(), plain.values(), relative=1e-4)


def test_what_is_written_is_of_the_type_that_was_loaded(home: Home) -> None:
    """Shards are float32; what is written a second time is bfloat16 too."""
    sets = ('adapter={use="none"}', 'model.dtype="bfloat16"', "train.steps=2", "eval.exact_match=false")
    one, two = home.run("bf16-one", 1, sets=sets), home.run("bf16-two", 2, '{use="fsdp"}', sets=sets)
    assert losses(two) == pytest.approx(losses(one), rel=1e-2)
    for place in ("checkpoints/step-1/model", "checkpoints/step-2/model", "model"):
        assert {t.dtype for t in load_file(two / place / "model.safetensors").values()} == {torch.bfloat16}
    masters = [load_file(run / "checkpoints" / "step-1" / "state.safetensors") for run in (one, two)]
    assert masters[0].keys() == masters[1].keys()
    assert_close(masters[1].values(), masters[0].values(), relative=1e-2)


@pytest.mark.parametrize(
    ("strategies", "what"),
    [
        ('{use="nf4"}, {use="fsdp"}', '"fsdp" cannot be used with "nf4": scales stand beside 4-bit weights'),
        ('{use="fsdp"}, {use="adamw-8bit"}', 'that of "adamw-8bit" lies in blocks'),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    recipe_path: Path, strategies: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    full = 'adapter.use="none"' if "adamw" in strategies else "adapter.r=4"
    with pytest.raises(SystemExit) as ended:
        main(["check", str(recipe_path), "--set", f"memory.strategy=[{strategies}]", "--set", full])
    assert ended.value.code == 2
    assert what in capsys.readouterr().err


def test_one_process_is_told_that_nothing_is_sharded(recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", str(recipe_path), "--out", str(recipe_path.parent / "run"), "--set", 'memory.strategy=[{use="fsdp"}]'])
    assert "fsdp has no effect: there is one process" in capsys.readouterr().out
    assert torch.isfinite(torch.tensor(losses(recipe_path.parent / "run"))).all()
