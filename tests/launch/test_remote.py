"""A run on object storage: kept whole after each checkpoint, fetched at the start, never gone on with from a part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import fitune
from fitune import RunError
from fitune.cli.main import main
from fitune.launch.remote import Remote
from fitune.testing import write_recipe
from support.commands import Capture
from support.tiny import adapter, losses

STOPS = """\
import os

import fitune

RUNS = []


@fitune.hookimpl
def ft_run_started(run):
    RUNS.append(run.stop)


@fitune.hookimpl
def ft_step_done(step):
    if step.step == int(os.environ.get("TEST_STOP_AT", 0)):
        RUNS[-1].ask("a test")
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Four steps with a checkpoint after each, which may be stopped."""
    changes = {"train": {"steps": 4}, "checkpoint": {"steps": 1, "keep": 1}, "plugins": ["./stops.py"]}
    path = write_recipe(tmp_path / "recipe", changes)
    (path.parent / "stops.py").write_text(STOPS, encoding="utf-8")
    return path


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    """In this process's memory."""
    yield f"memory://{tmp_path.name}/mine"
    fsspec.filesystem("memory").store.clear()


def run(recipe: Path, out: str, url: str, capsys: Capture) -> tuple[int, str]:
    """`ft run --remote`: its exit code, and what it says on standard error."""
    code = 0
    try:
        main(("run", str(recipe), "--out", out, "--remote", url))
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, capsys.readouterr().err


def test_another_machine_goes_on_with_what_was_kept_and_learns_the_same(
    recipe: Path, bucket: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fitune.run(recipe, "whole")
    monkeypatch.setenv("TEST_STOP_AT", "2")
    code, _ = run(recipe, "one/run", bucket, capsys)
    assert code == 3
    shutil.rmtree("one")  # the machine is gone
    monkeypatch.delenv("TEST_STOP_AT")
    code, said = run(recipe, "two/run", bucket, capsys)
    assert code == 0, said
    assert "is fetched from memory://" in said
    assert "after 2 steps" in said
    assert losses(Path("two/run")) == losses(whole)
    assert len(losses(whole)) == 4
    assert all(adapter(Path("two/run"))[name].equal(tensor) for name, tensor in adapter(whole).items())

    code, said = run(recipe, "three/run", bucket, capsys)  # what is done is fetched, and that is all
    assert code == 0
    assert "after 4 steps" in said
    assert (Path("three/run/adapter/adapter_model.safetensors")).read_bytes() == (
        Path("two/run/adapter/adapter_model.safetensors")
    ).read_bytes()
    code, said = run(recipe, "two/run", bucket, capsys)  # what is here is as far
    assert "is fetched" not in said


# ---------------------------------------------------------------------------------------------- in parts, without a run
class Run:
    """A directory as a run leaves it, one step after another."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def step(self, number: int) -> Path:
        """Write a checkpoint, and drop the one before."""
        from fitune.checkpoint.manifest import write_manifest

        shutil.rmtree(self.place / "checkpoints", ignore_errors=True)
        made = self.place / "checkpoints" / f"step-{number}"
        made.mkdir(parents=True)
        (made / "state.json").write_text(json.dumps({"step": number}), encoding="utf-8")
        (made / "large.bin").write_bytes(bytes([number]) * 1000)
        write_manifest(made, number)
        (self.place / "identity.json").write_text("{}", encoding="utf-8")
        with (self.place / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": number}) + "\n")
        (self.place / ".lock").write_text("", encoding="utf-8")
        return made


@pytest.fixture(params=["memory", "file"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Run, Remote]]:
    """A run of two steps that was kept after each, in memory or on a disk."""
    url = f"memory://{tmp_path.name}/x" if request.param == "memory" else f"file://{tmp_path / 'bucket'}"
    here = Run(tmp_path / "run")
    remote = Remote(url, here.place)
    for number in (1, 2):
        here.step(number)
        remote.keep(number)
    yield here, remote
    fsspec.filesystem("memory").store.clear()


def elsewhere(remote: Remote, tmp_path: Path) -> Remote:
    """The same, seen from another machine."""
    return Remote(remote.url, tmp_path / "elsewhere" / "run")


def files(place: Path) -> dict[str, bytes]:
    """All that is in a directory, but for its lock."""
    found = {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(".")}


def test_what_is_fetched_is_what_was_kept(kept: tuple[Run, Remote], tmp_path: Path) -> None:
    here, remote = kept
    there = elsewhere(remote, tmp_path)
    assert "after 2 steps" in str(there.fetch())
    assert files(there.directory) == files(here.place)
    assert not (there.directory / ".lock").exists()
    assert there.fetch() is None


def test_objects_that_no_head_names_are_deleted(kept: tuple[Run, Remote]) -> None:
    here, remote = kept
    for number in range(3, 8):
        here.step(number)
        remote.keep(number)
    objects = remote.files.ls(f"{remote.root}/objects", detail=False)
    assert len(objects) <= 2 * len(files(here.place))


def test_what_was_cut_off_in_the_midst_is_never_gone_on_with(
    kept: tuple[Run, Remote], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    here, remote = kept
    before = files(here.place)
    here.step(3)
    put, count = remote.files.put_file, []

    def cut_off(source: str, target: str, **more: Any) -> None:
        count.append(target)
        if len(count) == 2:
            raise OSError("the network is gone")
        put(source, target, **more)

    monkeypatch.setattr(remote.files, "put_file", cut_off)
    remote._try(3)  # the run goes on
    assert "does not have the run after 3 steps: OSError: the network is gone" in capsys.readouterr().err
    there = elsewhere(remote, tmp_path)
    assert "after 2 steps" in str(there.fetch())
    assert files(there.directory) == before
    monkeypatch.undo()
    remote.keep(3)
    assert "after 3 steps" in str(there.fetch())
    assert files(there.directory) == files(here.place)


def _damage(remote: Remote, what: Callable[[str], None]) -> None:
    """Of the newest checkpoint, which the head before does not have."""
    head = json.loads(remote.files.cat_file(f"{remote.root}/head.json"))
    what(f"{remote.root}/objects/{head['files']['checkpoints/step-2/large.bin']}")


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_where_a_file_is_not_what_was_sent_the_moment_before_is_taken(
    kept: tuple[Run, Remote], tmp_path: Path, harm: str
) -> None:
    _, remote = kept
    change = remote.files.rm_file if harm == "missing" else lambda place: remote.files.pipe_file(place, b"other")
    _damage(remote, change)
    there = elsewhere(remote, tmp_path)
    told = str(there.fetch())
    assert "after 1 steps" in told
    assert "large.bin is" in told
    assert (there.directory / "checkpoints" / "step-1" / "large.bin").read_bytes() == bytes([1]) * 1000
    before = json.loads(remote.files.cat_file(f"{remote.root}/before.json"))
    remote.files.rm_file(f"{remote.root}/objects/{before['files']['checkpoints/step-1/large.bin']}")
    with pytest.raises(RunError, match="holds no run that is whole"):
        Remote(remote.url, tmp_path / "third").fetch()
    assert not (tmp_path / "third").exists()


def test_a_head_that_leads_out_of_the_run_is_not_followed(kept: tuple[Run, Remote], tmp_path: Path) -> None:
    _, remote = kept
    head = json.loads(remote.files.cat_file(f"{remote.root}/head.json"))
    digest = next(iter(head["files"].values()))
    for name in ("head.json", "before.json"):
        bad = {**head, "files": {"../../outside": digest}}
        remote.files.pipe_file(f"{remote.root}/{name}", json.dumps(bad).encode())
    with pytest.raises(RunError, match="leads out of the run"):
        elsewhere(remote, tmp_path).fetch()
    assert list(tmp_path.rglob("outside")) == []


def test_what_cannot_be_is_refused_in_a_line(recipe: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, out, said in (
        ("bucket/prefix", ("--out", "run"), "give a place on object storage"),
        ("nosuch://bucket", ("--out", "run"), "nosuch"),
        ("memory://bucket", (), "Give --out DIR"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(("run", str(recipe), "--remote", url, *out))
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert not Path("run").exists()
