"""`ft plugins` and `ft plugins show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitune import hookimpl
from fitune._version import __version__
from fitune.cli.settings import Settings
from fitune.plugin.registry import Registry, built_in
from fitune.testing import open_registry
from support.commands import Capture, ft, refused


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
    at = lines.index("  r: integer >= 1 and <= 65536; default 4")
    assert lines[at + 1] == "      Rank of the adapters."
    assert "  dropout: number >= 0 and < 1; default 0.0" in lines


def test_plugins_show_tells_what_is_required(capsys: Capture) -> None:
    assert "  steps: integer >= 1 and <= 1048576; required\n" in ft("plugins", "show", "accumulation", capsys=capsys)


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
