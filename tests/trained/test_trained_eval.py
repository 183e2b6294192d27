"""`ft eval` finds what the run found, to the bit; and evaluates on other data, with other settings, and checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fitune.checkpoint.manifest import write_manifest
from fitune.testing import write_tiny_data
from support.after_runs import evaluations, finished, ft, refused, without

EQUAL = ("loss", "exact_match", "rows", "target_tokens")


def _eval(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ft("eval", *arguments, "--json")[0])
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("eval"))


def _is_what_the_run_found(run: Path) -> None:
    before, after = evaluations(run)
    assert before["loss"] != after["loss"]
    for found, expected in ((_eval(run, "--base"), before), (_eval(run), after)):
        assert [found[key] for key in EQUAL] == [expected[key] for key in EQUAL]
        assert found["step"] == expected["step"]


def test_it_finds_what_the_run_found(run: Path) -> None:
    _is_what_the_run_found(run)


@pytest.mark.parametrize(
    "overrides",
    [
        ["adapter={use='none'}", "train.learning_rate=0.001"],
        ["memory.strategy=[{use='nf4'}, {use='chunked-loss', tokens=5}]", "model.dtype='bfloat16'"],
        ["memory.strategy=[{use='gradient-checkpointing'}, {use='fused-lora'}]", "model.dtype='bfloat16'"],
    ],
    ids=["full", "nf4", "fused"],
)
def test_it_finds_what_other_runs_found(tmp_path: Path, overrides: list[str]) -> None:
    _is_what_the_run_found(finished(tmp_path, "train.steps=3", *overrides))


def test_packed_runs_are_evaluated_as_they_were(tmp_path: Path) -> None:
    stages = "data.stage=[{use='chat'}, {use='tokenize'}, {use='truncate'}, {use='pack'}, {use='pad'}]"
    _is_what_the_run_found(finished(tmp_path, "train.steps=3", "train.micro_batch=1", stages))


def test_a_person_reads_what_the_run_printed(run: Path) -> None:
    out, err = ft("eval", run)
    loss = evaluations(run)[-1]["loss"]
    assert out.startswith(f"held out after 6 steps: loss {loss:.4f}, exact match 0.0 % (0 of 4)")
    assert "note:" not in err


def test_on_another_file(run: Path, tmp_path: Path) -> None:
    same = shutil.copy(run.parent / "recipe" / "held_out.jsonl", tmp_path / "same.jsonl")
    assert _eval(run, "--data", same)["loss"] == _eval(run)["loss"]
    found = _eval(run, "--data", write_tiny_data(tmp_path / "other.jsonl", rows=9), "--set", "eval.exact_match=false")
    assert found["rows"] == 9
    assert "exact_match" not in found


def test_a_run_that_holds_nothing_out(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    without(copy / "recipe.toml", "eval")
    assert refused("eval", copy).endswith("its recipe holds no data out. Give a file to evaluate on: --data FILE")
    held_out = run.parent / "recipe" / "held_out.jsonl"
    assert _eval(copy, "--data", held_out)["loss"] == _eval(run)["loss"]


def test_a_checkpoint(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints"))
    (copy / "checkpoints" / "step-5").mkdir(parents=True)
    shutil.move(copy / "adapter", copy / "checkpoints" / "step-5" / "adapter")
    write_manifest(copy / "checkpoints" / "step-5", 5)
    found = _eval(copy, "--checkpoint", "last")
    assert (found["checkpoint"], found["step"], found["loss"]) == ("step-5", 5, evaluations(run)[-1]["loss"])
    assert "note: the run has not ended: this is its checkpoint step-5" in ft("eval", copy)[1]


def test_what_was_trained_cannot_be_set(run: Path, tmp_path: Path) -> None:
    assert "--set takes keys of [eval] alone" in refused("eval", run, "--set", "adapter.r=8")
    assert "no such file" in refused("eval", run, "--data", tmp_path / "no.jsonl")
