"""Launcher `sagemaker`: a training job of Amazon SageMaker AI, by boto3 alone, in an image of the user's or of AWS's.

What is sent lies on S3 under the job's name, and so do its checkpoints, which SageMaker copies there as they are
written, and back to the next machine where a spot machine was taken away. fitune's checkpoints are told whole from not
by their digests, so that it does not matter in which order files arrive.
"""

from __future__ import annotations

import contextlib
import hashlib
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fitune import Job, JobStatus, Launcher, Machine, RunError, hookimpl
from fitune_plugins.launchers import sagemaker_checks as checks
from fitune_plugins.launchers.sagemaker_machines import PRICE_LIST, find, priced, table
from fitune_plugins.launchers.sagemaker_options import Clients, SageMakerOptions, check, clients
from fitune_plugins.launchers.sagemaker_request import prefix_of, request, uri_of
from fitune_plugins.launchers.sagemaker_words import in_words, is_missing, status_of

LOGS = "/aws/sagemaker/TrainingJobs"
"""The log group of all training jobs."""

LISTED = 100
"""Jobs that are listed, at most, the newest first."""

RUN = "checkpoints/run/"
"""Where the run's directory is, below a job's prefix: `container.py` has it so."""


def machine(options: SageMakerOptions, instance: str | None) -> Machine:
    """The machine of a name, with its price in the region."""
    found = find(instance)
    asks = clients(options)
    return priced(found, asks.region, asks.of("pricing", PRICE_LIST))


def prepare(options: SageMakerOptions, job: Job) -> Iterator[str]:
    """Look at the account, the role, the bucket, the image and the quota."""
    values = request(options, job, "")  # what cannot be asked for at all
    asks = clients(options)
    checks.lengths(asks, values)
    checks.account(asks, options)
    checks.bucket(asks, options)
    yield from checks.role(asks, options)
    yield from checks.image(asks, options)
    yield from checks.quota(asks, job)
    spot = ", spot" if job.spot else ""
    yield f"{job.name}: a training job in {asks.region}{spot}, image {options.image}"
    yield f"files in {uri_of(options, job.name, '')}, which stay until you delete them"


def submit(options: SageMakerOptions, job: Job) -> None:
    """Upload what is sent, and create the job. What was uploaded is deleted where it could not be."""
    asks = clients(options)
    if status(options, job.name).state != "absent":
        return
    with tempfile.TemporaryDirectory() as place:
        archive = Path(place) / "bundle.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(job.bundle, arcname="bundle")
        values = request(options, job, _digest(archive))
        uploads = {"container.py": job.bundle / "container.py", "bundle.tar": archive}
        bucket, prefix = options.place[0], prefix_of(options, job.name)
        try:
            for name, file in uploads.items():
                with in_words(f"uploading to {uri_of(options, job.name, 'input/')}"):
                    asks.of("s3").upload_file(str(file), bucket, f"{prefix}input/{name}")
            with in_words(f"creating the training job {job.name}"):
                asks.of("sagemaker").create_training_job(**values)
        except BaseException as error:
            if isinstance(error, RunError) and _is_there(options, job.name):  # the answer was lost, not the request
                return
            _delete(asks, options, [f"{prefix}input/{name}" for name in uploads])
            raise


def status(options: SageMakerOptions, name: str) -> JobStatus:
    """As DescribeTrainingJob says."""
    from botocore.exceptions import ClientError

    with in_words(f"asking after {name}"):
        try:
            said = clients(options).of("sagemaker").describe_training_job(TrainingJobName=name)
        except ClientError as error:
            if is_missing(error):
                return JobStatus(name=name, state="absent", what="SageMaker knows no training job of that name")
            raise
    return status_of(name, said)


def logs(options: SageMakerOptions, name: str) -> Iterator[str]:
    """From CloudWatch, a stream for each machine that it has had."""
    from botocore.exceptions import ClientError

    _must_be_there(options, name)
    client = clients(options).of("logs")
    with in_words(f"reading the logs of {name}"):
        try:
            pages = client.get_paginator("describe_log_streams").paginate(
                logGroupName=LOGS, logStreamNamePrefix=f"{name}/"
            )
            streams = [stream for page in pages for stream in page["logStreams"]]
        except ClientError as error:
            if error.response["Error"]["Code"] == "ResourceNotFoundException":  # nothing has logged anything yet
                return
            raise
        for stream in sorted(streams, key=lambda one: (one.get("creationTime", 0), one["logStreamName"])):
            yield from _lines(client, stream["logStreamName"])


def stop(options: SageMakerOptions, name: str) -> None:
    """Ask SageMaker to: it sends SIGTERM, and waits for two minutes."""
    if status(options, name).state in ("waiting", "running"):
        with in_words(f"stopping {name}"):
            clients(options).of("sagemaker").stop_training_job(TrainingJobName=name)


def fetch(options: SageMakerOptions, name: str, into: Path) -> None:
    """The run's directory, as SageMaker has copied it to S3."""
    _must_be_there(options, name)
    asks, prefix = clients(options), f"{prefix_of(options, name)}{RUN}"
    bucket = options.place[0]
    with in_words(f"fetching s3://{bucket}/{prefix}"):
        client = asks.of("s3")
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for found in page.get("Contents", []):
                place = PurePosixPath(found["Key"][len(prefix) :])
                if found["Key"].endswith("/"):
                    continue
                if place.is_absolute() or ".." in place.parts:
                    raise RunError(f"s3://{bucket}/{found['Key']} leads out of the run. Who has put it there?")
                target = into.joinpath(*place.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, found["Key"], str(target))


def jobs(options: SageMakerOptions) -> Iterator[JobStatus]:
    """Those whose name begins as fitune's do, the newest first."""
    with in_words("listing training jobs"):
        pages = clients(options).of("sagemaker").get_paginator("list_training_jobs")
        found = pages.paginate(
            NameContains="fitune-", SortBy="CreationTime", SortOrder="Descending", PaginationConfig={"MaxItems": LISTED}
        )
        for page in found:
            for said in page["TrainingJobSummaries"]:
                if said["TrainingJobName"].startswith("fitune-"):
                    yield status_of(said["TrainingJobName"], said)


def _lines(client: Any, stream: str) -> Iterator[str]:
    token: dict[str, str] = {}
    while True:
        page = client.get_log_events(logGroupName=LOGS, logStreamName=stream, startFromHead=True, **token)
        yield from (event["message"] for event in page["events"])
        if token.get("nextToken") == page["nextForwardToken"]:
            return
        token = {"nextToken": page["nextForwardToken"]}


def _is_there(options: SageMakerOptions, name: str) -> bool:
    try:
        return status(options, name).state != "absent"
    except RunError:  # it cannot be told: `ft launch` asks again, and says so
        return False


def _must_be_there(options: SageMakerOptions, name: str) -> None:
    if status(options, name).state == "absent":
        raise RunError(f"SageMaker knows no training job {name} in this account and region")


def _delete(asks: Clients, options: SageMakerOptions, keys: list[str]) -> None:
    """Delete what was uploaded, as far as that is possible."""
    with contextlib.suppress(Exception):
        for key in keys:
            asks.of("s3").delete_object(Bucket=options.place[0], Key=key)


def _digest(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        for part in iter(lambda: stream.read(1 << 20), b""):
            found.update(part)
    return found.hexdigest()


@hookimpl
def ft_launchers() -> Iterable[Launcher[SageMakerOptions]]:
    """Offer `sagemaker`."""
    yield Launcher(
        name="sagemaker",
        summary="A training job of Amazon SageMaker AI",
        options=SageMakerOptions,
        machine=machine,
        prepare=prepare,
        submit=submit,
        status=status,
        logs=logs,
        stop=stop,
        fetch=fetch,
        jobs=jobs,
        machines=table().machines,
        paid=True,
        spot=True,
        check=check,
    )
