"""A run is made with its plugins: one that was upgraded, edited or uninstalled changes no run in silence."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fitune import Notice, RunError, hookimpl, run
from fitune.plugin.registry import Registry
from fitune.plugin.trust import Trust
from fitune.runs.layout import IDENTITY
from fitune.testing import write_recipe
from fitune.trained.open import find
from support.commands import Capture, refused
from support.made_plugins import STRATEGY, install

LISTENER = """
from fitune import Listener

class Hears:
    @hookimpl
    def ft_step_done(self, step):
        pass

@hookimpl
def ft_listeners():
    yield Listener(name="hears", summary="For a test", options=NoOptions, make=lambda options: Hears())
"""
MINE = STRATEGY.format(name="mine")


class Told:
    """A plugin that keeps what it is told."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []

    @hookimpl
    def ft_noticed(self, notice: Notice) -> None:
        """Keep it."""
        self.notices.append(notice)


def put(site: Path, version: str, source: str) -> None:
    """Install this version of the one distribution, in place of another."""
    for old in site.glob("*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    if version:
        install(site, "fitune-mine", source, version=version)
    sys.modules.pop("fitune_mine", None)
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where version 1.0 is installed."""
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.syspath_prepend(directory)
    monkeypatch.delitem(sys.modules, "fitune_mine", raising=False)
    put(directory, "1.0", MINE + LISTENER)
    return directory


@pytest.fixture
def made(site: Path, tmp_path: Path) -> Path:
    """A run of one step with a strategy and a listener of that version."""
    used = {"memory": {"strategy": [{"use": "mine"}]}, "listener": [{"use": "hears"}], "train": {"steps": 1}}
    return run(write_recipe(tmp_path / "recipe", used), tmp_path / "run", registry=Registry.open())


def go_on(made: Path, *allowed: str, told: Told | None = None) -> None:
    """Train a step more."""
    registry = Registry.open(trust=Trust(allow=True))
    if told is not None:
        registry.register(told, "told")
    run(made, overrides=["train.steps=2"], allow_changed=["train.steps", *allowed], registry=registry)


def kept(made: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((made / IDENTITY).read_text(encoding="utf-8"))["plugins"]
    return found


def test_a_run_keeps_what_it_was_made_with(made: Path) -> None:
    mine = kept(made)["memory strategy mine"]
    assert (mine["distribution"], mine["version"], len(mine["digest"])) == ("fitune-mine", "1.0", 64)
    assert kept(made)["adapter lora"] == {"distribution": "fitune", "version": None, "digest": None}


def test_the_same_plugins_go_on_and_an_upgraded_one_does_not_until_that_is_allowed(made: Path, site: Path) -> None:
    put(site, "1.1", MINE + LISTENER)
    with pytest.raises(RunError) as raised:
        go_on(made)
    assert raised.value.lines[1:] == (
        f"{made}: plugins: memory strategy mine of fitune-mine 1.0 before, fitune-mine 1.1 now",
        "If that is meant, add: --allow-changed plugins",
    )
    go_on(made, "plugins")
    assert kept(made)["memory strategy mine"]["version"] == "1.1"
    run(made, overrides=["train.steps=3"], allow_changed=["train.steps"], registry=Registry.open())


def test_other_code_under_the_same_version_is_told_by_its_digest(made: Path, site: Path) -> None:
    before = kept(made)["memory strategy mine"]["digest"][:8]
    put(site, "1.0", MINE + LISTENER + "\n# edited\n")
    with pytest.raises(RunError, match=rf"of fitune-mine 1\.0 \(code {before}\) before, fitune-mine 1\.0 \(code "):
        go_on(made)


def test_a_run_that_is_done_stays_done(made: Path, site: Path) -> None:
    put(site, "1.1", MINE + LISTENER)
    before = (made / IDENTITY).read_bytes()
    run(made, registry=Registry.open())
    assert (made / IDENTITY).read_bytes() == before


def test_a_listener_may_change_as_it_changes_nothing(site: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"listener": [{"use": "hears"}], "train": {"steps": 1}})
    made = run(recipe, tmp_path / "run", registry=Registry.open())
    put(site, "1.1", LISTENER.replace("from fitune import", "from fitune import NoOptions, hookimpl,"))
    assert kept(made)["listener hears"]["version"] == "1.0"
    go_on(made)


def test_what_was_trained_is_opened_with_its_own_plugins_alone(made: Path, site: Path, capsys: Capture) -> None:
    assert find(made, Registry.open()).notices == ()
    put(site, "1.1", MINE + LISTENER)
    told = refused("eval", str(made), "--data", "none.jsonl", capsys=capsys)
    assert f"{made}: memory strategy mine of fitune-mine 1.0 then, fitune-mine 1.1 now\n" in told
    assert told.endswith("if that is meant, add: --allow-changed plugins\n")
    told = refused("eval", str(made), "--data", "none.jsonl", "--allow-changed", "plugins", capsys=capsys)
    assert told == "error: --data none.jsonl: no such file\n"
    registry = Registry.open()
    registry.takes_other_plugins = True
    (notice,) = find(made, registry).notices
    assert notice.startswith("this was trained with other plugins: memory strategy mine of fitune-mine 1.0 then")


@pytest.mark.parametrize("how", ["going on", "opening"])
def test_a_plugin_that_is_gone_is_named_with_what_to_install(made: Path, site: Path, how: str) -> None:
    def use() -> None:
        go_on(made) if how == "going on" else find(made, Registry.open())

    without = Registry.open(third_party=False)
    with pytest.raises(RunError, match=r"no installed plugin is loaded\. Leave out --no-third-party"):
        run(made, registry=without) if how == "going on" else find(made, without)
    put(site, "1.0", "1 / 0")
    with pytest.raises(RunError, match=r"of fitune-mine 1\.0, which is broken here: ZeroDivisionError"):
        use()
    put(site, "2.0", STRATEGY.format(name="renamed"))
    with pytest.raises(RunError, match=r"fitune-mine 1\.0, which is fitune-mine 2\.0 here, and does not provide that"):
        use()
    put(site, "", "")
    with pytest.raises(RunError) as raised:
        use()
    assert raised.value.lines == (
        f'{made} used the memory strategy "mine" of fitune-mine 1.0, which is not installed here. Install it: '
        "pip install 'fitune-mine==1.0'",
    )
    if how == "going on":
        with pytest.raises(RunError, match=r"Install it: pip install 'fitune-mine==1\.0'"):
            run(made.parent / "recipe" / "recipe.toml", made, resume=True, registry=Registry.open())


def test_a_single_file_is_known_by_its_text(tmp_path: Path) -> None:
    used = {"plugins": ["./mine.py"], "memory": {"strategy": [{"use": "mine"}]}, "train": {"steps": 1}}
    recipe = write_recipe(tmp_path / "recipe", used)
    (recipe.parent / "mine.py").write_text(MINE)
    made = run(recipe, tmp_path / "run", allow_plugins=True)
    assert kept(made)["memory strategy mine"]["distribution"] is None
    (recipe.parent / "mine.py").write_text(MINE + "\n# edited\n")
    with pytest.raises(RunError, match=r"memory strategy mine of a single file \(code .{8}\) before, a single file \("):
        go_on(made)
    go_on(made, "plugins")


def test_a_run_of_before_goes_on_and_that_is_told(made: Path, site: Path) -> None:
    values = json.loads((made / IDENTITY).read_text(encoding="utf-8"))
    for name in ("plugins", "sha256", "place"):  # as 0.1 wrote none of them
        values[name] = None
    (made / IDENTITY).write_text(json.dumps(values), encoding="utf-8")
    put(site, "1.1", MINE + LISTENER)
    told = Told()
    go_on(made, told=told)
    assert [notice.what for notice in told.notices if notice.kind == "plugins"] == [
        "it is not known which versions of plugins this began with, so that they cannot be compared"
    ]
