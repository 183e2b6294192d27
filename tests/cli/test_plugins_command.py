"""`ft plugins` and `ft plugins show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fitune import hookimpl
from fitune._version import __version__
from fitune.cli.settings import Settings
from fitune.plugin.built_in import built_in
from fitune.plugin.registry import Registry
from fitune.testing import open_registry
from support.commands import Capture, ft, refused


def test_plugins_lists_every_provider_by_its_kind(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    printed = ft("plugins", "--no-third-party", capsys=capsys)
    sections = {part.partition("\n")[0]: part for part in printed.split("\n\n")}
    provided = open_registry().provided
    assert {"adapters", "memory strategies", "data stages", "task suites", "events"} <= set(sections)
    assert "fitune.recipe.secrets" in sections["events"]
    for one in provided:
        section = " ".join(sections[f"{one.kind[:-1]}ies" if one.kind.endswith("y") else f"{one.kind}s"].split())
        assert f" {one.record.name} {' '.join(one.record.summary.split())}" in section
    assert max(map(len, printed.splitlines())) <= 80


def test_plugins_as_json(capsys: Capture) -> None:
    entries = json.loads(ft("plugins", "--json", "--no-third-party", capsys=capsys))
    assert {e["plugin"] for e in entries} == set(built_in())
    for entry in entries:
        assert entry["distribution"] == "fitune"
        assert {"name", "use", "kind", "plugin", "version", "path", "hooks", "status"} <= set(entry)
        assert entry["status"] == "ok"
        assert entry["version"] == __version__
        assert Path(entry["path"]).is_file()
        assert entry["hooks"]
    (lora,) = [e for e in entries if e["name"] == "lora"]
    assert lora["kind"] == "adapter"
    assert lora["hooks"] == ["ft_adapters", "ft_check", "ft_levers"]
    assert Path(lora["path"]).name == "lora.py"


def test_plugins_show_tells_options_types_defaults_and_meaning(capsys: Capture) -> None:
    lines = ft("plugins", "show", "lora", "--no-third-party", capsys=capsys).splitlines()
    assert lines[0] == "lora (adapter, plugin fitune_plugins.adapters.lora)"
    at = lines.index("  r: integer >= 1 and <= 65536; default 4")
    assert lines[at + 1] == "      Rank of the adapters."
    assert "  dropout: number >= 0 and < 1; default 0.0" in lines


def test_plugins_show_tells_what_is_required(capsys: Capture) -> None:
    assert "  steps: integer >= 1 and <= 1048576; required\n" in ft("plugins", "show", "accumulation", capsys=capsys)


def test_plugins_show_as_json(capsys: Capture) -> None:
    (found,) = json.loads(ft("plugins", "show", "accumulation", "--json", "--no-third-party", capsys=capsys))
    assert (found["use"], found["kind"], len(found["options"])) == ("accumulation", "memory strategy", 1)
    option = found["options"][0]
    assert (option["name"], option["type"]) == ("steps", "integer >= 1 and <= 1048576")


def test_why_tells_where_it_comes_from_and_what_it_says(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    printed = ft("plugins", "--why", "nf4", "--no-third-party", capsys=capsys)
    assert max(map(len, printed.splitlines())) <= 80
    assert f"  from     fitune {__version__}, plugin fitune_plugins.memory.nf4\n" in printed
    assert '  keys     [[memory.strategy]] use = "nf4"\n           double_quantization\n' in printed
    assert "  says     makes the quantization, which a run has once\n" in printed
    assert 'cannot be used with "none": it trains every weight' in printed
    assert "recipe" not in printed


def test_why_tells_what_it_changes_in_a_run(recipe_path: Path, capsys: Capture) -> None:
    recipe_path.write_text(
        recipe_path.read_text(encoding="utf-8") + '[[memory.strategy]]\nuse = "accumulation"\nsteps = 4\n',
        encoding="utf-8",
    )

    def why(name: str) -> dict[str, Any]:
        told = ft("plugins", "--why", name, "--recipe", str(recipe_path), "--json", "--no-third-party", capsys=capsys)
        (one,) = json.loads(told)
        found: dict[str, Any] = one
        return found

    one = why("accumulation")
    assert (one["used"], one["table"], one["options"]) == (True, "[[memory.strategy]]", ["steps = 4"])
    assert one["changes"] == [
        "decides what follows before a weight is read (plan)", "plan.accumulation: 1 becomes 4",
    ]  # fmt: skip
    assert why("lora")["changes"] == ["decides which parameters train, and saves them in RUN/adapter"]
    by_itself, *more = why("tokenize")["changes"]
    assert by_itself == "it is there by itself: the recipe does not name it"
    assert more[0] == "makes examples of documents"
    assert (why("jsonl")["table"], why("jsonl")["changes"]) == ("[[data.source]]", ["gives rows"])
    assert why("metrics")["changes"][1].startswith("hears ft_")
    unused = why("nf4")
    assert (unused["used"], unused["options"], unused["changes"]) == (False, [], [])
    text = ft("plugins", "--why", "nf4", "--recipe", str(recipe_path), "--no-third-party", capsys=capsys)
    assert "does not use it, so that it changes nothing there" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--why", "lara"), 'no plugin provides "lara". Did you mean "lora"?'),
        (
            ("--why", "fitune.recipe.secrets"),
            'the plugin "fitune.recipe.secrets" is there for its hooks alone: ft_check',
        ),
        (("--recipe", "r.toml"), "--recipe has no effect there. It is for --why NAME"),
        (("--json", "show", "lora"), "--json has no effect there. Write: ft plugins show ... --json"),
        (("--why", "lora", "show", "lora"), "--why has no effect there. It is for --why NAME"),
    ],
)
def test_what_has_no_effect_is_refused(arguments: tuple[str, ...], told: str, capsys: Capture) -> None:
    assert refused("plugins", "--no-third-party", *arguments, capsys=capsys) == f"error: {told}\n"


def test_new_says_as_json_what_it_has_written(capsys: Capture) -> None:
    told = json.loads(ft("plugins", "new", "mine", "--kind", "command", "--json", capsys=capsys))
    assert "fitune-mine/pyproject.toml" in told["files"]
    assert all(Path(file).is_file() for file in told["files"])


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
