"""A run of several processes on object storage: another machine goes on with what is whole, replicas or shards."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fitune import RunError
from fitune.compose import devices
from fitune.launch.remote import FETCHED, Remote, attach
from fitune.testing import open_registry, write_recipe, write_tiny_data
from support.blows import join, send_together
from support.fault_suite import free_port
from support.forked import Ended, Forks
from support.places import place_of
from support.tiny import adapter, losses

REPLICAS, SHARDS = "", '{use="fsdp"}'


class Home(NamedTuple):
    """A recipe of four steps with a checkpoint after each, and what starts two processes of it."""

    recipe: Path
    forks: Forks

    def both(self, out: Path, strategies: str, bucket: Path | None, **struck: Any) -> list[Ended]:
        """Two processes that others have launched, to their end; with `struck` the first is killed."""
        given: list[str | Path] = ["run", self.recipe, "--out", out, "--set", f"memory.strategy=[{strategies}]"]
        given += [] if bucket is None else ["--remote", f"file://{bucket}"]
        out.parent.mkdir(exist_ok=True)
        together: dict[str, Any] = {"processes": 2, "port": free_port()}
        children = [
            self.forks.start(given, cwd=out.parent, prepare=send_together, rank=rank, **together, **struck)
            if struck and rank == 0
            else self.forks.start(given, cwd=out.parent, prepare=join, rank=rank, **together)
            for rank in range(2)
        ]
        return [self.forks.wait(child) for child in children]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Home:
    """Five rows in windows of two."""
    changes = {"train": {"micro_batch": 1, "steps": 4, "epochs": 2}, "checkpoint": {"steps": 1, "keep": 1}}
    recipe = write_recipe(tmp_path_factory.mktemp("remote") / "recipe", changes)
    write_tiny_data(recipe.parent / "data.jsonl", rows=5)
    return Home(recipe, forks)


def must_be_equal(run: Path, whole: Path) -> None:
    """To the bit."""
    assert losses(run) == losses(whole)
    assert len(losses(run)) == 4
    assert adapter(run).keys() == adapter(whole).keys()
    assert all(adapter(run)[name].equal(tensor) for name, tensor in adapter(whole).items())


@pytest.mark.parametrize(
    ("strategies", "started_by", "moment"),
    [
        (REPLICAS, "ft", 2),  # all of the second checkpoint is sent, but for what says that it is there
        (SHARDS, "torchrun", 3),  # what is there is noted as what was there before
    ],
)
def test_a_machine_that_is_lost_in_the_midst_of_an_upload_costs_nothing_that_was_kept(
    home: Home, tmp_path: Path, strategies: str, started_by: str, moment: int
) -> None:
    whole, bucket = tmp_path / "whole", tmp_path / "bucket"
    assert [one.code for one in home.both(whole, strategies, None)] == [0, 0]

    struck: dict[str, Any] = {"at": place_of(Remote._write), "number": moment, "signals": [int(signal.SIGKILL)]}
    ended = home.both(tmp_path / "lost" / "run", strategies, bucket, **struck)
    assert ended[0].code == -signal.SIGKILL, ended[0].output
    assert ended[1].code == 2, ended[1].output
    assert (tmp_path / "lost" / "run" / "checkpoints" / "step-2").is_dir()
    shutil.rmtree(tmp_path / "lost")

    run = tmp_path / "other" / "run"
    run.parent.mkdir()  # where both are started
    if started_by == "torchrun":
        again = home.both(run, strategies, bucket)
        assert [one.code for one in again] == [0, 0], [one.output for one in again]
    else:
        given: list[str | Path] = ["run", home.recipe, "--out", run, "--set", f"memory.strategy=[{strategies}]"]
        given += ["--remote", f"file://{bucket}", "--processes", "2"]
        again = [home.forks.run(given, cwd=run.parent)]
        assert again[0].code == 0, again[0].output
    said = "".join(one.output for one in again)
    assert said.count("is fetched from file://") == 1
    assert "after 1 steps" in said
    must_be_equal(run, whole)

    third = tmp_path / "third"  # which one process fetches as well as two
    assert "after 4 steps" in str(attach(f"file://{bucket}", third, open_registry()))
    must_be_equal(third, whole)


def test_what_is_wrong_there_ends_all_of_them_with_one_error(home: Home, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    head = '{"format": 1, "step": 2, "files": {"identity.json": "%s"}}' % ("0" * 64)
    (tmp_path / "bucket" / "head.json").write_text(head, encoding="utf-8")
    ended = home.both(tmp_path / "run", REPLICAS, tmp_path / "bucket")
    assert [one.code for one in ended] == [2, 2]
    assert "holds no run that is whole: identity.json is missing" in ended[0].output
    assert "Traceback" not in ended[0].output + ended[1].output
    assert not (tmp_path / "run").exists()


def test_what_has_been_fetched_for_all_is_not_fetched_by_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that `ft run --processes` starts do not meet for it either."""
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "head.json").write_text('{"format": 2}', encoding="utf-8")
    url = f"file://{tmp_path / 'bucket'}"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(devices, "make_accelerator", lambda: pytest.fail("it must not join the others"))
    monkeypatch.setenv(FETCHED, url)
    registry = open_registry()
    assert attach(url, tmp_path / "run", registry) is None
    assert "remote" in registry.plugins
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv(FETCHED)
    with pytest.raises(RunError, match="of another release"):
        attach(url, tmp_path / "run", open_registry())
