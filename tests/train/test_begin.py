"""`fitune.run`, which is `ft run` from Python: the same files, the same numbers, the same errors."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

import fitune
from fitune import FtError, Interrupted, Recipe, RecipeError, RunError
from fitune.recipe.reader import read_recipe
from fitune.runs.lock import RunLock
from fitune.testing import open_registry, write_recipe, write_tiny_data
from support.after_runs import ft
from support.resuming import Stopper

TIMED = ("seconds", "tokens_per_second", "host_memory_peak", "bytes")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe, evaluated with answers."""
    source = {"exact_match": True, "max_new_tokens": 3, "source": [{"use": "jsonl", "path": "held_out.jsonl"}]}
    path = write_recipe(tmp_path / "recipe", {"eval": source})
    write_tiny_data(path.parent / "held_out.jsonl", rows=2)
    return path


def files(directory: Path) -> set[str]:
    """All that a run has left."""
    return {str(place.relative_to(directory)) for place in directory.rglob("*") if place.is_file()}


def lines(directory: Path) -> list[dict[str, Any]]:
    """The metrics, without times and memory."""
    read = map(json.loads, (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if key not in TIMED} for line in read]


def test_it_leaves_the_files_of_ft_run_with_equal_numbers(recipe: Path, tmp_path: Path) -> None:
    ft("run", recipe, "--out", tmp_path / "by-command")
    made = fitune.run(str(recipe), tmp_path / "from-python", registry=open_registry())
    assert made == tmp_path / "from-python"
    assert files(made) == files(tmp_path / "by-command")
    assert files(made) >= {
        "adapter/README.md", "metrics.jsonl", "run.json", "recipe.toml", "environment.json", "identity.json",
        "examples.json", "adapter/adapter_model.safetensors", "checkpoints/step-3/manifest.json",
    }  # fmt: skip
    assert lines(made) == lines(tmp_path / "by-command")
    assert (made / "recipe.toml").read_text() == (tmp_path / "by-command" / "recipe.toml").read_text()
    assert json.loads((made / "run.json").read_text())["state"] == "done"


def test_it_takes_a_recipe_that_was_read_and_changed(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "mine.py").write_text(
        "from fitune import hookimpl\n@hookimpl\ndef ft_step_done(run, step):\n"
        "    (run.directory / 'seen').write_text(str(step.step))\n"
    )
    read = read_recipe(
        recipe, open_registry(), ['plugins=["mine.py"]'.replace("mine.py", str(recipe.parent / "mine.py"))]
    )
    shorter = dataclasses.replace(read, train=dataclasses.replace(read.train, steps=2))
    assert isinstance(shorter, Recipe)
    made = fitune.run(shorter)
    assert made.parent == Path("runs")
    assert [line["step"] for line in lines(made) if line["event"] == "step"] == [1, 2]
    assert (made / "seen").read_text() == "2"  # its plugins are loaded
    with pytest.raises(RunError, match="overrides are for a recipe that is read from a file"):
        fitune.run(shorter, overrides=["seed=1"])


def test_it_goes_on_with_a_run_and_leaves_one_that_is_done(recipe: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped after 2 of 3 steps"):
        fitune.run(recipe, place, registry=open_registry(Stopper(2)))
    assert fitune.run(place, registry=open_registry()) == place
    assert [line["step"] for line in lines(place) if line["event"] == "step"] == [1, 2, 3]
    before = (place / "metrics.jsonl").read_bytes()
    assert fitune.run(recipe, place, resume=True, registry=open_registry()) == place
    assert (place / "metrics.jsonl").read_bytes() == before
    with pytest.raises(RunError, match=r"--allow-changed train\.learning_rate"):
        fitune.run(place, overrides=["train.learning_rate=0.5"], registry=open_registry())


def test_it_refuses_what_ft_run_refuses(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown table .trian."):
        fitune.run(recipe, tmp_path / "run", overrides=["trian.steps=3"], registry=open_registry())
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with RunLock(tmp_path / "run"), pytest.raises(RunError, match="is being written by"):
        fitune.run(recipe, tmp_path / "run", registry=open_registry())


def test_nothing_of_a_run_stays_in_memory(recipe: Path, tmp_path: Path) -> None:
    """Its parts refer to each other: they stayed until Python looked for such, and a second run needed the memory."""
    gc.collect()
    gc.disable()
    try:
        fitune.run(recipe, tmp_path / "first")
        assert not models()
        with pytest.raises(FtError):
            fitune.run(recipe, tmp_path / "second", overrides=["adapter.targets=['nothing']"])
        fitune.run(recipe, tmp_path / "third")
        assert not models()
    finally:
        gc.enable()


def models() -> list[type]:
    """Of the models that are alive, the classes."""
    return [type(found) for found in gc.get_objects() if issubclass(type(found), PreTrainedModel)]


def test_the_public_module_stays_light() -> None:
    code = (
        "import sys, fitune; print(fitune.run.__module__, sorted({'torch', 'rich', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout == "fitune []\n"


def test_plugins_are_listed_without_rich_and_torch() -> None:
    code = (
        "import sys; from fitune.plugin.registry import Registry; Registry.open(third_party=False)\n"
        "print(sorted({'torch', 'rich', 'transformers', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout == "[]\n"
