"""The request for a training job (docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTrainingJob.html)."""

from __future__ import annotations

from typing import Any

from fitune import Job, RunError
from fitune_plugins.launchers.sagemaker_options import SageMakerOptions

LONGEST = 28 * 24 * 3600
"""Seconds that SageMaker lets a job run, at most (API_StoppingCondition)."""

CHANNEL = "fitune"

HOME = "/opt/ml"

TAG = "fitune"
"""Key of the tag that all jobs have; its value is the job's name."""


def prefix_of(options: SageMakerOptions, name: str) -> str:
    """The keys of a job, all of them, begin so."""
    return f"{options.place[1]}{name}/"


def uri_of(options: SageMakerOptions, name: str, part: str) -> str:
    """A place of a job on S3."""
    return f"s3://{options.place[0]}/{prefix_of(options, name)}{part}"


def request(options: SageMakerOptions, job: Job, sha256: str) -> dict[str, Any]:
    """What CreateTrainingJob is asked for. `sha256` is of the archive that is sent. Raises `RunError`."""
    assert job.seconds is not None
    if job.seconds > LONGEST:
        raise RunError(
            f"the limit is {job.seconds / 3600:g} h, and SageMaker lets a job run for {LONGEST // 3600} h at most. "
            "Give fewer --hours, and go on from its checkpoints afterwards"
        )
    stopping = {"MaxRuntimeInSeconds": job.seconds}
    if job.spot:  # the wait and the run together
        stopping["MaxWaitTimeInSeconds"] = job.seconds + int(options.wait_hours * 3600)
    source = {
        "S3DataType": "S3Prefix",
        "S3Uri": uri_of(options, job.name, "input/"),
        "S3DataDistributionType": "FullyReplicated",
    }
    values: dict[str, Any] = {
        "TrainingJobName": job.name,
        "RoleArn": options.role,
        "AlgorithmSpecification": {
            "TrainingImage": options.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", f"{HOME}/input/data/{CHANNEL}/container.py"],
            "ContainerArguments": [HOME],
        },
        "HyperParameters": {"sha256": sha256, "install": "true" if job.install else "false"},
        "InputDataConfig": [{"ChannelName": CHANNEL, "DataSource": {"S3DataSource": source}, "InputMode": "File"}],
        "OutputDataConfig": {"S3OutputPath": uri_of(options, job.name, "output")},
        "CheckpointConfig": {"S3Uri": uri_of(options, job.name, "checkpoints"), "LocalPath": f"{HOME}/checkpoints"},
        "ResourceConfig": {
            "InstanceType": job.machine.name,
            "InstanceCount": 1,
            "VolumeSizeInGB": options.volume_gb,
        },
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": job.spot,
        "Tags": [{"Key": TAG, "Value": job.name}],
    }
    if job.environment:
        values["Environment"] = dict(job.environment)
    if options.subnets:
        values["VpcConfig"] = {"Subnets": list(options.subnets), "SecurityGroupIds": list(options.security_groups)}
    return values
