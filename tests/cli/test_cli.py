"""The command line: what it prints, where, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fitune._version import __version__
from fitune.cli.main import COMMANDS as BUILT_IN
from fitune.cli.main import main
from fitune.cli.sections import SECTIONS, write_sections
from fitune.memory.cards.cards import may_have_one
from fitune.testing import open_registry
from support.commands import Capture, ft, refused
from support.light import LIGHT, write_light


def python(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter."""
    environment = {**os.environ, "FT_NO_THIRD_PARTY": "1", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=directory, env=environment, check=False
    )


# ------------------------------------------------------------------------------------------------------------ help


def test_help_names_every_command_once_in_a_whole_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = ft("--help", "--no-third-party", capsys=capsys)
    lines = text.partition("To begin with:\n")[2].splitlines()
    entries = [line for line in lines if line.startswith("  ")]
    assert sorted(line.split()[0] for line in entries) == sorted(command.name or "" for command in BUILT_IN)
    assert entries[0].split()[0] == "new"
    assert [line for line in entries if not line.endswith(".") or line.endswith("...") or len(line) > 80] == []
    assert [line for line in lines if line and not line.startswith("  ")] == [f"{name}:" for name in SECTIONS][1:]


def test_commands_of_plugins_stand_under_a_heading_of_their_own() -> None:
    formatter = click.HelpFormatter(width=80)
    mine = click.Command("mine", help="Do what nobody else does.")
    write_sections(formatter, {"run": click.Command("run"), "mine": mine, "no": click.Command("no", hidden=True)})
    told = formatter.getvalue()
    assert told == (
        "Train:\n  run   Train as a recipe says, or go on with a run.\n"
        "\nOf plugins:\n  mine  Do what nobody else does.\n"
    )


COMMANDS = (
    "", "run", "check", "data", "plan", "explain-oom", "plugins", "plugins show", "generate", "eval", "merge",
    "runs", "runs list", "runs show", "runs compare",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_the_common_switches(command: str, capsys: Capture) -> None:
    text = ft(*command.split(), "-h", capsys=capsys)
    assert text.startswith("Usage: ft ")
    for switch in ("--debug", "--no-third-party", "--trace-hooks", "-h, --help"):
        assert switch in text


@pytest.mark.parametrize("command", ["", "run", "plugins show", "runs compare", "launch", "help"])
def test_help_is_a_command_too(command: str, capsys: Capture) -> None:
    assert ft("help", *command.split(), capsys=capsys) == ft(*command.split(), "--help", capsys=capsys)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("rum", 'no command "ft rum". Did you mean "run"? See: ft --help'),
        ("plugins shw", 'no command "ft plugins shw". Did you mean "show"? See: ft plugins --help'),
        ("run fast", 'no command "ft run fast". ft run has no commands of its own. See: ft run --help'),
    ],
)
def test_help_of_what_is_no_command_names_the_nearest(command: str, says: str, capsys: Capture) -> None:
    assert refused("help", *command.split(), "--no-third-party", capsys=capsys) == f"error: {says}\n"


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_list_is_what_plugins_is(how: list[str], capsys: Capture) -> None:
    text = ft("list", "--no-third-party", *how, capsys=capsys)
    assert "chunked-loss" in text
    assert text == ft("plugins", "--no-third-party", *how, capsys=capsys)


def test_an_unknown_commands_nearest_may_be_these(capsys: Capture) -> None:
    assert 'Did you mean "help"?' in refused("hlep", "--no-third-party", capsys=capsys)


def test_version(capsys: Capture) -> None:
    assert ft("--version", capsys=capsys) == f"ft, version {__version__}\n"


def test_python_m_fitune_is_ft(tmp_path: Path) -> None:
    done = python("-m", "fitune", "check", "nope.toml", directory=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: nope.toml: no such file. Give the path of a recipe, or a name that ft recipes lists\n"


# ------------------------------------------------------------------------------------------------------------ check


def test_check_names_what_it_found_good(tmp_path: Path, capsys: Capture) -> None:
    write_light(tmp_path)
    assert ft("check", "r.toml", "--no-third-party", capsys=capsys) == (
        "r.toml: no problem found (hf, lora, accumulation, jsonl, detect, chat, tokenize, truncate, pad)\n"
    )


def test_check_reads_overrides(tmp_path: Path, capsys: Capture) -> None:
    write_light(tmp_path)
    text = ft("check", "r.toml", "--set", "adapter.use=none", "--set", "memory.strategy=[]", capsys=capsys)
    assert "(hf, none, jsonl," in text


def test_switches_stand_before_or_behind_a_command(tmp_path: Path, capsys: Capture) -> None:
    write_light(tmp_path)
    before = ft("--no-third-party", "check", "r.toml", capsys=capsys)
    assert before == ft("check", "--no-third-party", "r.toml", capsys=capsys)


def test_trace_hooks_tells_each_call_on_standard_error(capsys: Capture) -> None:
    main(["plugins", "--trace-hooks", "--no-third-party"])
    printed = capsys.readouterr()
    assert "ft_adapters fitune_plugins.adapters.lora " in printed.err
    assert "ft_adapters" not in printed.out


# ----------------------------------------------------------------------------------------------------- wrong commands


def test_an_unknown_command_names_the_nearest(capsys: Capture) -> None:
    assert refused("rum", "--no-third-party", capsys=capsys) == (
        'error: no command "rum". Did you mean "run"? See: ft --help\n'
    )
    assert refused("zzz", capsys=capsys).startswith('error: no command "zzz". Known: ')


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run"], "Missing argument 'RECIPE'."),
        (["check"], "Missing argument 'RECIPE'."),
        (["plugins", "show"], "Missing argument 'NAME'."),
        (["check", "a.toml", "b.toml"], "unexpected extra argument (b.toml)"),
        (["run", "--ouput", "x", "r.toml"], "No such option"),
        (["run", "r.toml", "--set"], "Option '--set' requires an argument."),
        (["plugins", "lora"], "No such command 'lora'"),
        (["--bogus"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_told_with_the_usage(arguments: list[str], error: str, capsys: Capture) -> None:
    text = refused(*arguments, capsys=capsys)
    assert error in text
    assert arguments[-1] == "--set" or text.startswith("Usage: ft ")


# ------------------------------------------------------------------------------------------------------- light imports

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "numpy")
COUNT = """\
import sys
from fitune.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["plugins"], ["plugins", "--json"], ["plugins", "show", "lora"], ["check", "r.toml"], ["rum"],
     ["help", "run"], ["list"], ["plan", "r.toml", "--gpu", "a10h"], ["plan", "r.toml", "--write", "no/where.toml"],
     ["plan", "r.toml", "--fit", "--write", "no/where.toml"],
     ["runs", "."], ["runs", "show", "old"], ["runs", "compare", "old", "old"]],
    ids=" ".join,
)  # fmt: skip
def test_nothing_heavy_is_imported_before_a_run_needs_it(arguments: list[str], tmp_path: Path) -> None:
    write_light(tmp_path, LIGHT)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").touch()
    done = python("-c", COUNT.format(heavy=HEAVY), *arguments, directory=tmp_path)
    assert "[]" in done.stderr.splitlines(), done.stderr
    assert done.returncode == (2 if arguments[0] in ("rum", "plan") else 0)


@pytest.mark.parametrize("arguments", [["--help"], ["rum"]], ids=" ".join)
def test_the_list_of_commands_loads_no_plugin_where_none_is_installed(arguments: list[str], tmp_path: Path) -> None:
    """Those that come with fitune add no command, which is looked at here."""
    assert not [plugin.name for plugin in open_registry().plugins.values() if "ft_commands" in plugin.hooks]
    done = python("-c", COUNT.format(heavy=("fitune_plugins",)), "--no-third-party", *arguments, directory=tmp_path)
    assert "[]" in done.stderr.splitlines(), done.stderr


@pytest.mark.skipif(may_have_one(), reason="this machine may have a GPU, which torch is asked for")
def test_a_plan_without_a_card_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    write_light(tmp_path, LIGHT)
    done = python("-c", COUNT.format(heavy=HEAVY), "plan", "r.toml", directory=tmp_path)
    assert done.stderr == (
        "error: this machine has no GPU, so a card must be named. Give --gpu a10g, or --budget 22.3GiB\n[]\n"
    )
    assert done.returncode == 2


@pytest.mark.parametrize("module", ["fitune", "fitune.cli.main", "fitune.testing"])
def test_importing_imports_nothing_heavy(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert python("-c", code, directory=tmp_path).stdout == "[]\n"
