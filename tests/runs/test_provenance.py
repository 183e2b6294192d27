"""What is written beside a run about where it came from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fitune.testing import write_recipe
from support.tiny import losses, train


def _git(directory: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(directory), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _environment(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
    return found


def test_the_saved_recipe_runs_again(recipe_path: Path, tmp_path: Path) -> None:
    """From another directory, with the overrides in it, and to the same losses."""
    run = train(recipe_path, tmp_path / "one", "seed=7", "train.steps=2", 'memory.strategy=[{use="chunked-loss"}]')
    again = train(tmp_path / "one" / "recipe.toml", tmp_path / "two")
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert again.recipe.to_toml() == run.recipe.to_toml()
    assert again.recipe.general.seed == 7


def test_the_environment(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_OF_MINE", "hunter2-hunter2")
    train(recipe_path, tmp_path / "run")
    found = _environment(tmp_path / "run")
    assert found.keys() == {
        "fitune", "python", "platform", "packages", "plugins", "command", "recipe", "model_commit", "git", "devices",
    }  # fmt: skip
    import torch

    assert found["packages"]["torch"] == torch.__version__
    assert found["recipe"] == str(recipe_path)
    assert found["git"] is None  # a temporary directory is no repository
    text = "".join(file.read_text(encoding="utf-8") for file in (tmp_path / "run").glob("*.*"))
    assert "hunter2" not in text
    assert "A_SECRET_OF_MINE" not in text


@pytest.mark.parametrize("change", ["nothing", "a tracked file", "the recipe is new", "another file is new"])
def test_the_state_of_the_recipes_repository(tmp_path: Path, change: str) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    _git(recipe.parent, "init", "-q")
    _git(recipe.parent, "add", "data.jsonl" if change == "the recipe is new" else ".")
    _git(recipe.parent, "commit", "-q", "-m", "first")
    if change == "a tracked file":
        with (recipe.parent / "data.jsonl").open("a", encoding="utf-8") as data:
            data.write("\n")
    if change == "another file is new":
        (recipe.parent / "notes").touch()
    train(recipe, tmp_path / "run")
    commit = _git(recipe.parent, "rev-parse", "HEAD")
    changed = change in ("a tracked file", "the recipe is new")
    assert _environment(tmp_path / "run")["git"] == {"commit": commit, "changed": changed}


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    _git(recipe.parent, "init", "-q")
    train(recipe, tmp_path / "run")
    assert _environment(tmp_path / "run")["git"] is None


def test_without_git(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    train(recipe_path, tmp_path / "run")
    assert _environment(tmp_path / "run")["git"] is None
