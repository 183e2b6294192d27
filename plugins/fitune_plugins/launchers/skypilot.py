"""Launcher `skypilot`: a managed job of SkyPilot, on whatever cloud it is set up for.

A task file is written and checked by SkyPilot's own package, and submitted by its own command. A spot machine that is
taken back is replaced, and the run goes on from its checkpoints, which `ft run --remote` keeps in a bucket: no mounted
bucket, since a run's directory wants locks and names that change at once.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from annotated_types import Ge, Le

from fitune import Job, JobState, JobStatus, Launcher, Machine, Problem, RunError, hookimpl

STOPPED = 3
"""Exit code of a job that was asked to stop and has saved: on a spot machine, by the cloud."""

HOME = "~/fitune-job"
"""On the machine: what was sent, and the run."""

STATES: dict[str, tuple[JobState, str]] = {
    "PENDING": ("waiting", "it waits for SkyPilot's controller"),
    "SUBMITTED": ("waiting", "it waits for SkyPilot's controller"),
    "STARTING": ("waiting", "it waits for a machine"),
    "RUNNING": ("running", ""),
    "WINDING_DOWN": ("running", "it has ended, and its machine is given back"),
    "RECOVERING": ("waiting", "its machine was taken back; SkyPilot looks for another, and it goes on from its last "
                   "checkpoint"),
    "CANCELLING": ("stopping", "SkyPilot ends it"),
    "CANCELLED": ("stopped", "it was cancelled"),
    "SUCCEEDED": ("done", ""),
    "FAILED": ("failed", "the run has failed: see ft launch logs"),
    "FAILED_SETUP": ("failed", "the packages could not be installed: see ft launch logs"),
    "FAILED_PRECHECKS": ("failed", "SkyPilot refuses it: see sky jobs logs --controller"),
    "FAILED_NO_RESOURCE": ("failed", "no cloud that SkyPilot may use has such a machine"),
    "FAILED_CONTROLLER": ("failed", "SkyPilot's controller has failed: see sky jobs logs --controller"),
}  # fmt: skip
"""By SkyPilot's own (docs.skypilot.co/en/latest/examples/managed-jobs.html)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyPilotOptions:
    """Options of `skypilot`. Clouds and credentials are SkyPilot's own: sky check."""

    bucket: str
    """Where checkpoints and results are kept: s3://NAME/PREFIX or gs://NAME/PREFIX, of a bucket that is there."""
    infra: str = ""
    """Where to train, as SkyPilot takes it, e.g. "aws/us-east-1"; by default the cheapest of all that it may use."""
    disk_gb: Annotated[int, Ge(50), Le(10**5)] = 256
    """Gigabytes of disk."""
    image: str = ""
    """The machine's image, as SkyPilot's image_id takes it, e.g. "docker:pytorch/pytorch:latest"."""


def check(options: SkyPilotOptions) -> Iterator[Problem]:
    """What cannot be, without asking anybody."""
    scheme, sign, rest = options.bucket.partition("://")
    if scheme not in ("s3", "gs", "r2", "cos", "nebius") or not sign or not rest.strip("/"):
        yield Problem(key="bucket", what=f'"{options.bucket}" is no bucket', fix='Give "s3://NAME/PREFIX"')


def machine(options: SkyPilotOptions, instance: str | None) -> Machine:
    """A card and how many, as SkyPilot's accelerators are written: A10G, or A100-80GB:8. It has prices of its own."""
    if instance is None:
        raise RunError("SkyPilot looks for a machine by its cards, so they must be named. Give --instance, e.g. A10G:1")
    name, _, count = instance.partition(":")
    if not name or not (count or "1").isdecimal() or int(count or 1) < 1 or not any(c.isdigit() for c in name):
        raise RunError(f'--instance {instance}: write a card and how many, as SkyPilot does: "A10G:1", "A100-80GB:8"')
    return Machine(name=f"{name}:{count or 1}", gpu=name, gpus=int(count or 1))


def task(options: SkyPilotOptions, job: Job) -> dict[str, Any]:
    """The task file (docs.skypilot.co/en/latest/reference/yaml-spec.html). Variables are named, and not written."""
    resources: dict[str, Any] = {
        "accelerators": job.machine.name,
        "use_spot": job.spot,
        "disk_size": options.disk_gb,
        # What a user got wrong is as wrong a second time; what has saved and ended goes on elsewhere.
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [STOPPED]},
    }
    resources |= {key: value for key, value in (("infra", options.infra), ("image_id", options.image)) if value}
    limit = ["--seconds", str(job.seconds)] if job.seconds is not None else []
    work = ["python3", f"{HOME}/bundle/work.py", HOME, "--remote", place_of(options, job.name), *limit]
    install = ["--install", "--venv", f"{HOME}/venv"] if job.install else []
    # ~ is for the shell, so it is not quoted
    run = " ".join(word if word.startswith("~") else shlex.quote(word) for word in [*work, *install])
    return {
        "name": job.name,
        "resources": resources,
        "file_mounts": {f"{HOME}/bundle": str(job.bundle)},
        "run": run,
        **({"secrets": dict.fromkeys(job.environment)} if job.environment else {}),
    }


def prepare(options: SkyPilotOptions, job: Job) -> Iterator[str]:
    """Have SkyPilot check the task, where its package is here, and see that its command is."""
    _bucket(options.bucket)
    values = task(options, job)
    yield _checked(values)
    if shutil.which("sky") is None:
        raise RunError("there is no program sky here. Install SkyPilot, and set up a cloud: sky check")
    yield f"{job.name}: a managed job; what it costs is told by SkyPilot: sky jobs launch asks its own catalogue"


def submit(options: SkyPilotOptions, job: Job) -> None:
    """By `sky jobs launch`, which sends what lies beside the task."""
    if status(options, job.name).state != "absent":
        return
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "task.yaml"
        file.write_text(json.dumps(task(options, job), indent=1), encoding="utf-8")  # YAML holds JSON
        named = [word for name in job.environment for word in ("--secret", name)]
        _sky(["jobs", "launch", "--yes", "--detach-run", "--name", job.name, *named, str(file)], job.environment)


def status(options: SkyPilotOptions, name: str) -> JobStatus:
    """As `sky jobs queue` says, of the newest job of that name."""
    found = [one for one in queue() if one.get("job_name") == name]
    if not found:
        return JobStatus(name=name, state="absent", what="SkyPilot knows no managed job of that name")
    return _status_of(max(found, key=lambda one: one.get("job_id") or 0))


def logs(options: SkyPilotOptions, name: str) -> Iterator[str]:
    """By `sky jobs logs`."""
    _must_be_there(options, name)
    yield from _sky(["jobs", "logs", "--no-follow", "--name", name]).splitlines()


def stop(options: SkyPilotOptions, name: str) -> None:
    """By `sky jobs cancel`: the machine is given back, and what was saved stays in the bucket."""
    if status(options, name).state in ("waiting", "running"):
        _sky(["jobs", "cancel", "--yes", "--name", name])


def fetch(options: SkyPilotOptions, name: str, into: Path) -> None:
    """From the bucket, by fsspec: what `ft run --remote` has kept there last."""
    _must_be_there(options, name)
    place = place_of(options, name)
    files, root = _bucket(place)
    try:
        try:
            head = json.loads(files.cat_file(f"{root}/head.json"))
        except FileNotFoundError:  # no checkpoint yet
            return
        for file, digest in head["files"].items():
            target = into.joinpath(*PurePosixPath(file).parts)
            if not target.resolve().is_relative_to(into.resolve()):
                raise RunError(f"{place}: {file} leads out of the run. Who has put it there?")
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/objects/{digest}", str(target))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{place} cannot be read: {' '.join(str(error).split())}") from error


def _bucket(place: str) -> tuple[Any, str]:
    """What reads a place, and its path there; the package goes with the run too. Raises `RunError` without one."""
    import fsspec

    try:
        files, root = fsspec.url_to_fs(place)
    except ImportError as error:
        raise RunError(
            f"{place} cannot be read: {error}. Install it here: pip install 'fitune[s3]' for s3://"
        ) from error
    return files, root


def place_of(options: SkyPilotOptions, name: str) -> str:
    """Where the run of a job is kept."""
    return f"{options.bucket.rstrip('/')}/{name}"


def jobs(options: SkyPilotOptions) -> Iterator[JobStatus]:
    """Those whose name begins as fitune's do."""
    yield from (_status_of(one) for one in queue() if str(one.get("job_name", "")).startswith("fitune-"))


def queue() -> list[dict[str, Any]]:
    """All managed jobs. Raises `RunError`."""
    printed = _sky(["jobs", "queue", "--all", "--output", "json"])
    try:
        found = json.loads(printed[printed.index("[") :] if "[" in printed else "[]")
    except ValueError as error:
        raise RunError(
            f"sky jobs queue says nothing that can be read: {error}. Is it SkyPilot 0.11 or later?"
        ) from error
    return [one for one in found if isinstance(one, dict)]


def _status_of(one: dict[str, Any]) -> JobStatus:
    second = str(one.get("status", "")).rpartition(".")[2]
    state, what = STATES.get(second, ("running", second))
    reason = " ".join(str(one.get("failure_reason") or "").split())
    billed = one.get("job_duration")
    return JobStatus(
        name=str(one.get("job_name")),
        state=state,
        what=reason or what if state == "failed" else what,
        billed=float(billed) if isinstance(billed, int | float) else None,
    )


def _checked(values: dict[str, Any]) -> str:
    """What SkyPilot's own package says of a task. Raises `RunError` if it refuses it."""
    try:
        import sky
    except ImportError:
        return "SkyPilot's package is not installed beside fitune: its command checks the task once it is sent"
    try:
        sky.Task.from_yaml_config(values)
    except Exception as error:
        raise RunError(f"SkyPilot refuses the task: {' '.join(str(error).split())}") from error
    return f"the task is sound, SkyPilot {sky.__version__} says"


def _sky(words: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    """What SkyPilot's command prints. Raises `RunError` if it fails."""
    try:
        done = subprocess.run(
            ["sky", *words], capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, **(variables or {})},
        )  # fmt: skip
    except FileNotFoundError:
        raise RunError("there is no program sky here. Install SkyPilot, and set up a cloud: sky check") from None
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr.strip() or done.stdout).splitlines() if line.strip()]
        raise RunError(f"sky {' '.join(words[:2])} failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return done.stdout


def _must_be_there(options: SkyPilotOptions, name: str) -> None:
    if status(options, name).state == "absent":
        raise RunError(f"SkyPilot knows no managed job {name}")


@hookimpl
def ft_launchers() -> Iterable[Launcher[SkyPilotOptions]]:
    """Offer `skypilot`."""
    yield Launcher(
        name="skypilot",
        summary="A managed job of SkyPilot, on the clouds that it is set up for",
        options=SkyPilotOptions,
        machine=machine,
        prepare=prepare,
        submit=submit,
        status=status,
        logs=logs,
        stop=stop,
        fetch=fetch,
        jobs=jobs,
        paid=True,
        spot=True,
        check=check,
    )
