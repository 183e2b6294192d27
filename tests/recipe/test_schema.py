"""The JSON Schema of a recipe: shipped recipes pass it, broken ones do not, plugins are in it, editors can use it."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
import tomli
from annotated_types import Ge

from fitune import Adapter, Deprecation, Formerly, NoOptions, hookimpl
from fitune.plugin import deprecation
from fitune.plugin.deprecation import SCHEMA
from fitune.recipe.schema import schema_of
from fitune.testing import open_registry
from support.light import LIGHT
from support.made_plugins import giving, strategy
from support.paths import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
SHIPPED = ROOT / "recipes" / "fitune.schema.json"
FULL = (
    LIGHT
    + """
[memory]
fit = "a10g"
allow = ["nf4"]
[[memory.strategy]]
use = "gradient-checkpointing"
layers = 3
[eval]
every = 5
fraction = 0.1
[checkpoint]
steps = 10
[[listener]]
use = "metrics"
every = 2
"""
)
Table = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgedInner:
    """A table in a table."""

    depth: Annotated[int, Formerly(name="deep", since="0.1", removed_in="0.4")] = 1
    """How deep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    """Options that are not what they were."""

    rate: Annotated[int, Ge(1), Formerly(name="speed", since="0.1", removed_in="0.4")]
    """How fast."""
    slow: Annotated[bool, Deprecation(since="0.1", removed_in="0.3", instead="Write rate")] | None = None
    """Whether it is slow."""
    inner: tuple[AgedInner, ...] = ()
    """More."""


@pytest.fixture(scope="module")
def schema() -> Table:
    return schema_of(open_registry())


@pytest.fixture(scope="module")
def good() -> Table:
    return tomli.loads(FULL)


def problems(schema: Table, recipe: Table) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(recipe)]


def test_it_is_a_schema(schema: Table) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


def test_the_shipped_one_is_of_the_built_in_plugins(schema: Table) -> None:
    assert json.loads(SHIPPED.read_text()) == schema, "ft schema --no-third-party --out recipes/fitune.schema.json"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_pass_and_name_it(path: Path, schema: Table) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#:schema ./fitune.schema.json\n")
    assert problems(schema, tomli.loads(text)) == []


def put(*at: str | int, value: object) -> Callable[[Table], None]:
    def change(recipe: Table) -> None:
        table: Any = recipe
        for part in at[:-1]:
            table = table.setdefault(part, {}) if isinstance(table, dict) else table[part]
        table[at[-1]] = value

    return change


def drop(*at: str | int) -> Callable[[Table], None]:
    def change(recipe: Table) -> None:
        table: Any = recipe
        for part in at[:-1]:
            table = table[part]
        del table[at[-1]]

    return change


STRATEGY, SOURCE = ("memory", "strategy", 1), ("data", "source", 0)
BROKEN: dict[str, Callable[[Table], None]] = {
    "no name": drop("name"),
    "no model": drop("model"),
    "no adapter": drop("adapter"),
    "no data": drop("data"),
    "name a number": put("name", value=3),
    "seed a text": put("seed", value="42"),
    "seed negative": put("seed", value=-1),
    "seed too large": put("seed", value=2**32),
    "deterministic a number": put("deterministic", value=1),
    "plugins a text": put("plugins", value="mine.py"),
    "unknown key at the top": put("epochs", value=1),
    "unknown table": put("trian", value={}),
    "model without use": drop("model", "use"),
    "model of no plugin": put("model", "use", value="gpt5"),
    "model a text": put("model", value="hf"),
    "key of another loader": put("model", "rank", value=4),
    "adapter of no plugin": put("adapter", "use", value="lorra"),
    "adapter's rank a text": put("adapter", "r", value="4"),
    "adapter's rank zero": put("adapter", "r", value=0),
    "adapter's dropout one": put("adapter", "dropout", value=1.0),
    "adapter's targets empty": put("adapter", "targets", value=[]),
    "adapter's unknown key": put("adapter", "rank", value=4),
    "adapter's dtype": put("adapter", "dtype", value="int8"),
    "adapter an array": put("adapter", value=[{"use": "lora"}]),
    "fit a number": put("memory", "fit", value=22.3),
    "allow a text": put("memory", "allow", value="nf4"),
    "recoveries negative": put("memory", "recoveries", value=-1),
    "memory's unknown key": put("memory", "stratgy", value=[]),
    "strategy a table": put("memory", "strategy", value={"use": "nf4"}),
    "strategy of no plugin": put(*STRATEGY, "use", value="checkpointing"),
    "strategy without use": drop(*STRATEGY, "use"),
    "strategy's unknown key": put(*STRATEGY, "steps", value=4),
    "strategy's layers zero": put(*STRATEGY, "layers", value=0),
    "strategy's part": put(*STRATEGY, "part", value="head"),
    "data's unknown key": put("data", "streaming", value=True),
    "data's bad rows": put("data", "bad_rows", value="ignore"),
    "data's share above one": put("data", "max_empty", value=1.5),
    "source of no plugin": put(*SOURCE, "use", value="csvv"),
    "source is a stage": put(*SOURCE, "use", value="chat"),
    "source's weight zero": put(*SOURCE, "weight", value=0),
    "source's unknown key": put(*SOURCE, "split", value="train"),
    "stage is a source": put("data", "stage", value=[{"use": "jsonl", "path": "a.jsonl"}]),
    "length one": put("train", "length", value=1),
    "length a number with a point": put("train", "length", value=2048.5),
    "micro batch zero": put("train", "micro_batch", value=0),
    "steps zero": put("train", "steps", value=0),
    "learning rate zero": put("train", "learning_rate", value=0),
    "schedule": put("train", "schedule", value="cosin"),
    "beta one": put("train", "beta2", value=1.0),
    "train's unknown key": put("train", "lr", value=1e-4),
    "train a text": put("train", value="fast"),
    "eval's fraction one": put("eval", "fraction", value=1.0),
    "eval's unknown key": put("eval", "metric", value="loss"),
    "checkpoint's keep zero": put("checkpoint", "keep", value=0),
    "checkpoint's unknown key": put("checkpoint", "every", value=5),
    "listener of no plugin": put("listener", 0, "use", value="wandbb"),
    "listener a table": put("listener", value={"use": "metrics"}),
}


def test_what_is_broken_below_is_right_before(schema: Table, good: Table) -> None:
    assert problems(schema, good) == []
    assert len(BROKEN) >= 50


@pytest.mark.parametrize("name", BROKEN)
def test_broken_recipes_are_refused(name: str, schema: Table, good: Table) -> None:
    recipe = copy.deepcopy(good)
    BROKEN[name](recipe)
    assert problems(schema, recipe)


def test_another_plugin_is_in_it(good: Table) -> None:
    class Mine:
        @hookimpl
        def ft_adapters(self) -> list[Adapter[NoOptions]]:
            return [Adapter(name="mine", summary="Mine", options=NoOptions, attach=lambda o, m: m, save=print)]

    registry = open_registry()
    registry.register(Mine(), "mine")
    recipe = {**good, "adapter": {"use": "mine"}}
    assert problems(schema_of(registry), recipe) == []
    assert problems(schema_of(open_registry()), recipe)


@pytest.mark.skipif(shutil.which("tombi", path=str(Path(sys.executable).parent)) is None, reason="needs tombi")
def test_two_providers_of_a_name_are_told_apart_in_it(good: Table) -> None:
    class Other:
        @hookimpl
        def ft_adapters(self) -> list[Adapter[Any]]:
            sound: Table = {"summary": "For a test", "options": NoOptions, "attach": id, "save": print}
            return [Adapter(name="lora", **sound), Adapter(name="single", **sound)]

    found = schema_of(open_registry(Other()))
    for name, right in (
        ("plugin-1:lora", True), ("fitune:lora", True), ("lora", False), ("single", True), ("plugin-1:single", True),
        ("none", True), ("fitune:single", False),
    ):  # fmt: skip
        assert (problems(found, {**good, "adapter": {"use": name}}) == []) is right, name


def test_an_editors_linter_knows_it(tmp_path: Path) -> None:
    linter = str(Path(sys.executable).parent / "tombi")
    shutil.copy(SHIPPED, tmp_path)
    shutil.copy(RECIPES[0], tmp_path / "good.toml")
    bad = RECIPES[0].read_text(encoding="utf-8").replace("[adapter]\n", "[adapter]\nrank = 4\n")
    (tmp_path / "bad.toml").write_text(bad, encoding="utf-8")

    def lint(name: str) -> subprocess.CompletedProcess[str]:
        command = [linter, "lint", "--offline", name]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    assert lint("good.toml").returncode == 0
    refused = lint("bad.toml")
    assert refused.returncode != 0
    assert '"rank" is not allowed' in refused.stdout + refused.stderr


# ----------------------------------------------------------------------------------------------------------- deprecated


def table_of(schema: Table, use: str) -> list[Table]:
    """What the schema has for a memory strategy that is named so."""
    every = schema["properties"]["memory"]["properties"]["strategy"]["items"]["oneOf"]
    return [one for one in every if one["title"] == use]


def aged_schema() -> Table:
    mark = Deprecation(since="0.1", removed_in="0.3", instead="Write rate")
    formerly = (Formerly(name="older", since="0.1", removed_in="0.4"),)
    renamed = strategy("new", options=Aged, formerly=formerly)
    return schema_of(open_registry(giving(renamed, strategy("going", deprecated=mark))))


def with_strategy(good: Table, **table: object) -> Table:
    return {**good, "memory": {"strategy": [table]}}


def test_what_is_deprecated_is_marked_so(good: Table) -> None:
    schema = aged_schema()
    (new,), (old,), (going,) = (table_of(schema, name) for name in ("new", "older", "going"))
    assert "deprecated" not in new["properties"]["use"]
    assert old["properties"]["use"]["deprecated"] is going["properties"]["use"]["deprecated"] is True
    assert old["description"].endswith('"older" is deprecated since fitune 0.1 and gone in 0.4. Write "new"')
    keys = new["properties"]
    assert (keys["rate"], keys["speed"]["deprecated"], keys["slow"]["deprecated"]) == (
        {"type": "integer", "minimum": 1, "description": "How fast."}, True, True,
    )  # fmt: skip
    assert keys["speed"]["description"] == '"speed" is deprecated since fitune 0.1 and gone in 0.4. Write "rate"'
    assert keys["speed"]["minimum"] == 1
    inner = schema["$defs"]["AgedInner"]["properties"]
    assert (inner["deep"]["deprecated"], "deprecated" in inner["depth"]) == (True, False)
    for table in (
        {"use": "new", "rate": 2}, {"use": "new", "speed": 2, "slow": True}, {"use": "older", "rate": 2},
        {"use": "new", "rate": 2, "inner": [{"deep": 1}]},
    ):  # fmt: skip
        assert problems(schema, with_strategy(good, **table)) == [], table
    assert problems(schema, with_strategy(good, use="new", speed=0)) != []
    text = json.dumps(schema)
    assert SCHEMA not in text, "a mark that is not finished"


def test_what_is_gone_is_not_in_it(good: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecation, "__version__", "0.4")
    schema = aged_schema()
    assert table_of(schema, "older") == table_of(schema, "going") == []
    (new,) = table_of(schema, "new")
    assert set(new["properties"]) == {"use", "rate", "inner"}
    assert new["required"] == ["use", "rate"]
    assert problems(schema, with_strategy(good, use="new", speed=2)) != []
    assert "log" not in schema["properties"]
    assert "spot" not in schema["properties"]["checkpoint"]["properties"]


def test_keys_of_0_1_are_marked_as_long_as_they_are_read(schema: Table, good: Table) -> None:
    log = schema["properties"]["log"]
    assert log["deprecated"] is log["properties"]["every"]["deprecated"] is True
    assert problems(schema, {**good, "log": {"every": 2, "tracker": "wandb"}, "checkpoint": {"spot": "aws"}}) == []
    assert problems(schema, {**good, "log": {"every": 0}}) != []
    assert problems(schema, {**good, "log": {"evry": 2}}) != []
