"""Recipes that come with the program: found by name from anywhere, listed, shown, and copied whole."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from fitune.cli.main import main
from fitune.errors import RunError
from fitune.recipe.reader import read_recipe
from fitune.recipe.shipped import copy, index, located, shipped, title_of
from fitune.testing import open_registry
from support.paths import ROOT


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("given", ["quickstart", "quickstart.toml"])
def test_a_name_is_found_from_anywhere(given: str) -> None:
    assert located(Path(given)) == ROOT / "recipes" / "quickstart.toml"


def test_what_is_here_comes_first(tmp_path: Path) -> None:
    (tmp_path / "quickstart.toml").touch()
    assert located(Path("quickstart.toml")) == Path("quickstart.toml")
    assert located(Path("quickstart")) == ROOT / "recipes" / "quickstart.toml"
    (tmp_path / "quickstart").mkdir()  # a run's directory, say
    assert located(Path("quickstart")) == Path("quickstart")


@pytest.mark.parametrize("given", ["quickstrt", "sub/quickstart", "/quickstart.toml"])
def test_other_paths_stay_as_they_are(given: str) -> None:
    assert located(Path(given)) == Path(given)


def test_a_command_takes_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "quickstart", "--no-third-party"])
    assert "quickstart.toml: no problem found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("quickstrat", 'quickstrat: no such file. Did you mean "quickstart"?'),
        ("recipes/quickstart.toml", 'recipes/quickstart.toml: no such file. Did you mean "quickstart"?'),
        ("frist.toml", 'frist.toml: no such file. Did you mean "first.toml"?'),
        ("sub/secnd.toml", 'sub/secnd.toml: no such file. Did you mean "sub/second.toml"?'),
        ("other", "other: no such file. Give the path of a recipe, or a name that ft recipes lists"),
    ],
)
def test_a_name_that_is_misspelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("first.toml", "sub/second.toml"):
        (tmp_path / name).write_text("", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["check", given])
    assert capsys.readouterr().err == f"error: {told}\n"


def test_all_have_a_title_and_thirty_are_there() -> None:
    assert len(shipped()) >= 30
    assert all(title_of(path) for path in shipped().values())


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:-2]} == set(shipped())
    assert all(len(line) <= 80 for line in lines[:-2])
    main(["recipes", "--json"])
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries.keys() == shipped().keys()
    assert entries["deepseek7b_g5"]["reserved"] == index()["deepseek7b_g5"]["reserved"]


def test_one_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes", "show", "quickstart"])
    assert capsys.readouterr().out.rstrip("\n") == shipped()["quickstart"].read_text(encoding="utf-8").rstrip("\n")


def test_a_copy_is_whole_and_the_same_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes", "copy", "quickstart", "mine.toml"])
    assert capsys.readouterr().out.splitlines() == ["written: mine.toml", "written: quickstart"]
    copied = read_recipe(tmp_path / "mine.toml", open_registry())
    assert copied.sources[0].options.path == tmp_path / "quickstart" / "train.jsonl"
    original = read_recipe(shipped()["quickstart"], open_registry())
    assert copied.train == original.train
    assert "#:schema" not in (tmp_path / "mine.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("there", ["quickstart.toml", "quickstart"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).mkdir()
    with pytest.raises(RunError, match="is there already: nothing is overwritten"):
        copy("quickstart", tmp_path / "quickstart.toml")
    assert [path.name for path in tmp_path.iterdir()] == [there]


def test_a_name_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "copy"):
        with pytest.raises(SystemExit) as exit_:
            main(["recipes", command, "quickstrt"])
        assert exit_.value.code == 2
        assert 'no recipe "quickstrt" is shipped. Did you mean "quickstart"?' in capsys.readouterr().err


def test_a_wheel_has_them(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "recipes").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"fitune/shipped/{path.relative_to(ROOT / 'recipes')}" in names
