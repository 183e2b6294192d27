"""The directory of a run that `ft run` is to make: what is left, and what is in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fitune.cli.main import main
from fitune.recipe import reader
from support.commands import Capture, refused
from support.light import write_light


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A recipe whose model has neither weights nor tokenizer: its run ends before it begins."""
    write_light(tmp_path)
    return "r.toml"


def test_a_run_that_never_began_leaves_no_directory(recipe: str, tmp_path: Path, capsys: Capture) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert "cannot be loaded" in refused("run", recipe, capsys=capsys)
    assert "cannot be loaded" in refused("run", recipe, "--out", "a/b/c", capsys=capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_that_was_there_stays(recipe: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine").mkdir()
    refused("run", recipe, "--out", "mine", capsys=capsys)
    refused("run", recipe, "--out", "mine/inner", capsys=capsys)
    assert list((tmp_path / "mine").iterdir()) == []


def test_nothing_is_overwritten(recipe: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years", encoding="utf-8")
    assert refused("run", recipe, "--out", "mine", capsys=capsys) == (
        "error: mine is not empty: nothing in it is overwritten. Give another --out\n"
    )
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "years"


def test_a_file_in_the_way(recipe: str, capsys: Capture) -> None:
    assert refused("run", recipe, "--out", "r.toml", capsys=capsys) == (
        "error: r.toml cannot be made: File exists. Give another --out\n"
    )
    assert refused("run", recipe, "--out", "r.toml/run", capsys=capsys) == (
        "error: r.toml/run cannot be made: Not a directory. Give another --out\n"
    )


def test_a_directory_that_may_not_be_written(
    recipe: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, who may write anywhere: the system's answer is made up.
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert refused("run", recipe, "--out", "mine", capsys=capsys) == (
        "error: mine cannot be written to: permission denied. Give another --out\n"
    )


def test_a_directory_that_may_not_be_made(
    recipe: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*arguments: object, **keywords: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", deny)
    assert refused("run", recipe, "--out", "mine", capsys=capsys) == (
        "error: mine cannot be made: Permission denied. Give another --out\n"
    )


def test_the_interrupt_key_is_no_error(recipe: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reader, "read_recipe", interrupt)
    with pytest.raises(SystemExit) as exit_:
        main(["check", recipe])
    assert exit_.value.code == 130
    assert capsys.readouterr().err.strip() == "interrupted"
