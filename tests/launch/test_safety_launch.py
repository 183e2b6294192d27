"""What somebody else has written of a launched run, or of how machines are reached, starts no program unasked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fitune.launch.jobs import sent
from fitune.launch.settings import choose
from fitune.plugin.launching import JobStatus, Machine
from fitune.plugin.registry import Registry
from fitune.plugin.trust import Trust, UnknownCode
from fitune.runs.launched import LAUNCH, Launched, write_launched
from support.commands import Capture, ft, refused

JOB = "fitune-theirs-1"
COMMANDS = ("status", "logs", "stop", "fetch")


@pytest.fixture(autouse=True)
def _nothing_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FT_ALLOW_PLUGINS")


def launched(root: Path) -> Launched:
    """A job of the launcher `local`, kept below a directory."""
    return Launched(
        name="theirs",
        job=JOB,
        launcher="local",
        options={"root": str(root)},
        machine=Machine(name="this machine", gpu="", gpus=0),
        spot=False,
        seconds=None,
        hours=None,
        launched="2026-11-27T00:00:00+00:00",
        status=JobStatus(name=JOB, state="running", what=""),
    )


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.fixture
def theirs(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's directory as somebody else gives it away: the job that its launch.json names is code."""
    run = tmp_path / "theirs"
    script = run / "jobs" / JOB / "bundle" / "start.py"
    script.parent.mkdir(parents=True)
    script.write_text(f"open({str(mark)!r}, 'w').close()\nprint('running')\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "their-state"))
        write_launched(run, launched(run / "jobs"))
    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_a_strangers_launcher_is_not_started(theirs: Path, mark: Path, command: str, capsys: Capture) -> None:
    said = refused("launch", command, str(theirs), capsys=capsys)
    assert f"{theirs / LAUNCH} is not known on this machine, and its launcher would be started" in said
    assert "--allow-plugins" in said
    assert not mark.exists()


@pytest.mark.parametrize("seal", [None, "", 7, "0" * 64, []])
def test_a_seal_cannot_be_made_up(theirs: Path, mark: Path, seal: object, capsys: Capture) -> None:
    values = json.loads((theirs / LAUNCH).read_text(encoding="utf-8"))
    (theirs / LAUNCH).write_text(json.dumps({**values, "seal": seal}), encoding="utf-8")
    refused("launch", "status", str(theirs), capsys=capsys)
    assert not mark.exists()


def test_it_is_listed_without_being_followed(theirs: Path, mark: Path, capsys: Capture) -> None:
    assert "running" in ft("launch", "list", str(theirs.parent), capsys=capsys)
    ft("runs", str(theirs.parent), capsys=capsys)
    assert not mark.exists()


def test_what_was_allowed_is_ones_own_from_then_on(theirs: Path, mark: Path, capsys: Capture) -> None:
    assert "running" in ft("launch", "status", str(theirs), "--allow-plugins", capsys=capsys)
    mark.unlink()
    ft("launch", "status", str(theirs), capsys=capsys)
    assert mark.exists()


def test_ones_own_is_not_asked_about(tmp_path: Path, registry: Registry) -> None:
    registry.trust = Trust(allow=False)
    run = tmp_path / "mine"
    run.mkdir()
    write_launched(run, launched(tmp_path / "jobs"))
    assert sent(run, registry).ask().launched.status.state == "absent"
    assert sent(run, registry).launched.heard is not None


def test_ones_own_that_was_changed_is(tmp_path: Path, registry: Registry) -> None:
    registry.trust = Trust(allow=False)
    run = tmp_path / "mine"
    run.mkdir()
    write_launched(run, launched(tmp_path / "jobs"))
    text = (run / LAUNCH).read_text(encoding="utf-8")
    (run / LAUNCH).write_text(text.replace(str(tmp_path / "jobs"), str(tmp_path / "evil")), encoding="utf-8")
    with pytest.raises(UnknownCode):
        sent(run, registry)


def test_without_a_key_it_is_asked_about(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no-directory").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "no-directory"))
    registry.trust = Trust(allow=False)
    run = tmp_path / "mine"
    run.mkdir()
    write_launched(run, launched(tmp_path / "jobs"))
    with pytest.raises(UnknownCode):
        sent(run, registry)


PROXY = '[ssh]\nhost = "there"\nssh = ["-o", "ProxyCommand=touch MARK"]\n'
"""By which ssh itself runs a program here."""


@pytest.mark.parametrize("command", [("launch", "recipe.toml"), ("launch", "list")])
def test_settings_that_lie_in_a_project_name_no_program(
    recipe_path: Path, mark: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(recipe_path.parent)
    Path("launch.toml").write_text(PROXY.replace("MARK", str(mark)), encoding="utf-8")
    said = refused(*command, "--on", "ssh", capsys=capsys)
    assert "launch.toml is not known on this machine, and its launcher would be started" in said
    assert not mark.exists()


def test_settings_of_another_launcher_are_not_asked_about(tmp_path: Path, registry: Registry) -> None:
    file = tmp_path / "launch.toml"
    file.write_text(PROXY, encoding="utf-8")
    registry.trust = Trust(allow=False)
    assert choose(registry, "local", (), file).options.root is None


def test_settings_are_asked_about_once(tmp_path: Path, registry: Registry) -> None:
    file = tmp_path / "launch.toml"
    file.write_text('[ssh]\nhost = "there"\n', encoding="utf-8")
    asked: list[str] = []

    def yes(path: Path, digest: str, what: str) -> str:
        asked.append(what)
        return "this"

    registry.trust = Trust(allow=False, ask=yes)  # type: ignore[arg-type]
    assert choose(registry, "ssh", (), file).options.host == "there"
    assert asked == ["its launcher would be started with its options, which may name programs"]
    registry.trust = Trust(allow=False)
    assert choose(registry, "ssh", (), file).options.host == "there"
    file.write_text(PROXY, encoding="utf-8")
    with pytest.raises(UnknownCode):
        choose(registry, "ssh", (), file)


def test_options_of_the_command_line_are_ones_own(registry: Registry) -> None:
    registry.trust = Trust(allow=False)
    chosen = choose(registry, "ssh", ("host=there",))
    assert dataclasses.asdict(chosen.options)["host"] == "there"
