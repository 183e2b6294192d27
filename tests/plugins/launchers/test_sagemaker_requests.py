"""What SageMaker is asked for: checked by botocore's own model of it, by its Stubber, and by moto."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fitune import Job, Launcher, Machine, RunError
from fitune.launch.bundle import seal
from fitune.testing import open_registry
from fitune_plugins.launchers import sagemaker
from fitune_plugins.launchers.sagemaker_machines import table
from fitune_plugins.launchers.sagemaker_options import Clients, SageMakerOptions
from fitune_plugins.launchers.sagemaker_request import LONGEST, request
from support.fake_aws import ENVIRONMENT, ROLE

OPTIONS = SageMakerOptions(role=ROLE, bucket="s3://a-bucket/mine", image="registry.example/train:1", region="us-east-1")
NAME = "fitune-mine-0123456789"


@pytest.fixture(autouse=True)
def _logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3", reason="needs fitune[sagemaker]")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """One that could be sent."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "recipe.toml").write_text('name = "mine"\n', encoding="utf-8")
    seal(bundle, "mine")
    machine = Machine(name="ml.g5.4xlarge", gpu="a10g", gpus=1)
    return Job(name=NAME, bundle=bundle, machine=machine, seconds=7200)


def valid(values: dict[str, Any]) -> None:
    """Raise where botocore would refuse to send it: types, names, patterns' lengths, ranges."""
    from botocore.session import get_session
    from botocore.validate import validate_parameters

    shape = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    validate_parameters(values, shape)


def test_a_plain_request(job: Job) -> None:
    values = request(OPTIONS, job, "0" * 64)
    valid(values)
    assert values["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200}
    assert values["EnableManagedSpotTraining"] is False
    assert values["ResourceConfig"] == {"InstanceType": "ml.g5.4xlarge", "InstanceCount": 1, "VolumeSizeInGB": 100}
    assert values["CheckpointConfig"] == {
        "S3Uri": f"s3://a-bucket/mine/{NAME}/checkpoints",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert values["AlgorithmSpecification"]["ContainerEntrypoint"][-1].endswith("/fitune/container.py")
    assert values["Tags"] == [{"Key": "fitune", "Value": NAME}]
    assert "Environment" not in values
    assert "VpcConfig" not in values


def test_a_spot_request_in_a_vpc_with_variables(job: Job) -> None:
    options = dataclasses.replace(
        OPTIONS, wait_hours=2.0, subnets=("subnet-1",), security_groups=("sg-1",), volume_gb=300
    )
    values = request(options, dataclasses.replace(job, spot=True, environment={"HF_TOKEN": "x"}), "0" * 64)
    valid(values)
    assert values["EnableManagedSpotTraining"] is True
    assert values["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 14400}
    assert values["Environment"] == {"HF_TOKEN": "x"}
    assert values["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}


def test_a_job_that_is_longer_than_sagemaker_lets_it_be_is_refused(job: Job) -> None:
    with pytest.raises(RunError, match="lets a job run for 672 h at most"):
        request(OPTIONS, dataclasses.replace(job, seconds=LONGEST + 1), "")


def test_all_machines_are_sagemaker_s_and_have_cards_that_are_known() -> None:
    from botocore.session import get_session

    from fitune.memory.cards.cards import find_card

    known = get_session().get_service_model("sagemaker").shape_for("TrainingInstanceType").enum
    machines = table().machines
    assert len(machines) > 30
    assert [machine.name for machine in machines if machine.name not in known] == []
    assert all(find_card(machine.gpu).memory > 0 and machine.gpus in (1, 4, 8) for machine in machines)


class Stubbed:
    """Clients whose requests are compared with what is expected, and answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import boto3
        from botocore.stub import Stubber

        self.clients = {name: boto3.client(name, region_name="us-east-1") for name in ("sagemaker", "s3", "logs")}
        self.stubs = {name: Stubber(client) for name, client in self.clients.items()}
        for stub in self.stubs.values():
            stub.activate()
        clients = self.clients

        class These(Clients):
            def of(self, service: str, region: str | None = None) -> Any:
                return clients[service]

        monkeypatch.setattr(sagemaker, "clients", lambda options: These(session=None, region="us-east-1"))

    def __getitem__(self, name: str) -> Any:
        return self.stubs[name]

    def done(self) -> None:
        """All that was expected has been asked."""
        for stub in self.stubs.values():
            stub.assert_no_pending_responses()


def test_each_request_is_what_the_service_takes(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from botocore.stub import ANY

    aws = Stubbed(monkeypatch)
    missing = {"service_error_code": "ValidationException", "service_message": "Requested resource not found."}
    named = {"TrainingJobName": NAME}
    aws["sagemaker"].add_client_error("describe_training_job", expected_params=named, **missing)
    for name in ("container.py", "bundle.tar"):
        key = f"mine/{NAME}/input/{name}"
        expected = {"Bucket": "a-bucket", "Key": key, "Body": ANY, "ChecksumAlgorithm": ANY}
        aws["s3"].add_response("put_object", {}, expected)
    expected = {**request(OPTIONS, job, ""), "HyperParameters": ANY}
    arn = f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{NAME}"
    aws["sagemaker"].add_response("create_training_job", {"TrainingJobArn": arn}, expected)
    sagemaker.submit(OPTIONS, job)
    aws.done()


def test_stopping_and_logs_ask_for_the_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    aws = Stubbed(monkeypatch)
    named = {"TrainingJobName": NAME}
    training = {**dict.fromkeys(("TrainingJobArn",), "arn:aws:sagemaker:us-east-1:123456789012:training-job/x"),
                "TrainingJobName": NAME, "ModelArtifacts": {"S3ModelArtifacts": ""}, "TrainingJobStatus": "InProgress",
                "SecondaryStatus": "Training", "StoppingCondition": {}, "CreationTime": 0,
                "AlgorithmSpecification": {"TrainingInputMode": "File"}, "ResourceConfig": {}}  # fmt: skip
    aws["sagemaker"].add_response("describe_training_job", training, named)
    aws["sagemaker"].add_response("stop_training_job", {}, named)
    sagemaker.stop(OPTIONS, NAME)
    aws["sagemaker"].add_response("describe_training_job", {**training, "TrainingJobStatus": "Stopped",
                                                            "SecondaryStatus": "Stopped"}, named)  # fmt: skip
    sagemaker.stop(OPTIONS, NAME)  # it has ended: nothing is asked for
    aws["sagemaker"].add_response("describe_training_job", training, named)
    group = "/aws/sagemaker/TrainingJobs"
    aws["logs"].add_response(
        "describe_log_streams", {"logStreams": []}, {"logGroupName": group, "logStreamNamePrefix": f"{NAME}/"}
    )
    assert list(sagemaker.logs(OPTIONS, NAME)) == []
    aws.done()


def test_a_job_is_created_described_and_listed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto", reason="needs moto")
    import boto3

    launcher: Launcher[Any] = open_registry().find(Launcher, "sagemaker")
    with moto.mock_aws():
        s3, jobs = boto3.client("s3", region_name="us-east-1"), boto3.client("sagemaker", region_name="us-east-1")
        s3.create_bucket(Bucket="a-bucket")
        assert launcher.status(OPTIONS, NAME).state == "absent"
        launcher.submit(OPTIONS, job)
        launcher.submit(OPTIONS, job)  # once
        said = jobs.describe_training_job(TrainingJobName=NAME)
        assert said["RoleArn"] == ROLE
        assert launcher.status(OPTIONS, NAME).state in ("waiting", "running", "done")
        assert [status.name for status in launcher.jobs(OPTIONS)] == [NAME]
        tags = jobs.list_tags(ResourceArn=said["TrainingJobArn"])["Tags"]
        assert {"Key": "fitune", "Value": NAME} in tags
        packed = s3.get_object(Bucket="a-bucket", Key=f"mine/{NAME}/input/bundle.tar")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        names = tar.getnames()
        bundle = tar.extractfile("bundle/bundle.json")
        assert bundle is not None
        assert json.load(bundle)["name"] == "mine"
    assert {"bundle/work.py", "bundle/recipe.toml"} <= set(names)
