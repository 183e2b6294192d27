"""Rows that are held out: a run of before 0.2, where each row told by itself, goes on with its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w

from fitune import RunError
from fitune.recipe.reader import read_recipe
from fitune.runs.identity import read_identity
from fitune.testing import open_registry, write_recipe
from fitune.train.start import start_of
from support.after_runs import ft
from support.prepared import held_out, numbered, origins
from support.resuming import stop
from support.tiny import metrics

ROWS, SHARE = 20, 0.3


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose share is six of its rows, where each row by itself makes five."""
    path = write_recipe(tmp_path / "recipe", {"eval": {"fraction": SHARE}, "train": {"steps": 3}})
    (path.parent / "data.jsonl").write_text(numbered(ROWS), encoding="utf-8")
    return path


@pytest.fixture
def old(recipe: Path, tmp_path: Path) -> Path:
    """A run that was stopped after two steps, with what a release wrote that knew one rule."""
    run = tmp_path / "run"
    asked = recipe.read_text(encoding="utf-8")
    recipe.write_text(asked.replace("fraction =", 'split = "by_row"\nfraction ='), encoding="utf-8")
    stop(recipe, run, 2)
    recipe.write_text(asked, encoding="utf-8")
    identity = json.loads((run / "identity.json").read_text(encoding="utf-8"))
    del identity["sha256"], identity["place"], identity["recipe"]["eval"]["split"]
    text = json.dumps(identity).replace("../recipe/", f"{recipe.parent}/")
    (run / "identity.json").write_text(text, encoding="utf-8")
    written: dict[str, Any] = tomli.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    del written["eval"]["split"]
    text = tomli_w.dumps(written).replace("../recipe/", f"{recipe.parent}/")
    (run / "recipe.toml").write_text(text, encoding="utf-8")
    return run


def test_the_rules_differ_here(recipe: Path) -> None:
    exact, by_row = origins(held_out(recipe)), origins(held_out(recipe, "eval.split=by_row"))
    assert len(exact) == ROWS * SHARE
    assert exact != by_row


def test_an_old_run_has_its_own_rows(old: Path, recipe: Path) -> None:
    assert origins(held_out(old / "recipe.toml")) == origins(held_out(recipe, "eval.split=by_row"))
    identity = read_identity(old)
    assert identity is not None
    assert identity.recipe["eval"]["split"] == "by_row"


@pytest.mark.parametrize("how", ["by its directory", "by its recipe", "by a recipe that is read"])
def test_an_old_run_goes_on(how: str, old: Path, recipe: Path) -> None:
    if how == "by its directory":
        ft("run", old)
    elif how == "by its recipe":
        ft("run", recipe, "--resume", "--out", old)
    else:
        registry = open_registry()
        found = start_of(read_recipe(recipe, registry), registry, (), out=old, resume=True, allowed=())
        assert found.recipe.evaluation.split == "by_row"
        return
    assert [line["step"] for line in metrics(old)][-1] == 3
    kept = tomli.loads((old / "recipe.toml").read_text(encoding="utf-8"))
    assert kept["eval"]["split"] == "by_row"


def test_another_rule_is_another_run(old: Path, recipe: Path) -> None:
    registry, asked = open_registry(), ["eval.split=exact"]
    with pytest.raises(RunError, match=r'eval\.split: "by_row" before, "exact" now'):
        start_of(recipe, registry, asked, out=old, resume=True, allowed=())


def test_a_new_run_keeps_its_rule(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop(recipe, run, 2)
    identity = read_identity(run)
    assert identity is not None
    assert identity.recipe["eval"]["split"] == "exact"
    assert origins(held_out(run / "recipe.toml")) == origins(held_out(recipe))
