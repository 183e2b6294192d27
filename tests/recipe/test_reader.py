"""A recipe's text to a recipe: what it becomes, where its paths lead, and that it can be written and read again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w

from fitune import Problem, Recipe, hookimpl
from fitune.errors import RecipeError
from fitune.plugin.recipe import Use
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from fitune_plugins.loaders.hf import HfOptions
from fitune_plugins.memory.accumulation import AccumulationOptions
from support.light import LIGHT, write_light

PLUGIN = """\
import fitune

@fitune.hookimpl
def ft_step_done():
    pass
"""
FULL = LIGHT.replace(
    'name = "light"', 'name = "Läuft \\"gut\\" 100 %"\nseed = 7\nplugins = ["mine.py"]'
) + (
    'epochs = 1.5\nlearning_rate = 3e-5\nschedule = "linear"\nwarmup_steps = 2\n'
    '[[listener]]\nuse = "metrics"\nevery = 5\n'
    '[eval]\nexact_match = true\n[[eval.source]]\nuse = "jsonl"\npath = "held_out.jsonl"\n'
)  # fmt: skip


def read(path: Path, *overrides: str) -> Recipe:
    return read_recipe(path, open_registry(), overrides)


def source_paths(recipe: Recipe) -> list[Path]:
    return [use.options.path for use in recipe.sources]


@pytest.fixture
def light(tmp_path: Path) -> Path:
    """A recipe in a directory that is not the working one."""
    directory = tmp_path / "beside"
    directory.mkdir()
    path = write_light(directory)
    (directory / "held_out.jsonl").write_text("{}\n", encoding="utf-8")
    (directory / "mine.py").write_text(PLUGIN, encoding="utf-8")
    return path


def test_tables_become_records_and_options(light: Path) -> None:
    recipe = read(light)
    assert recipe.path == light
    assert recipe.general.name == "light"
    assert recipe.model.record.name == "hf"
    assert recipe.model.options == HfOptions(path=light.parent / "model")
    assert [(use.record.name, use.options) for use in recipe.strategies] == [
        ("accumulation", AccumulationOptions(steps=2))
    ]
    assert recipe.train.steps == 3
    assert recipe.eval_sources == ()


def test_strategies_keep_the_order_in_which_they_stand(light: Path) -> None:
    order = ["pinned-memory", "chunked-loss", "accumulation", "gradient-checkpointing"]
    tables = ", ".join(f'{{use="{name}"{", steps=2" if name == "accumulation" else ""}}}' for name in order)
    assert [use.record.name for use in read(light, f"memory.strategy=[{tables}]").strategies] == order


def test_listeners_that_are_there_by_default_come_first_and_keep_a_fixed_order(light: Path) -> None:
    def names(*overrides: str) -> list[str]:
        return [use.record.name for use in read(light, *overrides).listeners]

    assert names() == ["console", "memory", "metrics", "record"]
    assert names('listener=[{use="spot-notice", cloud="aws"}, {use="memory"}]') == [
        "console", "metrics", "record", "spot-notice", "memory",
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------- written, read again


@pytest.mark.parametrize("text", [LIGHT, FULL], ids=["light", "full"])
@pytest.mark.parametrize("sets", [(), ("data.path=other.jsonl", "seed=9")], ids=["plain", "overridden"])
def test_what_is_written_reads_back_equal_from_anywhere(
    text: str, sets: tuple[str, ...], light: Path, tmp_path: Path
) -> None:
    light.write_text(text, encoding="utf-8")
    (tmp_path / "other.jsonl").write_text("{}\n", encoding="utf-8")
    first = read(light, *sets)
    elsewhere = tmp_path / "runs" / "r.toml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(tomli_w.dumps(first.to_toml()), encoding="utf-8")

    second = read(elsewhere)

    def comparable(recipe: Recipe) -> object:
        uses: tuple[Use[Any], ...] = (
            recipe.model,
            recipe.adapter,
            *recipe.strategies,
            *recipe.sources,
            *recipe.stages,
            *recipe.eval_sources,
            *recipe.listeners,
        )
        core = (recipe.general, recipe.data, recipe.train, recipe.evaluation, recipe.checkpoint)
        return core, [(use.record.name, use.options) for use in uses]

    assert comparable(second) == comparable(first)
    assert second.to_toml() == first.to_toml()


def test_what_is_written_is_explicit(light: Path) -> None:
    table = tomli.loads(tomli_w.dumps(read(light).to_toml()))
    assert table["adapter"] == {
        "use": "lora", "r": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["q_proj", "v_proj"], "ranks": [],
        "rslora": False, "dora": False, "dtype": "base", "init": "default", "modules_to_save": [],
    }  # fmt: skip
    assert [stage["use"] for stage in table["data"]["stage"]] == ["detect", "chat", "tokenize", "truncate", "pad"]
    assert table["train"]["beta2"] == 0.999
    assert "eval" not in table


# ------------------------------------------------------------------------------------------------------------ paths


def test_paths_of_a_recipe_are_from_its_directory(light: Path) -> None:
    light.write_text(FULL, encoding="utf-8")
    recipe = read(light)
    assert recipe.model.options.path == light.parent / "model"
    assert source_paths(recipe) == [light.parent / "data.jsonl"]
    assert recipe.eval_sources[0].options.path == light.parent / "held_out.jsonl"
    assert recipe.general.plugins == (light.parent / "mine.py",)


def test_paths_of_a_recipe_that_is_named_relatively_are_absolute_too(light: Path, tmp_path: Path) -> None:
    assert source_paths(read(light.relative_to(tmp_path))) == [light.parent / "data.jsonl"]


def test_paths_of_set_are_from_the_working_directory(light: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "mine.py").write_text(PLUGIN, encoding="utf-8")
    recipe = read(light, "data.source.0.path=data.jsonl", 'plugins=["mine.py"]')
    assert source_paths(recipe) == [tmp_path / "data.jsonl"]
    assert recipe.general.plugins == (tmp_path / "mine.py",)
    assert recipe.model.options.path == light.parent / "model"


def test_a_path_may_start_at_home(light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine.jsonl").write_text("{}\n", encoding="utf-8")
    assert source_paths(read(light, "data.path=~/mine.jsonl")) == [tmp_path / "mine.jsonl"]


# ------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("mine.jsonl", "jsonl"),
        ("mine.ndjson", "jsonl"),
        ("mine.json", "json"),
        ("mine.CSV", "csv"),
        ("mine.tsv", "csv"),
        ("mine.parquet", "parquet"),
        ("mine.txt", "txt"),
        ("mine.jsonl.gz", "jsonl"),
        ("mine.v2.Json.Zst", "json"),
        ("with space = and #.jsonl", "jsonl"),
    ],
)
def test_a_local_file_replaces_all_sources_and_is_read_by_its_suffix(
    name: str, source: str, light: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("{}\n", encoding="utf-8")
    recipe = read(light, f"data.path={name}" if "#" not in name else f'data.path="{name}"')
    assert [use.record.name for use in recipe.sources] == [source]
    assert source_paths(recipe) == [tmp_path / name]


@pytest.mark.parametrize(("name", "said"), [("mine", "files without a suffix"), ("mine.data", ".data")])
def test_a_local_file_of_no_known_suffix_is_an_error(name: str, said: str, light: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        read(light, f"data.path={name}")
    assert error.value.lines == (
        f"--set data.path={name}: no source reads {said}: {tmp_path / name}. "
        "Known suffixes: .csv, .json, .jsonl, .ndjson, .parquet, .tsv, .txt",
    )


def test_a_local_file_stands_in_for_sources_that_are_not_here(light: Path) -> None:
    (light.parent / "data.jsonl").unlink()
    mine = light.parent / "mine.jsonl"
    mine.write_text("{}\n", encoding="utf-8")
    assert source_paths(read(light, f"data.path={mine}")) == [mine]


def test_a_source_that_is_replaced_is_read_strictly_all_the_same(light: Path) -> None:
    light.write_text(LIGHT.replace('path = "data.jsonl"', 'pth = "data.jsonl"'), encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        read(light, f"data.path={light.parent / 'data.jsonl'}")
    assert error.value.lines == (
        f'{light}:14: [data.source]: "path" is missing. Add it; it takes: path',
        f'{light}:16: [data.source] pth: unknown key "pth". Did you mean "path"?',
    )


def test_a_local_file_needs_no_source_in_the_recipe(light: Path) -> None:
    light.write_text(LIGHT.replace('[[data.source]]\nuse = "jsonl"\npath =', "[data]\npath ="), encoding="utf-8")
    assert source_paths(read(light)) == [light.parent / "data.jsonl"]


def test_a_local_file_leaves_the_held_out_data_alone(light: Path) -> None:
    light.write_text(FULL, encoding="utf-8")
    mine = light.parent / "mine.jsonl"
    mine.write_text("{}\n", encoding="utf-8")
    assert read(light, f"data.path={mine}").eval_sources[0].options.path == light.parent / "held_out.jsonl"


@pytest.mark.parametrize(
    ("stages", "chain"),
    [
        ('[{use="chat"}]', ["detect", "chat", "tokenize", "truncate", "pad"]),
        ('[{use="detect"}, {use="chat"}]', ["detect", "chat", "tokenize", "truncate", "pad"]),
        ('[{use="alpaca"}, {use="chat"}]', ["alpaca", "chat", "tokenize", "truncate", "pad"]),
        ('[{use="plain-text"}]', ["plain-text", "tokenize", "truncate", "pad"]),
        ('[{use="chat"}, {use="tokenize"}]', ["detect", "chat", "tokenize", "truncate", "pad"]),
        ('[{use="chat"}, {use="tokenize"}, {use="pad"}]', ["detect", "chat", "tokenize", "pad"]),
        ('[{use="chat"}, {use="tokenize"}, {use="truncate", policy="drop"}]',
         ["detect", "chat", "tokenize", "truncate", "pad"]),
        ('[{use="chat"}, {use="tokenize"}, {use="truncate"}, {use="pack"}]',
         ["detect", "chat", "tokenize", "truncate", "pack", "pad"]),
        ('[{use="chat"}, {use="tokenize"}, {use="truncate"}, {use="pad", to="length"}]',
         ["detect", "chat", "tokenize", "truncate", "pad"]),
    ],
)  # fmt: skip
def test_the_chain_of_stages_is_closed_up_to_batches(stages: str, chain: list[str], light: Path) -> None:
    recipe = read(light, f"data.stage={stages}")
    assert [use.record.name for use in recipe.stages] == chain
    assert recipe.stages[-1].record.gives == "batches"


def test_a_stage_that_the_recipe_names_keeps_its_options(light: Path) -> None:
    recipe = read(light, 'data.stage=[{use="chat"}, {use="tokenize"}, {use="truncate", policy="left"}]')
    assert recipe.stages[3].options.policy == "left"


# ------------------------------------------------------------------------------------------------- plugins' own checks


class Refuses:
    """A plugin that finds fault with a recipe that has no other fault."""

    @hookimpl
    def ft_check(self, recipe: Recipe) -> Iterable[Problem]:
        """Find it."""
        if recipe.train.length > 100:
            yield Problem(key="train.length", what="longer than this card can take", fix="Use 100 at most")
        yield Problem(key="memory.strategy.0.steps", what="an even number")


def test_problems_of_plugins_have_their_places_too(light: Path) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe(light, open_registry(Refuses()), ["train.length=200"])
    assert error.value.lines == (
        "--set train.length=200: longer than this card can take. Use 100 at most",
        f"{light}:12: [memory.strategy] steps: an even number",
    )


def test_plugins_are_not_asked_about_a_recipe_with_problems(light: Path) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe(light, open_registry(Refuses()), ["train.steps=0"])
    assert error.value.lines == ('--set train.steps=0: "steps" is 0. It takes: integer >= 1',)


def test_one_recipe_is_equal_to_itself_read_twice(light: Path) -> None:
    registry = open_registry()
    first, second = read_recipe(light, registry), read_recipe(light, registry)
    assert first == second
    assert first != replace(second, general=replace(second.general, seed=1))
