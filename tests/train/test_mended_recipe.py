"""A run that is done, and whose recipe.toml is damaged: `ft run` writes it again, and keeps what was there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import tomli

from fitune.runs.provenance import changed_recipe
from fitune.testing import open_registry
from fitune.train.begin import begin
from fitune.train.start import start_of
from support.after_runs import finished

RECIPE = "recipe.toml"


class Told:
    """Keeps notices."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def __call__(self, what: str, flow: Mapping[str, int]) -> AbstractContextManager[None]:
        return nullcontext()

    def tell(self, notice: str) -> None:
        self.notices.append(notice)


def again(run: Path) -> list[str]:
    """What `ft run RUN` tells of a run that is done."""
    registry, told = open_registry(), Told()
    start = start_of(run, registry, (), out=None, resume=False, allowed=())
    assert start.done
    begin(start, registry, watch=told)
    return told.notices


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Iterator[Path]:
    """The run, which is as it was afterwards."""
    shutil.copytree(made, tmp_path / "kept")
    yield made
    shutil.rmtree(made)
    shutil.copytree(tmp_path / "kept", made)


def flipped(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content.replace(b"alpha", b"alpga", 1))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def gone(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def a_directory(file: Path) -> None:
    file.unlink()
    (file / "inner").mkdir(parents=True)


def a_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    flipped(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


DAMAGES = (flipped, cut, gone, empty, no_text, a_pipe, a_directory, a_link)


@pytest.mark.parametrize("damage", DAMAGES)
def test_it_is_written_again(run: Path, damage: Callable[[Path], None]) -> None:
    file, right = run / RECIPE, (run / RECIPE).read_text(encoding="utf-8")
    damage(file)
    (told,) = again(run)
    assert told.startswith(str(file))
    assert "written again from identity.json" in told
    assert not file.is_symlink()
    assert tomli.loads(file.read_text(encoding="utf-8")) == tomli.loads(right)
    assert changed_recipe(run) is None
    assert (damage is gone) != os.path.lexists(run / f"{RECIPE}.1")
    assert again(run) == []


def test_what_was_changed_on_purpose_stays(run: Path) -> None:
    """Without its first line, as the notice says."""
    changed = (run / RECIPE).read_text(encoding="utf-8").partition("\n")[2].replace('"tiny"', '"mine"')
    (run / RECIPE).write_text(changed, encoding="utf-8")
    assert again(run) == []
    assert (run / RECIPE).read_text(encoding="utf-8") == changed


def test_what_is_told_of_a_changed_one_says_what_to_do(run: Path) -> None:
    flipped(run / RECIPE)
    told = changed_recipe(run)
    assert told is not None
    assert f"ft run {run} writes it again" in told
    (run / "identity.json").unlink()
    told = changed_recipe(run)
    assert told is not None
    assert "writes it again" not in told


def test_what_fit_chose_is_not_made_up(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but recipe.toml says what it was."""
    flipped(run / RECIPE)
    before = (run / RECIPE).read_bytes()
    registry, told = open_registry(), Told()
    start = start_of(run, registry, ("memory.fit=true",), out=None, resume=False, allowed=("memory.fit",))
    object.__setattr__(start, "done", True)
    begin(start, registry, watch=told)
    assert "cannot be written again" in told.notices[0]
    assert (run / RECIPE).read_bytes() == before


def test_a_disk_that_takes_nothing_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flipped(run / RECIPE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fitune.runs.provenance.write_recipe", full)
    (told,) = again(run)
    assert told.endswith("is damaged, and cannot be written: No space left on device")
