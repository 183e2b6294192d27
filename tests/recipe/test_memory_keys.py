"""The keys of a recipe that leave strategies, or the cut of a step, to be chosen: what they mean, and what is wrong."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tomli_w

from fitune import Fit, MemoryStrategy, NoOptions, Strategy, hookimpl
from fitune.cli.main import main
from fitune.memory.cards.cards import card_or_budget
from fitune.plugin.recipe import Memory
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.light import LIGHT, write_light

BARE = LIGHT.replace('[[memory.strategy]]\nuse = "accumulation"\nsteps = 2\n\n', "")
"""Line 10 is the first of a table that is added."""


def written(directory: Path, memory: str = "", train: str = "", text: str = BARE) -> Path:
    """A recipe with these keys in [memory], and these in [train]."""
    if memory:
        text = text.replace("[[data.source]]", f"[memory]\n{memory}\n\n[[data.source]]")
    return write_light(directory / "recipe", text.replace("[train]", f"[train]\n{train}") if train else text)


def test_without_the_table_nothing_is_chosen_and_a_run_is_rehearsed(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path), open_registry())
    assert recipe.memory == Memory(fit=False, allow=(), fast=True, rehearse=True, recoveries=3)
    assert recipe.to_toml()["memory"] == {"fast": True, "rehearse": True, "recoveries": 3, "strategy": []}


@pytest.mark.parametrize("fit", ["true", '"a10g"', '"3090"', '"22.3GiB"'])
def test_a_recipe_with_fit_says_the_same_when_it_is_written(tmp_path: Path, fit: str) -> None:
    keys = f'fit = {fit}\nallow = ["nf4", "adamw-8bit"]\nrehearse = false\nrecoveries = 0'
    recipe = read_recipe(written(tmp_path, keys, "batch_tokens = 8192"), open_registry())
    assert (recipe.memory.allow, recipe.memory.rehearse, recipe.memory.recoveries) == (("nf4", "adamw-8bit"), False, 0)
    file = tmp_path / "again.toml"
    file.write_text(tomli_w.dumps(recipe.to_toml()), encoding="utf-8")
    again = read_recipe(file, open_registry())
    assert again.to_toml() == recipe.to_toml()
    assert (again.memory, again.train) == (recipe.memory, recipe.train)


def test_strategies_may_stand_beside_fit(tmp_path: Path) -> None:
    both = LIGHT.replace("[[memory.strategy]]", "[memory]\nfit = true\n\n[[memory.strategy]]")
    recipe = read_recipe(written(tmp_path, text=both), open_registry())
    assert recipe.memory.fit is True
    assert [use.record.name for use in recipe.strategies] == ["accumulation"]


def test_a_cards_description_is_found_from_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = written(tmp_path, 'fit = "mine.toml"')
    card = "\n".join(
        [
            'name = "mine"\nmemory = "10GiB"\ncontext = "512MiB"\ncontext_source = "assumed"\ncapability = [8, 0]',
            'bandwidth = 100.0\nhost_link = 10.0\nsource = "made up"\n[matmul]\nfloat32 = 10.0',
        ]
    )
    (recipe.parent / "mine.toml").write_text(card, encoding="utf-8")
    read = read_recipe(recipe, open_registry())
    assert read.memory.fit == str(recipe.parent / "mine.toml")
    (tmp_path / "here.toml").write_text(card, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    set_here = read_recipe(recipe, open_registry(), ['memory.fit="here.toml"'])
    assert set_here.memory.fit == str(tmp_path / "here.toml")


def test_a_card_whose_name_is_a_number_is_no_size() -> None:
    assert card_or_budget("3090").name == "RTX 3090"
    assert card_or_budget("12GiB").memory == 12 * 2**30


MAY = "adamw-8bit, fp8, host-embeddings, nf4, offload-checkpoints"


@pytest.mark.parametrize(
    ("memory", "train", "errors"),
    [
        ('fit = "a11g"', "", ['r.toml:11: [memory] fit: no card is known as "a11g". Did you mean "A10G"? A .toml file can describe one of your own. Or write fit = true for this machine\'s GPU']),
        ('fit = "22.3"', "", ['r.toml:11: [memory] fit: "22.3" is not a size. Write a number above 0 and a unit: 22.3GiB, 24GB, 512MiB or 2000000000B. Or write fit = true for this machine\'s GPU']),
        ("fit = 24", "", ['r.toml:11: [memory] fit: "fit" is 24. It takes: true or false or string']),
        ("fits = true", "", ['r.toml:11: [memory] fits: unknown key "fits". Did you mean "fit"?']),
        ("strategies = 1", "", ['r.toml:11: [memory] strategies: unknown key "strategies". Did you mean "strategy"?']),
        ("recoveries = -1", "", ['r.toml:11: [memory] recoveries: "recoveries" is -1. It takes: integer >= 0']),
        ('rehearse = "no"', "", ['r.toml:11: [memory] rehearse: "rehearse" is "no". It takes: true or false']),
        ('allow = ["nf4"]', "", ['r.toml:11: [memory] allow: "allow" has no effect without "fit". Set fit, e.g. fit = true, or name the strategies as [[memory.strategy]]']),
        ('fit = true\nallow = ["nf5"]', "", ['r.toml:12: [memory] allow: there is no memory strategy "nf5". Did you mean "nf4"?']),
        ('fit = true\nallow = ["zzz"]', "", [f'r.toml:12: [memory] allow: there is no memory strategy "zzz". Known: {MAY}']),
        ('fit = true\nallow = ["chunked-loss"]', "", ['r.toml:12: [memory] allow: "chunked-loss" needs no permission. Remove it']),
        ('fit = true\nallow = ["accumulation"]', "", ['r.toml:12: [memory] allow: "accumulation" is never chosen by itself. Name it: [[memory.strategy]] use = "accumulation"']),
        ('fit = true\nallow = ["nf4", "nf4"]', "", ['r.toml:12: [memory] allow: "nf4" stands in the list already. Remove it here']),
        ("fit = true", "length = 1024\nbatch_tokens = 3000", ['r.toml:22: [train] batch_tokens: "batch_tokens" is 3000, which is no multiple of length = 1024. Give 2048 or 3072']),
        ("fit = true", "batch_tokens = 100", ['r.toml:21: [train] batch_tokens: "batch_tokens" is 100, which is no multiple of length = 2048. Give 2048']),
        ("fit = true", "batch_tokens = 4096\nmicro_batch = 2", ['r.toml:22: [train] micro_batch: "micro_batch" says what "batch_tokens" leaves to be chosen. Keep one of them']),
        ("", "batch_tokens = 4096", ['r.toml:18: [train] batch_tokens: "batch_tokens" has no effect without [memory] fit, which cuts a step into micro-batches. Set it, e.g. fit = true, or give micro_batch and accumulation']),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], memory: str, train: str, errors: Sequence[str]
) -> None:
    assert told(capsys, written(tmp_path, memory, train)) == errors


def test_a_step_that_is_cut_already_leaves_nothing_to_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = LIGHT.replace("[[memory.strategy]]", "[memory]\nfit = true\n\n[[memory.strategy]]")
    assert told(capsys, written(tmp_path, train="batch_tokens = 4096", text=text)) == [
        'r.toml:13: [memory.strategy]: "accumulation" says what [train] batch_tokens leaves to be chosen. Keep one of them'
    ]


def test_what_is_named_need_not_be_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = (
        '[memory]\nfit = true\nallow = ["adamw-8bit"]\n\n[[memory.strategy]]\nuse = "adamw-8bit"\n\n[[memory.strategy]]'
    )
    lines = told(capsys, written(tmp_path, text=LIGHT.replace("[[memory.strategy]]", table)))
    assert lines == ['r.toml:12: [memory] allow: "adamw-8bit" stands as a [[memory.strategy]] already. Remove it here']


def test_a_plugins_strategy_of_which_nobody_says_that_it_is_exact_must_be_allowed(tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def ft_memory_strategies(self) -> list[MemoryStrategy[NoOptions]]:
            return [
                MemoryStrategy(name="odd", summary="Odd", options=NoOptions, make=lambda options: Strategy(), fit=Fit())
            ]

    recipe = read_recipe(written(tmp_path, 'fit = true\nallow = ["odd"]'), open_registry(Plugin()))
    assert recipe.memory.allow == ("odd",)


def test_a_recipe_with_fit_is_checked_without_torch(tmp_path: Path) -> None:
    recipe = written(tmp_path, 'fit = "a10g"\nallow = ["nf4"]')
    code = f"import sys; from fitune.cli.main import main; sys.argv = ['ft', 'check', {str(recipe)!r}]\ntry: main()\nexcept SystemExit as e: assert not e.code\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def told(capsys: pytest.CaptureFixture[str], recipe: Path) -> list[str]:
    """What `ft check` finds wrong."""
    with pytest.raises(SystemExit) as exit_:
        main(["check", str(recipe)])
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("error: ").removeprefix(f"{recipe.parent}/") for line in lines]
