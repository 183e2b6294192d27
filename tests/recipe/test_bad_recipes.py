"""Every kind of bad recipe, through the command line: exit code 2, and one line for each thing that is wrong."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from fitune.cli.main import main
from support.light import LIGHT, write_light
from support.mistakes import data, listeners, memory, model, overrides, top, train
from support.mistakes.cases import HF, Case

CASES = tuple(one for table in (top, model, memory, data, train, listeners, overrides) for one in table.CASES)


def errors_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that `ft` prints for a user's mistake; checks that it prints nothing else and exits with 2."""
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--no-third-party"])
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_each_problem_is_one_line(bad: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_light(tmp_path, bad.recipe())
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "raises.py").write_text('raise ValueError("no GPU here")\n', encoding="utf-8")
    (tmp_path / "hookless.py").write_text("x = 1\n", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))

    sets = [word for text in bad.sets for word in ("--set", text)]
    found = errors_of(capsys, "run", "r.toml", *sets)

    assert found == [line.replace("{here}", str(tmp_path)).replace("{name}", tmp_path.name) for line in bad.errors]
    after = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before, "a recipe that cannot run leaves nothing behind"


def test_the_recipe_that_mistakes_are_made_in_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_light(tmp_path)
    main(["check", "r.toml", "--no-third-party"])
    assert capsys.readouterr().out.startswith("r.toml: no problem found")


def test_there_are_many_kinds_of_mistakes() -> None:
    assert len({bad.name for bad in CASES}) == len(CASES) >= 100
    assert all(bad.changes or bad.sets for bad in CASES)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "r.toml: no such file. Give the path of a recipe, or a name that ft recipes lists"),
        (b'name = "\xff"\n', "r.toml: not UTF-8 text (byte 8). Is it a recipe? Then save it as UTF-8"),
        (LIGHT.encode("utf-16"), "r.toml: not UTF-8 text (byte 0). Is it a recipe? Then save it as UTF-8"),
        (b"PK\x03\x04", "r.toml:1: not valid TOML: Expected '=' after a key in a key/value pair (column 3)"),
    ],
    ids=["missing", "not UTF-8", "UTF-16", "an archive"],
)
def test_a_file_that_is_no_recipe(
    content: bytes | None, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "r.toml").write_bytes(content)
    assert errors_of(capsys, "run", "r.toml") == [error]


def test_a_directory_is_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").mkdir()
    assert errors_of(capsys, "check", "r.toml") == ["r.toml: cannot be read: Is a directory. Give the path of a recipe"]
    assert errors_of(capsys, "run", "r.toml") == [
        "r.toml holds no run: there is no identity.json in it. Give a recipe, or the directory of a run"
    ]


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package look as if it were not installed."""
    find_spec = importlib.util.find_spec

    def find(name: str, parent: str | None = None) -> ModuleSpec | None:
        return None if name == package else find_spec(name, parent)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_a_tracker_that_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_light(tmp_path)
    hide(monkeypatch, "wandb")
    override = 'listener=[{use="tracker", name="wandb"}]'
    assert errors_of(capsys, "run", "r.toml", "--set", override) == [
        f'--set {override}: the tracker "wandb" is not installed. Install it: pip install wandb'
    ]


def test_the_gguf_reader_that_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_light(tmp_path, LIGHT.replace(HF, 'use = "gguf"\npath = "some.gguf"'))
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    hide(monkeypatch, "gguf")
    assert errors_of(capsys, "run", "r.toml") == [
        "r.toml:4: [model] use: the package gguf is not installed. Install it: pip install gguf"
    ]


def test_both_packages_that_a_gguf_model_lacks_are_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_light(tmp_path, LIGHT.replace(HF, 'use = "gguf"\npackage = "llm_nothing"'))
    hide(monkeypatch, "gguf")
    assert errors_of(capsys, "run", "r.toml") == [
        "r.toml:4: [model] use: the package gguf is not installed. Install it: pip install gguf",
        "r.toml:5: [model] package: the package llm_nothing is not installed. Install it: pip install --no-deps "
        "llm-nothing",
    ]


def test_debug_shows_where_an_error_was_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["check", "r.toml", "--debug"])
    printed = capsys.readouterr().err
    assert exit_.value.code == 2
    assert printed.startswith("Traceback (most recent call last):\n")
    assert printed.endswith("no such file. Give the path of a recipe, or a name that ft recipes lists\n")
