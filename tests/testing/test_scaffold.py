"""A plugin that `ft plugins new` writes passes its own tests, its linter and its types, as it is made."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fitune.cli.main import main
from fitune.errors import PluginError
from fitune.testing import check, scaffold

KINDS = scaffold.KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a command printed on both streams, and its exit code."""

    output: str
    exit_code: int


def invoke(*words: str) -> Done:
    """`ft` in this process."""
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(words)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    return Done(output=said.getvalue(), exit_code=code)


NAME = "my-own"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of each kind."""
    home = tmp_path_factory.mktemp("new")
    for kind in KINDS:
        list(scaffold.write(scaffold.package(f"{NAME}-{kind}", kind), home / kind))
    return home


def within(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_tests_pass(packages: Path, kind: str) -> None:
    done = within(packages / kind, "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_linter_and_types_find_nothing(packages: Path) -> None:
    for words in (("ruff", "check", "."), ("ruff", "format", "--check", ".")):
        done = within(packages, *words)
        assert done.returncode == 0, done.stdout
    files = [str(packages / kind / f"{scaffold.module_of(f'{NAME}-{kind}')}.py") for kind in KINDS]
    tests = [str(packages / kind / "tests") for kind in KINDS]
    done = within(packages / "strategy", "mypy", "--strict", *files, *tests)
    assert done.returncode == 0, done.stdout


def test_a_package_says_which_fitune_it_is_for(packages: Path) -> None:
    import tomli

    said = tomli.loads((packages / "adapter" / "pyproject.toml").read_text(encoding="utf-8"))
    assert said["project"]["dependencies"] == ["fitune>=0.1,<0.2"]
    assert said["project"]["entry-points"]["fitune"] == {f"{NAME}-adapter": "fitune_my_own_adapter"}


def test_the_command_writes_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "ft plugins check fitune-one" in invoke("plugins", "new", "one", "--kind", "listener").output
    assert "is there already" in invoke("plugins", "new", "one", "--kind", "listener").output
    checked = invoke("plugins", "check", "fitune-one", "--json")
    assert [(c["kind"], c["name"], c["outcome"]) for c in json.loads(checked.output)] == [("listener", "one", "ok")]


def test_a_single_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("plugins", "new", "few-letters", "--kind", "stage", "--single-file").exit_code == 0
    (module,) = check.modules_at("few_letters.py")
    (found,) = check.check(check.opened(module), {"few-letters": {"letters": 3}})
    assert (found.name, found.outcome) == ("few-letters", "ok")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "trains, saves, goes on to the bit, is forecast; it gives no load (ft generate, ft eval and ft merge"),
        (", load=load", "trains, saves, comes back, goes on to the bit, is forecast; it gives no merge (ft merge"),
    ],
)
def test_what_an_adapter_does_not_give_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = scaffold.single_file("gain", "adapter")
    without = re.sub(r"        save=save,\n(        \w+=\w+,\n)+", f"        save=save{given},\n", text)
    assert without != text
    (tmp_path / "gain.py").write_text(without, encoding="utf-8")
    done = invoke("plugins", "check", "gain.py")
    assert done.exit_code == 0, done.output
    assert told in " ".join(done.output.split())


@pytest.mark.parametrize("words", [("Bad Name", "stage"), ("x", "stge"), ("class", "stage"), ("../x", "stage")])
def test_names_and_kinds_that_cannot_be(tmp_path: Path, words: tuple[str, str]) -> None:
    with pytest.raises(PluginError, match=r"is no name for a plugin|Did you mean"):
        scaffold.package(*words)


def test_what_is_not_tried_and_what_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    invoke("plugins", "new", "lines", "--kind", "source", "--single-file")
    untried = invoke("plugins", "check", "lines.py")
    assert untried.exit_code == 2
    assert "it needs path. Give --set lines.path=VALUE" in untried.output
    assert "1 not tried of 1" in untried.output
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    failed = invoke("plugins", "check", "lines.py", "--set", "lines.path=empty.txt")
    assert failed.exit_code == 2
    assert "it gives no row" in failed.output
    (tmp_path / "rows.txt").write_text("a = b\n", encoding="utf-8")
    assert invoke("plugins", "check", "lines.py", "--set", "lines.path=rows.txt").exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing-here",), "there is no file, directory or installed plugin nothing-here"),
        (("broken.py",), "broken.py cannot be imported: ZeroDivisionError"),
        (("empty",), "holds no pyproject.toml"),
        (("one.py", "--set", "x"), "write NAME.KEY=VALUE"),
        (("one.py", "--set", "two.x=1"), 'provides no "two"'),
        (("one.py", "--set", "one.leters=1"), 'one has no option "leters". Did you mean "letters"?'),
        (("unmarked.py",), "plugin unmarked.py: ft_levers is not marked"),
    ],
)
def test_bad_places_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "unmarked.py").write_text("def ft_levers(recipe): ...\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.py").write_text(scaffold.single_file("one", "stage"), encoding="utf-8")
    done = invoke("plugins", "check", *words)
    assert done.exit_code == 2
    assert said in done.output
