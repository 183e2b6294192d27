"""`skypilot`: the task that is written, checked by SkyPilot's own package where that is installed, and its command's
answers in words. No cloud is asked.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from fitune import Job, JobState, Launcher, RunError
from fitune.testing import open_registry
from fitune_plugins.launchers.skypilot import SkyPilotOptions, check, task

OPTIONS = SkyPilotOptions(bucket="memory://a-bucket/mine")
NAME = "fitune-mine-0123456789"

SKY = """\
#!/bin/sh
# what it was asked, its variables and the task; then what is prescribed
echo "$@" >> "$FAKE_SKY/asked"
echo "$HF_TOKEN" >> "$FAKE_SKY/variables"
for word; do case "$word" in *task.yaml) cp "$word" "$FAKE_SKY/task.json";; esac; done
if [ -f "$FAKE_SKY/fails" ]; then echo "noise"; cat "$FAKE_SKY/fails" >&2; exit 1; fi
[ "$2" = queue ] && cat "$FAKE_SKY/queue"
[ "$2" = logs ] && printf 'a line\\nand another\\n'
exit 0
"""


@pytest.fixture
def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of SkyPilot's, and what it was asked."""
    place = tmp_path / "sky"
    place.mkdir()
    (place / "sky").write_text(SKY, encoding="utf-8")
    (place / "sky").chmod(0o755)
    (place / "queue").write_text("[]", encoding="utf-8")
    monkeypatch.setenv("PATH", os.pathsep.join([str(place), os.environ["PATH"]]))
    monkeypatch.setenv("FAKE_SKY", str(place))
    return place


@pytest.fixture
def launcher() -> Launcher[Any]:
    """It."""
    return open_registry().find(Launcher, "skypilot")


@pytest.fixture
def job(tmp_path: Path, launcher: Launcher[Any]) -> Job:
    """A spot job with a secret."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "work.py").write_text("", encoding="utf-8")
    machine = launcher.machine(OPTIONS, "A10G")
    secret = {"HF_TOKEN": "hf_0123456789abcdefghij"}
    return Job(name=NAME, bundle=bundle, machine=machine, seconds=3600, spot=True, environment=secret)


def queued(place: Path, *jobs: dict[str, Any]) -> None:
    """What `sky jobs queue` will say, behind a line of noise as it may print."""
    (place / "queue").write_text("A new version is there\n" + json.dumps(jobs), encoding="utf-8")


def test_the_task_is_one_that_skypilot_takes(job: Job) -> None:
    sky = pytest.importorskip("sky", reason="needs SkyPilot's own package")
    for spot in (False, True):
        for infra in ("", "aws/us-east-1"):
            options = SkyPilotOptions(bucket="s3://a-bucket/mine", infra=infra)
            made = sky.Task.from_yaml_config(task(options, dataclasses.replace(job, spot=spot)))
            (resources,) = made.resources
            assert resources.use_spot is spot
            assert resources.accelerators == {"A10G": 1}


def test_a_job_is_submitted_with_what_lies_beside_it_and_its_secret_by_name(
    sky: Path, launcher: Launcher[Any], job: Job
) -> None:
    launcher.submit(OPTIONS, job)
    asked = (sky / "asked").read_text(encoding="utf-8").splitlines()
    assert asked[-1].startswith(f"jobs launch --yes --detach-run --name {NAME} --secret HF_TOKEN ")
    assert "hf_0123456789abcdefghij" not in "".join(asked)
    assert (sky / "variables").read_text(encoding="utf-8").splitlines()[-1] == "hf_0123456789abcdefghij"
    written = json.loads((sky / "task.json").read_text(encoding="utf-8"))
    assert written["resources"]["use_spot"] is True
    assert written["resources"]["accelerators"] == "A10G:1"
    assert written["resources"]["job_recovery"] == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [3]}
    assert written["file_mounts"] == {"~/fitune-job/bundle": str(job.bundle)}
    assert f"--remote memory://a-bucket/mine/{NAME} --seconds 3600 --install" in written["run"]
    assert written["secrets"] == {"HF_TOKEN": None}
    queued(sky, {"job_name": NAME, "job_id": 1, "status": "RUNNING"})
    launcher.submit(OPTIONS, job)
    four = dataclasses.replace(job, machine=launcher.machine(OPTIONS, "A10G:4"))
    assert any(
        "managed job" in line for line in launcher.prepare(OPTIONS, four)
    )  # whose processes keep checkpoints too
    assert len([line for line in (sky / "asked").read_text().splitlines() if "jobs launch" in line]) == 1


STATES: dict[str, tuple[JobState, str]] = {
    "PENDING": ("waiting", "controller"),
    "STARTING": ("waiting", "waits for a machine"),
    "RUNNING": ("running", ""),
    "RECOVERING": ("waiting", "goes on from its last checkpoint"),
    "WINDING_DOWN": ("running", "given back"),
    "SUCCEEDED": ("done", ""),
    "CANCELLED": ("stopped", "cancelled"),
    "FAILED_NO_RESOURCE": ("failed", "no cloud that SkyPilot may use has such a machine"),
    "OF_ANOTHER_YEAR": ("running", "OF_ANOTHER_YEAR"),
}


@pytest.mark.parametrize("said", STATES)
def test_what_becomes_of_a_job_is_told_in_words(sky: Path, launcher: Launcher[Any], said: str) -> None:
    queued(sky, {"job_name": "other", "job_id": 9, "status": "FAILED"},
           {"job_name": NAME, "job_id": 7, "status": said, "job_duration": 12.5},
           {"job_name": NAME, "job_id": 2, "status": "FAILED"})  # fmt: skip
    found = launcher.status(OPTIONS, NAME)
    assert (found.state, found.billed) == (STATES[said][0], 12.5)
    assert STATES[said][1] in found.what
    assert [one.name for one in launcher.jobs(OPTIONS)] == [NAME, NAME]


def test_a_job_that_is_not_there_is_absent(sky: Path, launcher: Launcher[Any], tmp_path: Path) -> None:
    assert launcher.status(OPTIONS, NAME).state == "absent"
    launcher.stop(OPTIONS, NAME)
    assert "cancel" not in (sky / "asked").read_text(encoding="utf-8")
    for call in (lambda: list(launcher.logs(OPTIONS, NAME)), lambda: launcher.fetch(OPTIONS, NAME, tmp_path)):
        with pytest.raises(RunError, match="knows no managed job"):
            call()


def test_logs_stop_and_fetch(sky: Path, launcher: Launcher[Any], tmp_path: Path) -> None:
    queued(sky, {"job_name": NAME, "job_id": 1, "status": "RUNNING"})
    assert list(launcher.logs(OPTIONS, NAME)) == ["a line", "and another"]
    launcher.stop(OPTIONS, NAME)
    assert f"jobs cancel --yes --name {NAME}" in (sky / "asked").read_text(encoding="utf-8")
    into = tmp_path / "into"
    into.mkdir()
    launcher.fetch(OPTIONS, NAME, into)  # no checkpoint yet
    assert list(into.iterdir()) == []
    memory, root = fsspec.filesystem("memory"), f"/a-bucket/mine/{NAME}"
    memory.pipe_file(f"{root}/objects/aa", b"{}")
    memory.pipe_file(f"{root}/head.json", json.dumps({"format": 1, "step": 1, "files": {"a/run.json": "aa"}}).encode())
    launcher.fetch(OPTIONS, NAME, into)
    assert (into / "a" / "run.json").read_bytes() == b"{}"
    memory.pipe_file(f"{root}/head.json", json.dumps({"format": 1, "step": 1, "files": {"../../out": "aa"}}).encode())
    with pytest.raises(RunError, match="leads out of the run"):
        launcher.fetch(OPTIONS, NAME, into)
    memory.store.clear()


def test_what_cannot_be_is_refused(sky: Path, launcher: Launcher[Any], job: Job) -> None:
    for instance, said in (
        (None, "Give --instance, e.g. A10G:1"),
        ("A10G:x", "as SkyPilot does"),
        (":2", "as SkyPilot"),
    ):
        with pytest.raises(RunError, match=said):
            launcher.machine(OPTIONS, instance)
    assert (launcher.machine(OPTIONS, "A100-80GB:8").gpu, launcher.machine(OPTIONS, "A100-80GB:8").gpus) == (
        "A100-80GB",
        8,
    )
    assert [one.key for one in check(SkyPilotOptions(bucket="a-bucket"))] == ["bucket"]
    (sky / "fails").write_text("warning\nsky.exceptions.NoCloudAccessError: no cloud\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"sky jobs queue failed: sky\.exceptions\.NoCloudAccessError: no cloud"):
        launcher.status(OPTIONS, NAME)


def test_without_skypilot_it_is_told(launcher: Launcher[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="there is no program sky here"):
        launcher.status(OPTIONS, NAME)
