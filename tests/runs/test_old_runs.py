"""Runs of 0.1, whose recipes have keys that are options of listeners now: every command opens them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w

from fitune.recipe.reader import read_recipe
from fitune.recipe.renamed import translated
from fitune.runs.identity import read_identity, recipe_differences
from fitune.testing import open_registry, write_recipe, write_tiny_data
from support.after_runs import ft
from support.resuming import stop
from support.tiny import metrics

NEW = [
    {"use": "metrics", "every": 2},
    {"use": "tracker", "name": "tensorboard", "every": 2},
    {"use": "spot-notice", "cloud": "gcp"},
]


def aged(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe as 0.1 wrote it."""
    old = {key: value for key, value in values.items() if key != "listener"}
    return {
        **old,
        "checkpoint": {**old["checkpoint"], "spot": "gcp"},
        "log": {"every": 2, "tracker": "tensorboard"},
    }


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a run of 0.1, stopped after two of four steps."""
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")  # where nobody answers
    source = {"source": [{"use": "jsonl", "path": "held_out.jsonl"}]}
    recipe = write_recipe(tmp_path / "recipe", {"train": {"steps": 4}, "eval": source})
    write_tiny_data(recipe.parent / "held_out.jsonl", rows=2)
    run = tmp_path / "run"
    stop(recipe, run, 2)
    written = tomli.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    (run / "recipe.toml").write_text(tomli_w.dumps(aged(written)), encoding="utf-8")
    identity = json.loads((run / "identity.json").read_text(encoding="utf-8"))
    del identity["sha256"], identity["place"]
    (run / "identity.json").write_text(json.dumps({**identity, "recipe": aged(identity["recipe"])}), encoding="utf-8")
    for name in ("recipe.toml", "identity.json"):  # which named places from the root
        text = (run / name).read_text(encoding="utf-8")
        (run / name).write_text(text.replace("../recipe/", f"{recipe.parent}/"), encoding="utf-8")
    return run


def test_it_is_the_same_run(old: Path) -> None:
    before = json.loads((old / "identity.json").read_text(encoding="utf-8"))["recipe"]
    assert {"log", "checkpoint"} <= before.keys()
    identity = read_identity(old)
    assert identity is not None
    assert identity.recipe["listener"] == NEW
    assert "log" not in identity.recipe
    assert "spot" not in identity.recipe["checkpoint"]
    now = {**translated(before), "listener": [{"use": "metrics", "every": 1}]}
    assert recipe_differences(identity.recipe, now) == []
    assert [one.key for one in recipe_differences(identity.recipe, {**now, "seed": 1})] == ["seed"]


def test_it_goes_on_and_its_recipe_is_written_anew(old: Path) -> None:
    ft("run", old)
    assert [line["step"] for line in metrics(old)] == [1, 2, 4]  # the first two were written one by one
    written = tomli.loads((old / "recipe.toml").read_text(encoding="utf-8"))
    assert [table["use"] for table in written["listener"]] == [
        "console", "memory", "record", "metrics", "tracker", "spot-notice",
    ]  # fmt: skip
    assert [table for table in written["listener"] if len(table) > 1 and table["use"] != "console"] == NEW
    assert "log" not in written
    assert "spot" not in written["checkpoint"]
    assert list(old.rglob("events.out.tfevents.*"))  # its tracker was heard


def test_it_goes_on_with_the_recipe_that_says_so_now(old: Path) -> None:
    out, _ = ft("run", old.parent / "recipe" / "recipe.toml", "--resume", "--out", old)
    assert "done in" in out


@pytest.mark.parametrize("command", ["eval", "generate", "merge", "plan", "runs", "show", "compare", "check"])
def test_every_command_opens_it(old: Path, tmp_path: Path, command: str) -> None:
    run: dict[str, tuple[object, ...]] = {
        "eval": ("eval", old),
        "generate": ("generate", old, "--prompt", "Count to 2.", "--max-new-tokens", "2"),
        "merge": ("merge", old, "--to", tmp_path / "merged"),
        "plan": ("plan", old / "recipe.toml", "--gpu", "a10g"),
        "runs": ("runs", old.parent),
        "show": ("runs", "show", old),
        "compare": ("runs", "compare", old, old),
        "check": ("check", old / "recipe.toml"),
    }
    out, err = ft(*run[command])
    assert "error" not in out + err


def test_a_copy_of_its_recipe_elsewhere_is_a_recipe_of_0_1(old: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.toml"
    copy.write_bytes((old / "recipe.toml").read_bytes())
    recipe = read_recipe(copy, open_registry())
    found = [line.partition(" of [")[0].rpartition(": ")[2] for line in recipe.notices]
    assert sorted(found) == ['"every"', '"spot"', '"tracker"']
    listeners: Any = recipe.to_toml()["listener"]
    assert [table for table in listeners if table in NEW] == NEW
