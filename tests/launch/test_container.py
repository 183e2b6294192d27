"""A training job in a fake /opt/ml: the real entry, in real processes, stopped, killed, and begun again elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import fitune
from fitune.launch.bundle import make_bundle
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune.testing.launchers import light_bundle
from support.tiny import adapter, losses

ENDS = """\
import os
import signal

import fitune


@fitune.hookimpl
def ft_step_done(step):
    if step.step == int(os.environ.get("TEST_STOP_AT", 0)):
        os.kill(os.getppid(), signal.SIGTERM)  # as SageMaker does: to the first process of the container
    if step.step == int(os.environ.get("TEST_KILL_AT", 0)):
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
"""
"""A plugin beside the recipe, which is sent with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What lies on S3, `container.py` and `bundle.tar`; and a run of the same recipe that nobody disturbed."""

    place: Path
    undisturbed: Path


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """A real run."""
    home = tmp_path_factory.mktemp("sent")
    path = write_recipe(home / "recipe", {"train": {"steps": 5}, "checkpoint": {"steps": 1}, "plugins": ["./ends.py"]})
    (path.parent / "ends.py").write_text(ENDS, encoding="utf-8")
    registry = open_registry()
    recipe = read_recipe(path, registry)
    make_bundle(recipe, registry, home / "bundle")
    fitune.run(recipe, home / "undisturbed", registry=registry)
    shutil.rmtree(path.parent)  # all that the job needs has been sent
    return Sent(place=pack(home / "bundle", home / "s3"), undisturbed=home / "undisturbed")


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program in place of a run."""
    home = tmp_path_factory.mktemp("light")
    return pack(light_bundle(home / "bundle", steps=2, fails=2), home / "s3")


def pack(bundle: Path, place: Path) -> Path:
    """As the launcher uploads it."""
    place.mkdir()
    with tarfile.open(place / "bundle.tar", "w") as tar:
        tar.add(bundle, arcname="bundle")
    shutil.copyfile(bundle / "container.py", place / "container.py")
    return place


def machine(root: Path, packed: Path) -> Path:
    """A new /opt/ml, as SageMaker makes it before a container begins."""
    config = root / "input" / "config"
    config.mkdir(parents=True)
    sha256 = hashlib.sha256((packed / "bundle.tar").read_bytes()).hexdigest()
    for name, values in {
        "hyperparameters": {"sha256": sha256, "install": "false"},
        "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"]},
        "inputdataconfig": {"fitune": {"TrainingInputMode": "File"}},
    }.items():
        (config / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    shutil.copytree(packed, root / "input" / "data" / "fitune")
    return root


def container(root: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    left_out = ("SM_", "FT_ALLOW")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    entry = [sys.executable, str(root / "input" / "data" / "fitune" / "container.py"), str(root)]
    return subprocess.run(
        entry, env={**environment, **variables}, capture_output=True, text=True, check=False, timeout=240
    )


def failure(root: Path) -> str:
    """What the job leaves for SageMaker to tell."""
    return (root / "output" / "failure").read_text(encoding="utf-8")


def test_stopped_killed_and_begun_again_it_learns_the_same_to_the_bit(sent: Sent, tmp_path: Path) -> None:
    first = machine(tmp_path / "first", sent.place)
    stopped = container(first, TEST_STOP_AT="2")
    assert stopped.returncode == 3, stopped.stdout
    assert "it was stopped by SIGTERM" in (first / "fitune" / "job.json").read_text(encoding="utf-8")
    assert not (first / "output" / "failure").exists()

    second = machine(tmp_path / "second", sent.place)
    shutil.copytree(first / "checkpoints", second / "checkpoints")  # as SageMaker does, by way of S3
    assert container(second, TEST_KILL_AT="4").returncode == -9

    third = machine(tmp_path / "third", sent.place)
    shutil.copytree(second / "checkpoints", third / "checkpoints")
    newest = max((third / "checkpoints" / "run" / "checkpoints").glob("step-*"))
    (newest / "state.safetensors").unlink()  # the machine was gone before all of it was copied
    ended = container(third)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert newest.name in ended.stdout  # that it is not whole is told
    run = third / "checkpoints" / "run"
    assert losses(run) == losses(sent.undisturbed)
    assert len(losses(run)) == 5
    found, expected = adapter(run), adapter(sent.undisturbed)
    assert all(found[name].equal(expected[name]) for name in expected)
    assert not (third / "model" / "checkpoints").exists()
    assert (third / "model" / "adapter" / "adapter_model.safetensors").read_bytes() == (
        run / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


def test_the_cause_of_a_failure_is_left_for_sagemaker(light: Path, tmp_path: Path) -> None:
    root = machine(tmp_path / "ml", light)
    ended = container(root)
    assert ended.returncode == 2
    assert failure(root) == "the data of step 2 are bad"
    assert not (root / "model").exists()


def test_pieces_of_a_run_without_its_beginning_are_set_aside(light: Path, tmp_path: Path) -> None:
    root = machine(tmp_path / "ml", light)
    pieces = root / "checkpoints" / "run" / "checkpoints" / ".step-1.0.partial"
    pieces.mkdir(parents=True)
    container(root)
    container(root)  # and a run that has begun is not
    assert len(list((root / "checkpoints").glob("run.incomplete-*"))) == 1
    assert (root / "checkpoints" / "run" / "step").read_text(encoding="utf-8") == "2"


def _no_archive(root: Path) -> None:
    (root / "input" / "data" / "fitune" / "bundle.tar").unlink()


def _another_archive(root: Path) -> None:
    with (root / "input" / "data" / "fitune" / "bundle.tar").open("ab") as file:
        file.write(b"more")


def _two_machines(root: Path) -> None:
    (root / "input" / "config" / "resourceconfig.json").write_text('{"hosts": ["algo-1", "algo-2"]}')


def _no_channel(root: Path) -> None:
    (root / "input" / "config" / "inputdataconfig.json").write_text('{"training": {}}')


def _no_configuration(root: Path) -> None:
    (root / "input" / "config" / "hyperparameters.json").unlink()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_no_archive, "what was sent has not arrived"),
        (_another_archive, "is not what was sent"),
        (_two_machines, "the job has 2 machines"),
        (_no_channel, 'the job has no input channel "fitune" (it has: training)'),
        (_no_configuration, "Is this a training job of SageMaker's?"),
    ],
)
def test_what_cannot_be_begun_is_a_failure_in_words(light: Path, tmp_path: Path, harm: object, said: str) -> None:
    root = machine(tmp_path / "ml", light)
    assert callable(harm)
    harm(root)
    ended = container(root)
    assert ended.returncode == 2
    assert said in failure(root)
    assert "Traceback" not in ended.stderr
