"""Code that a recipe or a run brings runs only if it is known on this machine, or allowed. On 0.1 it ran at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import py_compile
import stat
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import fitune
from fitune import RecipeError
from fitune.cli import allow
from fitune.cli.main import cli, main
from fitune.plugin.registry import Registry
from fitune.plugin.trust import Answer, Trust, UnknownCode, remembered_in
from fitune.recipe.reader import read_recipe
from support.commands import Capture, ft, refused

CODE = """\
from pathlib import Path

from fitune import hookimpl

Path("RAN").touch()


@hookimpl
def ft_check(recipe):
    return []
"""


@pytest.fixture(autouse=True)
def _nothing_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FT_ALLOW_PLUGINS")


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What the plugin's code makes."""
    return tmp_path / "ran"


@pytest.fixture
def plugin(recipe_path: Path, ran: Path) -> Path:
    """A plugin that the recipe names."""
    file = recipe_path.parent / "mine.py"
    file.write_text(CODE.replace("RAN", str(ran)), encoding="utf-8")
    recipe_path.write_text(f'plugins = ["mine.py"]\n{recipe_path.read_text(encoding="utf-8")}', encoding="utf-8")
    return file


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


COMMANDS = {
    "run": ["run", "RECIPE", "--out", "out"],
    "check": ["check", "RECIPE"],
    "plan": ["plan", "RECIPE", "--gpu", "a10g"],
    "data": ["data", "RECIPE"],
    "a run's directory": ["run", "RUN"],
    "generate": ["generate", "RUN", "--prompt", "a"],
    "eval": ["eval", "RUN"],
    "merge": ["merge", "RUN", "--to", "merged"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_code_is_named_and_refused(
    recipe_path: Path, plugin: Path, ran: Path, name: str, capsys: Capture, tmp_path: Path
) -> None:
    places = {"RECIPE": str(recipe_path), "RUN": str(recipe_path.parent)}  # which holds a recipe.toml, as a run's does
    error = refused(*(places.get(part, part) for part in COMMANDS[name]), capsys=capsys)
    assert f"{plugin} is not known on this machine, and its code would run (SHA-256 {_digest(plugin)})" in error
    assert error.endswith("Read it, then allow it: --allow-plugins\n")
    assert error.count("\n") == 1
    assert not ran.exists()
    assert not (tmp_path / "out").exists()


def test_every_command_that_reads_a_recipe_has_the_flag() -> None:
    found = {name for name, command in cli.commands.items() for p in command.params if p.name == "allow_plugins"}
    assert found == {"check", "data", "eval", "explain-oom", "export", "generate", "merge", "plan", "plugins", "run"}


def test_what_the_flag_allows_is_known_then(recipe_path: Path, plugin: Path, ran: Path, capsys: Capture) -> None:
    ft("check", str(recipe_path), "--allow-plugins", capsys=capsys)
    assert ran.exists()
    ft("check", str(recipe_path), capsys=capsys)  # not asked again
    copy = recipe_path.parent / "copy.py"  # nor elsewhere: it is the text that is known
    copy.write_bytes(plugin.read_bytes())
    ft("check", str(recipe_path), "--set", f'plugins=["{copy.as_posix()}"]', capsys=capsys)
    plugin.write_text(f"{plugin.read_text(encoding='utf-8')}#\n", encoding="utf-8")
    assert _digest(plugin) in refused("check", str(recipe_path), capsys=capsys)


def test_the_variable_allows_and_remembers_nothing(
    recipe_path: Path, plugin: Path, ran: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("FT_ALLOW_PLUGINS", "1")
    ft("check", str(recipe_path), capsys=capsys)
    assert ran.exists()
    monkeypatch.setenv("FT_ALLOW_PLUGINS", "0")
    refused("check", str(recipe_path), capsys=capsys)
    assert not remembered_in().exists()


Answering = Callable[[str], list[str]]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Answering:
    """Has somebody sit at a terminal who gives this answer; gives what they were asked."""

    def answering(answer: str) -> list[str]:
        asked: list[str] = []
        monkeypatch.setattr(allow, "_somebody_is_there", lambda: True)

        def prompt(text: str, **_: object) -> str:
            asked.append(text)
            return answer

        monkeypatch.setattr(click, "prompt", prompt)
        return asked

    return answering


@pytest.mark.parametrize("answer", ["y", "a", "n"])
def test_a_terminal_asks_once(
    recipe_path: Path, plugin: Path, ran: Path, answering: Answering, answer: str, capsys: Capture
) -> None:
    asked = answering(answer)

    def check() -> str:
        with contextlib.suppress(SystemExit):
            main(["check", str(recipe_path)])
        return capsys.readouterr().err

    said = check()
    assert str(plugin) in said
    assert _digest(plugin) in said
    assert ran.exists() is (answer != "n")
    check()
    assert len(asked) == (2 if answer == "n" else 1)
    plugin.write_text(f"{plugin.read_text(encoding='utf-8')}#\n", encoding="utf-8")
    check()
    assert len(asked) == {"y": 2, "a": 1, "n": 3}[answer]  # "a" is for one's own, which changes


def test_another_file_is_asked_about_beside_one_that_may_change(
    recipe_path: Path, plugin: Path, answering: Answering, capsys: Capture
) -> None:
    asked = answering("a")
    main(["check", str(recipe_path)])
    other = recipe_path.parent / "other.py"
    other.write_text(CODE.replace("RAN", str(recipe_path.parent / "other")), encoding="utf-8")
    main(["check", str(recipe_path), "--set", f'plugins=["{plugin.as_posix()}", "{other.as_posix()}"]'])
    assert len(asked) == 2


def test_nobody_is_asked_where_nobody_can_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    for name in ("sys.stdin", "sys.stderr"):
        monkeypatch.setattr(f"fitune.cli.allow.{name}", Terminal())
    assert allow.trust_of(allowed=False).ask is not None
    monkeypatch.setenv("WORLD_SIZE", "2")  # each process would ask
    assert allow.trust_of(allowed=False).ask is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr("fitune.cli.allow.sys.stdin", None)
    assert allow.trust_of(allowed=False).ask is None


def test_a_run_whose_plugin_is_known_is_opened_without_a_question(
    recipe_path: Path, plugin: Path, tmp_path: Path, capsys: Capture
) -> None:
    main(["run", str(recipe_path), "--out", str(tmp_path / "run"), "--allow-plugins"])
    main(["generate", str(tmp_path / "run"), "--prompt", "a"])
    assert capsys.readouterr().out


def test_bytecode_beside_a_plugin_does_not_run(recipe_path: Path, plugin: Path, ran: Path, tmp_path: Path) -> None:
    """Python runs what lies in __pycache__ if its time and size fit, whatever it was compiled from."""
    main(["check", str(recipe_path), "--allow-plugins"])
    ran.unlink()
    known, stamp = plugin.read_bytes(), plugin.stat()
    evil = tmp_path / "evil"
    plugin.write_bytes(known.replace(str(ran).encode(), str(evil).encode()))
    os.utime(plugin, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    py_compile.compile(str(plugin), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    plugin.write_bytes(known)
    main(["check", str(recipe_path)])
    assert ran.exists()
    assert not evil.exists()


@pytest.mark.skipif(os.name == "nt", reason="owners and modes of files are those of Unix")
def test_a_store_that_others_can_write_says_nothing(recipe_path: Path, plugin: Path, capsys: Capture) -> None:
    ft("check", str(recipe_path), "--allow-plugins", capsys=capsys)
    store = remembered_in()
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    store.chmod(0o622)
    refused("check", str(recipe_path), capsys=capsys)


@pytest.mark.parametrize("line", ["{", "[" * 500, "null", '{"digest": 3}', '"DIGEST"', '{"file": "FILE"}'])
def test_lines_of_the_store_that_say_nothing(recipe_path: Path, plugin: Path, line: str, capsys: Capture) -> None:
    store = remembered_in()
    store.parent.mkdir(parents=True)
    line = line.replace("FILE", str(plugin)).replace("DIGEST", _digest(plugin))
    store.write_text(f"{line}\n", encoding="utf-8")
    store.chmod(0o600)
    refused("check", str(recipe_path), capsys=capsys)
    known = json.dumps({"digest": _digest(plugin)})
    store.write_text(f"{line}\n{known}\n", encoding="utf-8")
    ft("check", str(recipe_path), capsys=capsys)


def test_from_python_too(recipe_path: Path, plugin: Path, ran: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is not known on this machine"):
        read_recipe(recipe_path, Registry.open(third_party=False))
    with pytest.raises(RecipeError, match="is not known on this machine"):
        fitune.run(recipe_path, tmp_path / "run")
    assert not ran.exists()
    fitune.run(recipe_path, tmp_path / "run", allow_plugins=True)
    assert ran.exists()


def test_a_process_may_be_given_what_another_was_allowed(plugin: Path) -> None:
    answers: list[Answer] = ["no"]
    trust = Trust(ask=lambda path, digest, what: answers[0])
    with pytest.raises(UnknownCode):
        trust.source_of(plugin)
    assert not trust.granted
    answers[0] = "this"
    assert trust.source_of(plugin) == plugin.read_bytes()
    remembered_in().unlink()
    assert Trust(granted=set(trust.granted)).source_of(plugin) == plugin.read_bytes()


def test_the_list_of_runs_imports_nothing(recipe_path: Path, plugin: Path, ran: Path, capsys: Capture) -> None:
    for command in (["runs"], ["runs", "show"], ["runs", "compare"]):
        places = [str(recipe_path.parent)] * (2 if command[-1] == "compare" else 1)
        with contextlib.suppress(SystemExit):  # it holds no run
            main([*command, *places])
    assert not ran.exists()
