"""Nothing can be written in the midst of a run: training is not lost, and what is and is not saved is told.

On a small file system in memory, which only an administrator can mount, and by other means where nobody need be one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fitune.checkpoint.files import places
from fitune.checkpoint.manifest import damage
from fitune.runs.identity import write_identity
from fitune.runs.provenance import write_environment, write_recipe
from fitune.train import loop
from fitune.train.save import save
from fitune.train.start import make_directory
from support.blows import MEANS, deny
from support.fault_recipe import write_fault_recipe
from support.fault_suite import lines_of, outcome
from support.forked import Ended, Forks
from support.places import Function, place_of

STEPS = 6
SIZE = "2m"
CAUSES = {"full": "No space left on device", "limited": "File too large", "forbidden": "Permission denied"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fault_recipe(tmp_path_factory.mktemp("disk") / "recipe", STEPS)


@pytest.fixture(scope="module")
def plain(forks: Forks, recipe: Path) -> dict[str, Any]:
    """What comes of it where there is room."""
    ended = forks.run(["run", recipe, "--out", recipe.parent / "plain"], cwd=recipe.parent)
    assert ended.code == 0, ended.output
    return outcome(recipe.parent / "plain")


class Disk:
    """A directory for a run, on which nothing can be written for a while."""

    def __init__(self, forks: Forks, recipe: Path, means: str, place: Path, cwd: Path) -> None:
        self.forks, self.recipe, self.means, self.place, self.cwd = forks, recipe, means, place, cwd
        self.run = place / "run"
        self.cause = CAUSES[means]

    def start(self, at: Function, first: int, last: int | None = None) -> Ended:
        """Begin a run that cannot write from the first to the last time that it enters a function."""
        given: list[str | Path] = ["run", self.recipe, "--out", self.run]
        place, at_ = str(self.place), place_of(at)
        values: dict[str, Any] = {"means": self.means, "place": place, "at": at_, "first": first, "last": last}
        return self.forks.run(given, cwd=self.cwd, prepare=deny, **values)

    def go_on(self) -> None:
        """Make room, and go on to the end."""
        (self.place / "filler").unlink(missing_ok=True)
        ended = self.forks.run(["run", self.run], cwd=self.cwd)
        assert ended.code == 0, ended.output

    def must_tell(self, ended: Ended, text: str) -> None:
        """It has printed this, and no traceback; nothing, where what it prints cannot be written either."""
        assert "Traceback" not in ended.output
        assert self.means == "limited" or text in ended.output, ended.output

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, every one of them whole."""
        found = places(self.run)
        assert [damage(place) for _, place in found] == [None] * len(found)
        assert not list(self.run.rglob("*.partial"))
        return sorted(step for step, _ in found)

    def must_equal(self, plain: dict[str, Any]) -> None:
        """What was trained, and which checkpoints there are; metrics have notices beside."""
        assert outcome(self.run) == plain


@pytest.fixture(params=MEANS)
def disk(request: pytest.FixtureRequest, forks: Forks, recipe: Path, tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    if request.param == "full":
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(mounting, capture_output=True, check=False).returncode:
            pytest.skip("a file system cannot be mounted here: it takes an administrator of a Linux machine")
    yield Disk(forks, recipe, request.param, place, tmp_path)
    if request.param == "full":
        subprocess.run(["umount", str(place)], check=True)


def test_a_checkpoint_that_cannot_be_written(disk: Disk, plain: dict[str, Any]) -> None:
    """From the fourth step to the fifth: there is no checkpoint of step 4, and one of step 6."""
    ended = disk.start(loop._step, 4, 5)
    assert ended.code == 0, ended.output
    place = disk.run / "checkpoints" / "step-4"
    why = f"{disk.cause}. The newest is that of step 3. Make room, and the next one will be"
    disk.must_tell(ended, f"{place} could not be written: {why}")
    assert disk.steps() == [3, 6]
    found = outcome(disk.run)
    assert found["adapter"] == plain["adapter"]
    assert found["curve"] == plain["curve"]


def test_what_was_trained_cannot_be_saved_but_is_in_a_checkpoint(disk: Disk, plain: dict[str, Any]) -> None:
    ended = disk.start(save, 1)
    assert ended.code == 2
    checkpoint = disk.run / "checkpoints" / f"step-{STEPS}"
    why = f"{disk.cause}. What was trained is in {checkpoint}. Make room, then: ft run {disk.run}"
    disk.must_tell(ended, f"error: {disk.run / 'adapter'} could not be written: {why}")
    assert disk.steps() == [4, STEPS]
    assert not (disk.run / "adapter").exists()
    disk.go_on()
    disk.must_equal(plain)


def test_neither_can_the_last_checkpoint(disk: Disk, plain: dict[str, Any]) -> None:
    """What was trained is written elsewhere if it can be, and is not lost if the last steps are made again."""
    ended = disk.start(loop._step, 5)
    assert ended.code == 2
    disk.must_tell(ended, f"error: {disk.run / 'adapter'} could not be written: {disk.cause}. ")
    disk.must_tell(ended, f"What was trained in 4 steps is saved in {disk.run / 'checkpoints' / 'step-4'}. ")
    if disk.means != "limited":  # where nothing can be written anywhere
        place = Path(ended.output.split("What was trained was written to ")[1].split(" instead")[0])
        assert (place / "adapter_model.safetensors").read_bytes() == plain["adapter"]
        shutil.rmtree(place)
    assert disk.steps() == [3, 4]
    disk.go_on()
    disk.must_equal(plain)


@pytest.mark.parametrize("at", [make_directory, write_identity, write_environment, write_recipe])
def test_the_very_first_file(disk: Disk, recipe: Path, plain: dict[str, Any], at: Function) -> None:
    """One of those that a run begins with: it ends in a line, and the same command begins again once there is room."""
    ended = disk.start(at, 1)
    assert ended.code == 2
    if disk.means == "forbidden":  # files can be written, and no directory of weights: found before the first step
        disk.must_tell(ended, f"error: what this run trains cannot be saved in {disk.run}: {disk.cause}")
        assert not lines_of(disk.run)
        shutil.rmtree(disk.run)
    else:
        disk.must_tell(ended, f"could not be written: {disk.cause}. Nothing is lost. Mend that, or give another --out")
    (disk.place / "filler").unlink(missing_ok=True)
    again = disk.forks.run(["run", recipe, "--out", disk.run, "--resume"], cwd=disk.cwd)
    assert again.code == 0, again.output
    disk.must_equal(plain)


def test_notices_are_kept(disk: Disk) -> None:
    """In the metrics, once they can be written."""
    disk.start(loop._step, 4, 5)
    notices = [line for line in lines_of(disk.run) if line["event"] == "notice"]
    assert [(line["step"], line["kind"]) for line in notices if line["kind"] == "not saved"] == [(4, "not saved")]
    assert disk.cause in json.dumps(notices)
