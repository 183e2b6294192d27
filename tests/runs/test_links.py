"""A run writes nothing outside of its own directory, whatever somebody has put there. On 0.1 each of these was."""

from __future__ import annotations

from pathlib import Path

import pytest

import fitune
from fitune import RunError
from fitune.cli.main import main
from fitune.runs.links import must_not_lead_out
from support.commands import Capture, refused
from support.resuming import stop, write_resumed


def _names(directory: Path) -> list[str]:
    return sorted(place.name for place in directory.iterdir())


@pytest.mark.parametrize("name", [".lock.json.partial", ".run.json.0123456789abcdef.partial", ".lock", ".x.gone"])
def test_links_in_a_new_runs_directory_are_no_left_overs(
    recipe_path: Path, tmp_path: Path, name: str, capsys: Capture
) -> None:
    precious, run = tmp_path / "precious", tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(precious)
    assert f"{run} is not empty" in refused("run", str(recipe_path), "--out", str(run), capsys=capsys)
    assert not precious.exists()
    assert _names(run) == [name]


def test_what_a_dead_process_left_is(recipe_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / ".adapter.0123456789abcdef.partial").mkdir(parents=True)
    (run / ".run.json.partial").write_text("{", encoding="utf-8")  # as 0.1 called it
    main(["run", str(recipe_path), "--out", str(run)])
    assert (run / "adapter").is_dir()


@pytest.mark.parametrize("name", ["checkpoints", "non-finite", "tiny"])
def test_no_directory_of_a_run_may_lead_out(tmp_path: Path, name: str) -> None:
    run, precious = tmp_path / "run", tmp_path / "precious"
    precious.mkdir()
    run.mkdir()
    (run / name).symlink_to(precious, target_is_directory=True)
    with pytest.raises(RunError, match=f"{name} is a link to {precious}, and a run writes nothing outside of its own"):
        must_not_lead_out(run)
    (run / name).unlink()
    (run / "own").mkdir()
    (run / name).symlink_to("own", target_is_directory=True)
    (run / "notes").symlink_to(tmp_path / "nowhere")
    must_not_lead_out(run)


def test_a_run_does_not_go_on_through_a_link(tmp_path: Path) -> None:
    """Old checkpoints are deleted where a run goes on: not those of another run, in a directory that is linked to."""
    recipe, run = write_resumed(tmp_path / "recipe"), tmp_path / "run"
    stop(recipe, run, 2)
    elsewhere = tmp_path / "elsewhere"
    (run / "checkpoints").rename(elsewhere)
    (elsewhere / ".half.partial").mkdir()
    (run / "checkpoints").symlink_to(elsewhere, target_is_directory=True)
    before = _names(elsewhere)
    with pytest.raises(RunError, match="checkpoints is a link to"):
        fitune.run(run)
    assert _names(elsewhere) == before
