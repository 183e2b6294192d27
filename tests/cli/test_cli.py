"""The command line: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fitune import hookimpl
from fitune._version import __version__
from fitune.cli.main import main
from fitune.cli.settings import Settings
from fitune.plugin.registry import Registry, built_in
from fitune.recipe import reader
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


def test_help_names_every_command(capsys: Capture) -> None:
    text = ft("--help", "--no-third-party", capsys=capsys)
    commands = text.partition("Commands:\n")[2]
    assert [line.split()[0] for line in commands.splitlines()] == [
        "check",
        "data",
        "eval",
        "explain-oom",
        "generate",
        "merge",
        "plan",
        "plugins",
        "run",
        "runs",
    ]


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


def test_version(capsys: Capture) -> None:
    assert ft("--version", capsys=capsys) == f"ft, version {__version__}\n"


def test_python_m_fitune_is_ft(tmp_path: Path) -> None:
    done = python("-m", "fitune", "check", "nope.toml", directory=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: nope.toml: no such file. Give the path of a recipe, e.g. recipes/quickstart.toml\n"


# ---------------------------------------------------------------------------------------------------------- plugins


def test_plugins_lists_every_provider_with_its_kind(capsys: Capture) -> None:
    lines = ft("plugins", "--no-third-party", capsys=capsys).splitlines()
    provided = open_registry().provided
    assert lines[0].split() == ["KIND", "NAME", "PLUGIN", "VERSION", "SUMMARY"]
    events = [line for line in lines if line.startswith("events ")]
    assert len(lines) == 1 + len(provided) + len(events)
    assert any("fitune.recipe.secrets" in line for line in events)
    for one in provided:
        starts = f"{one.kind} {one.record.name} {one.plugin} ".split()
        (line,) = [line for line in lines if line.split()[: len(starts)] == starts]
        assert line.endswith(one.record.summary)
        assert f" {one.plugin} " in line
        assert f" {__version__} " in line


def test_plugins_as_json(capsys: Capture) -> None:
    entries = json.loads(ft("plugins", "--json", "--no-third-party", capsys=capsys))
    assert {e["plugin"] for e in entries} == set(built_in())
    for entry in entries:
        assert {"name", "kind", "plugin", "version", "path", "hooks", "status"} <= set(entry)
        assert entry["status"] == "ok"
        assert entry["version"] == __version__
        assert Path(entry["path"]).is_file()
        assert entry["hooks"]
    (lora,) = [e for e in entries if e["name"] == "lora"]
    assert lora["kind"] == "adapter"
    assert lora["hooks"] == ["ft_adapters", "ft_levers"]
    assert Path(lora["path"]).name == "lora.py"


def test_plugins_show_tells_options_types_defaults_and_meaning(capsys: Capture) -> None:
    lines = ft("plugins", "show", "lora", "--no-third-party", capsys=capsys).splitlines()
    assert lines[0] == "lora (adapter, plugin fitune_plugins.adapters.lora)"
    at = lines.index("  r: integer >= 1; default 4")
    assert lines[at + 1] == "      Rank of the adapters."
    assert "  dropout: number >= 0 and < 1; default 0.0" in lines


def test_plugins_show_tells_what_is_required(capsys: Capture) -> None:
    assert "  steps: integer >= 1; required\n" in ft("plugins", "show", "accumulation", capsys=capsys)


def test_plugins_show_of_a_provider_without_options(capsys: Capture) -> None:
    assert ft("plugins", "show", "none", "--no-third-party", capsys=capsys).endswith("\n\n  no options\n")


def test_plugins_show_takes_a_plugins_name_too(capsys: Capture) -> None:
    by_plugin = ft("plugins", "show", "fitune_plugins.memory.chunked_loss", "--no-third-party", capsys=capsys)
    assert by_plugin == ft("plugins", "show", "chunked-loss", "--no-third-party", capsys=capsys)


@pytest.mark.parametrize("name", [p.record.name for p in open_registry().provided])
def test_plugins_show_works_for_all(name: str, capsys: Capture) -> None:
    assert ft("plugins", "show", name, "--no-third-party", capsys=capsys).startswith(f"{name} (")


def test_plugins_show_of_an_unknown_name(capsys: Capture) -> None:
    assert refused("plugins", "show", "lara", "--no-third-party", capsys=capsys) == (
        'error: no plugin provides "lara". Did you mean "lora"?\n'
    )


class Broken:
    """A plugin with a hook that there is not."""

    @hookimpl
    def ft_adapter(self) -> None:
        """Misspelled."""


class Events:
    """A plugin that provides nothing to show."""

    @hookimpl
    def ft_step_done(self) -> None:
        """Do nothing."""


def test_plugins_show_of_a_plugin_that_is_broken(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_broken() -> Registry:
        registry = open_registry(Events())
        with pytest.raises(Exception, match="ft_adapter"):
            registry.register(Broken(), "broken-one")
        return registry

    monkeypatch.setattr(Settings, "registry", lambda settings: with_broken())
    assert refused("plugins", "show", "broken-one", capsys=capsys).startswith(
        'error: the plugin "broken-one" is broken: there is no hook "ft_adapter". Did you mean "ft_adapters"?'
    )
    assert refused("plugins", "show", "plugin-1", capsys=capsys) == 'error: "plugin-1" has no options to show\n'


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


# ------------------------------------------------------------------------------------------------- the run's directory


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
     ["runs", "."], ["runs", "show", "old"], ["runs", "compare", "old", "old"]],
    ids=" ".join,
)  # fmt: skip
def test_nothing_heavy_is_imported_before_a_run_needs_it(arguments: list[str], tmp_path: Path) -> None:
    write_light(tmp_path, LIGHT)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").touch()
    done = python("-c", COUNT.format(heavy=HEAVY), *arguments, directory=tmp_path)
    assert "[]" in done.stderr.splitlines(), done.stderr
    assert done.returncode == (2 if arguments == ["rum"] else 0)


@pytest.mark.parametrize("module", ["fitune", "fitune.cli.main", "fitune.testing"])
def test_importing_imports_nothing_heavy(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert python("-c", code, directory=tmp_path).stdout == "[]\n"
