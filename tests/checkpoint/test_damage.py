"""Whatever befalls the files of a checkpoint is found and named, nothing of it is loaded, and an older one is taken."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitune import RunError
from fitune.checkpoint.files import newest, places, read
from fitune.checkpoint.manifest import NAME, damage, write_manifest
from fitune.errors import FtError
from fitune.runs.identity import read_identity
from fitune.testing import open_registry, write_recipe
from fitune.train.start import start_of
from support.resuming import Stopper, go, stop, weights
from support.states import assert_same

FLIPS = 12
"""Places of each file in which a bit is flipped."""
KINDS = {"lora": "adapter", "none": "model"}


@pytest.fixture(scope="module", params=KINDS)
def stopped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, of an adapter or in full, that was stopped after two steps, with a checkpoint of each."""
    home = tmp_path_factory.mktemp("damage")
    recipe = write_recipe(home / "recipe", {"adapter": {"use": request.param}, "checkpoint": {"steps": 1}})
    stop(recipe, home / "run", 2)
    return home / "run"


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def files_of(checkpoint: Path) -> list[str]:
    """Names of the files of a checkpoint, the manifest's too."""
    return sorted(place.relative_to(checkpoint).as_posix() for place in checkpoint.rglob("*") if place.is_file())


def must_be_found(run: Path, *words: str) -> None:
    """The newest checkpoint is found to be damaged, and the one before is taken."""
    place = run / "checkpoints" / "step-2"
    wrong = damage(place)
    assert wrong is not None
    with pytest.raises(RunError) as raised:
        read(place)
    assert raised.value.message == f"{place}: {wrong}"
    assert all(word in wrong for word in words), wrong
    found, damaged = newest(run)
    assert found is not None
    assert (found.progress.step, damaged) == (1, [raised.value.message])


def _flip(file: Path, at: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << bit
    file.write_bytes(content)


def _become_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _become_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a byte is missing": lambda file: os.truncate(file, file.stat().st_size - 1),
    "half is missing": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "a byte is added": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
    "of zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "gone": Path.unlink,
    "a directory": _become_directory,
    "a link that leads nowhere": _become_link,
}


def test_a_checkpoint_has_these_files(stopped: Path) -> None:
    """What the tests below go through is all there is."""
    names = files_of(stopped / "checkpoints" / "step-2")
    assert {NAME, "process-0.json", "state.json", "state.safetensors"} < set(names)
    assert any(name.startswith(tuple(KINDS.values())) and name.endswith(".safetensors") for name in names)
    assert damage(stopped / "checkpoints" / "step-2") is None


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_file_is_watched(run: Path, stopped: Path, kind: str) -> None:
    place, whole = run / "checkpoints" / "step-2", stopped / "checkpoints" / "step-2"
    for name in files_of(whole):
        DAMAGES[kind](place / name)
        must_be_found(run, name)
        shutil.rmtree(place)
        shutil.copytree(whole, place)


def test_every_byte_is_watched(run: Path) -> None:
    draw = random.Random(6)
    place = run / "checkpoints" / "step-2"
    for name in files_of(place):
        size = (place / name).stat().st_size
        for at in {0, size - 1, *(draw.randrange(size) for _ in range(FLIPS))}:
            bit = draw.randrange(8)
            _flip(place / name, at, bit)
            must_be_found(run, name)
            _flip(place / name, at, bit)
    assert damage(place) is None


def test_files_of_another_step_are_found(run: Path) -> None:
    """One by one, where they differ; and a whole checkpoint under another one's name."""
    newer, older = (run / "checkpoints" / f"step-{step}" for step in (2, 1))
    differ = [name for name in files_of(newer) if (newer / name).read_bytes() != (older / name).read_bytes()]
    assert {"state.json", "state.safetensors", NAME} <= set(differ)
    for name in differ:
        kept = (newer / name).read_bytes()
        shutil.copy(older / name, newer / name)
        must_be_found(run)
        (newer / name).write_bytes(kept)
    shutil.rmtree(newer)
    shutil.copytree(older, newer)
    must_be_found(run, "is the checkpoint of step 1")


def test_an_empty_directory_and_a_file_in_its_place(run: Path) -> None:
    place = run / "checkpoints" / "step-2"
    shutil.rmtree(place)
    place.mkdir()
    must_be_found(run, f"{NAME} is missing")
    place.rmdir()
    place.write_text("a file")
    assert [step for step, _ in places(run)] == [1]


def test_a_run_goes_on_from_the_older_one_to_the_same_end(run: Path, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "other")
    go(tmp_path / "other")
    DAMAGES["half is missing"](run / "checkpoints" / "step-2" / "state.safetensors")
    told = Stopper()
    go(run, plugins=[told])
    assert [notice.kind for notice in told.notices] == ["damaged checkpoint"]
    assert [step.step for step in told.steps] == [2, 3]
    assert_same(weights(run), weights(tmp_path / "other"))
    assert all(damage(place) is None for _, place in places(run))  # the damaged one was replaced


# --------------------------------------------------------------------------- made by somebody, manifest and all


class Payload:
    """Code in a pickle, which makes a file if it is run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def forge(run: Path, name: str, content: bytes) -> Path:
    """Put a file into the newest checkpoint, and write a manifest that vouches for it; gives the checkpoint."""
    place = run / "checkpoints" / "step-2"
    (place / name).write_bytes(content)
    (place / NAME).unlink()
    write_manifest(place, 2)
    assert damage(place) is None
    return place


def test_no_pickle_runs(run: Path, tmp_path: Path) -> None:
    """In the place of any file, or beside them under names that torch, peft and transformers load from."""
    ran = tmp_path / "ran"
    content = pickle.dumps(Payload(ran))
    pickle.loads(content)
    ran.rmdir()  # that is what must not come back
    for name in ("state.safetensors", "state.json", "process-0.json"):
        shutil.copytree(run, tmp_path / name)
        with pytest.raises(RunError, match="step-2: cannot be read: "):
            read(forge(tmp_path / name, name, content))
        found, _ = newest(tmp_path / name)
        assert found is not None
        assert found.progress.step == 1
    trained = next(name for name in KINDS.values() if (run / "checkpoints" / "step-2" / name).is_dir())
    for name in ("state.bin", "state.pt", "pytorch_model.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt"):
        forge(run, name, content)
        forge(run, f"{trained}/{name}", content)
    forge(run, f"{trained}/adapter_model.bin", content)
    go(run)
    assert not ran.exists()


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda values: [],
    "a number": lambda values: 5,
    "nothing": lambda values: {},
    "a state of another type": lambda values: {**values, "state": "step 2"},
    "a progress of another type": lambda values: {**values, "progress": [1, 2]},
    "unknown progress": lambda values: {**values, "progress": {**values["progress"], "speed": 1}},
    "a step of another type": lambda values: {**values, "progress": {**values["progress"], "step": "two"}},
    "modules of another type": lambda values: {**values, "state": {**values["state"], "modules": []}},
    "scaling of another type": lambda values: {**values, "state": {**values["state"], "scaling": [1]}},
    "a tensor that is not there": lambda values: {**values, "state": {**values["state"], "masters": {"tensor": "no"}}},
    "a tensor without a name": lambda values: {**values, "state": {**values["state"], "names": {"tensor": {}}}},
    "a dict of no pairs": lambda values: {**values, "state": {**values["state"], "names": {"dict": [[1]]}}},
}


@pytest.mark.parametrize("kind", STATES)
def test_a_state_of_wrong_types_is_an_error(run: Path, kind: str) -> None:
    file = run / "checkpoints" / "step-2" / "state.json"
    forged = json.dumps(STATES[kind](json.loads(file.read_text()))).encode()
    with pytest.raises(RunError, match="step-2: "):
        read(forge(run, "state.json", forged))


@pytest.mark.parametrize("text", ["[]", "5", "null", "{}", '{"sha256": 1}', '{"sha256": 1, "format": 1}', "[" * 9999])
def test_a_manifest_of_wrong_types_is_an_error(run: Path, text: str) -> None:
    (run / "checkpoints" / "step-2" / NAME).write_text(text)
    must_be_found(run, NAME)


def test_an_identity_that_was_changed_is_an_error(run: Path) -> None:
    """In any of its values, though another one may be right as well."""
    file = run / "identity.json"
    values = json.loads(file.read_text())
    changes: list[dict[str, Any]] = [
        {"recipe": {**values["recipe"], "seed": 43}}, {"data": "0" * 64}, {"held_out": "x"}, {"model": "0" * 64},
        {"rows_of_step": 3}, {"versions": {}}, {"base": None}, {"place": "/elsewhere"}, {"place": None},
        {"plugins": None}, {"plugins": {**values["plugins"], "adapter lora": {"digest": "0" * 64}}},
        {"sha256": "0" * 64}, {"sha256": None},
    ]  # fmt: skip
    for change in changes:
        file.write_text(json.dumps({**values, **change}))
        with pytest.raises(RunError, match="it is not what was written"):
            start_of(run, open_registry(), (), out=None, resume=False, allowed=())


@pytest.mark.parametrize("value", [None, 5, "text", [1], {"a": 1}])
def test_an_identity_of_wrong_types_is_an_error(run: Path, stopped: Path, value: object) -> None:
    """The run is refused, or goes on where the value may be; nothing else is raised."""
    file = run / "identity.json"
    values = json.loads(file.read_text())
    del values["sha256"], values["place"]  # as 0.1 wrote it, which nothing tells from one that was changed
    (run.parent / "recipe").symlink_to(stopped.parent / "recipe")
    for text in (json.dumps(value), "[" * 9999):
        file.write_text(text)
        with pytest.raises(RunError, match=r"identity\.json cannot be read: .* Start the run anew"):
            read_identity(run)
    for key in values:
        file.write_text(json.dumps({**values, key: value}))
        may_be = (key, value) in [
                ("held_out", None), ("versions", {"a": 1}), ("base", None), ("start", None), ("processes", 5),
                ("plugins", None),
            ]  # fmt: skip
        with contextlib.nullcontext() if may_be else pytest.raises(FtError):
            start_of(run, open_registry(), (), out=None, resume=False, allowed=())
            if key not in ("recipe", "versions"):
                go(run, "train.steps=3")
