"""`sagemaker` against a server on this machine that does what SageMaker does around a container: a real process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fitune import Job, JobState, Launcher, Machine, RunError
from fitune.testing import assert_launcher, open_registry
from fitune_plugins.launchers.sagemaker_options import SageMakerOptions
from support.fake_aws import BUCKET, ENVIRONMENT, REGION, ROLE, FakeAws, error

OPTIONS = SageMakerOptions(role=ROLE, bucket=f"s3://{BUCKET}/of/mine", image="registry.example/train:1")
NAME = "fitune-mine-0123456789"


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAws]:
    """It, with credentials that it takes."""
    pytest.importorskip("boto3", reason="needs fitune[sagemaker]")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with FakeAws(tmp_path / "aws") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.fixture
def launcher() -> Launcher[Any]:
    """It."""
    return open_registry().find(Launcher, "sagemaker")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """One that is never begun: what AWS says of it is prescribed."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "container.py").write_text("", encoding="utf-8")
    machine = Machine(name="ml.g5.4xlarge", gpu="a10g", gpus=1)
    return Job(name=NAME, bundle=bundle, machine=machine, seconds=3600)


def test_it_keeps_the_contract(aws: FakeAws, launcher: Launcher[Any], tmp_path: Path) -> None:
    assert_launcher(launcher, OPTIONS, tmp_path / "suite", instance="ml.g5.4xlarge")
    assert aws.names().count("CreateTrainingJob") == 3


def says(second: str, first: str = "InProgress", **more: Any) -> dict[str, Any]:
    """An answer of DescribeTrainingJob."""
    return {"TrainingJobName": NAME, "TrainingJobStatus": first, "SecondaryStatus": second, **more}


CAPACITY: dict[str, Any] = {"SecondaryStatusTransitions": [{
    "Status": "Starting", "StartTime": 0,
    "StatusMessage": "Insufficient capacity error from EC2 while launching instances, retrying!",
}]}  # fmt: skip

SEQUENCES: dict[str, list[tuple[dict[str, Any], JobState, str]]] = {
    "waits for capacity": [
        (says("Starting"), "waiting", "SageMaker starts it"),
        (says("LaunchingMLInstances", **CAPACITY), "waiting", "AWS has no such machine free just now"),
        (says("DownloadingTrainingImage"), "waiting", "the image"),
        (says("Training", BillableTimeInSeconds=90), "running", ""),
        (says("Uploading"), "running", "uploaded"),
        (says("Completed", "Completed", BillableTimeInSeconds=3600), "done", ""),
    ],
    "is taken back and goes on": [
        (says("Training"), "running", ""),
        (says("Interrupted"), "waiting", "goes on from its last checkpoint"),
        (says("Starting"), "waiting", ""),
        (says("Restarting"), "waiting", "goes on from its last checkpoint"),
        (says("Training"), "running", ""),
    ],
    "is stopped": [
        (says("Stopping", "Stopping"), "stopping", "within two minutes"),
        (says("Stopped", "Stopped"), "stopped", "it was asked to stop"),
    ],
    "meets its limit": [(says("MaxRuntimeExceeded", "Stopped"), "stopped", "limit of time")],
    "waits for too long": [(says("MaxWaitTimeExceeded", "Stopped"), "stopped", "wait_hours")],
    "fails": [
        (says("Failed", "Failed", FailureReason="AlgorithmError: rows.jsonl:7: no\nanswer"), "failed",
         "rows.jsonl:7: no answer"),
        (says("Failed", "Failed"), "failed", "SageMaker gives no reason"),
    ],
    "is in a state of another year": [
        (says("Levitating"), "running", "Levitating"), (says("Levitating", "Completed"), "done", ""),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", SEQUENCES)
def test_what_becomes_of_a_job_is_told_in_words(aws: FakeAws, launcher: Launcher[Any], kind: str) -> None:
    aws.says["DescribeTrainingJob"] = [answer for answer, _, _ in SEQUENCES[kind]]
    for answer, state, what in SEQUENCES[kind]:
        found = launcher.status(OPTIONS, NAME)
        assert found.state == state
        assert what in found.what
        assert "\n" not in found.what
        assert found.billed == answer.get("BillableTimeInSeconds")


ERRORS = {
    "ThrottlingException": ("Rate exceeded", "asked too often"),
    "ExpiredTokenException": ("The security token included in the request is expired", "aws sso login"),
    "UnrecognizedClientException": ("The security token included in the request is invalid", "not known to AWS"),
    "AccessDeniedException": ("User: u is not authorized to perform: sagemaker:DescribeTrainingJob", "not authorized"),
    "InternalFailure": ("", "Try again"),
    "OddException": ("something odd", "something odd (OddException)"),
}


@pytest.mark.parametrize("code", ERRORS)
def test_an_error_of_aws_is_one_of_ours(aws: FakeAws, launcher: Launcher[Any], code: str) -> None:
    message, said = ERRORS[code]
    aws.says["DescribeTrainingJob"] = [error(code, message)]
    with pytest.raises(RunError) as raised:
        launcher.status(OPTIONS, NAME)
    assert said in raised.value.message
    assert NAME in raised.value.message


def test_asked_too_often_it_asks_again(aws: FakeAws, launcher: Launcher[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    aws.says["DescribeTrainingJob"] = [error("ThrottlingException", "Rate exceeded"), says("Training")]
    assert launcher.status(OPTIONS, NAME).state == "running"
    assert aws.names() == ["DescribeTrainingJob"] * 2


def test_what_was_uploaded_is_deleted_where_the_job_is_refused(aws: FakeAws, launcher: Launcher[Any], job: Job) -> None:
    aws.says["CreateTrainingJob"] = [error("ResourceLimitExceeded", "The account-level service limit is 0 Instances")]
    with pytest.raises(
        RunError, match=r"quota does not allow it: The account-level service limit is 0 .* Service Quotas"
    ):
        launcher.submit(OPTIONS, job)
    assert "PutObject" in aws.names()
    assert [place for place in aws.bucket.rglob("*") if place.is_file()] == []


def test_an_answer_that_was_lost_is_no_lost_job(aws: FakeAws, launcher: Launcher[Any], job: Job) -> None:
    aws.says["CreateTrainingJob"] = [error("InternalFailure", "", 500)]
    absent = error("ValidationException", "Requested resource not found.")
    aws.says["DescribeTrainingJob"] = [absent, says("Starting")]
    launcher.submit(OPTIONS, job)
    assert "DeleteObject" not in aws.names()  # the job that is there reads it
    assert [place.name for place in sorted(aws.bucket.rglob("*")) if place.is_file()] == ["bundle.tar", "container.py"]


def test_a_price_is_asked_for_and_else_taken_from_the_table_of_its_region(
    aws: FakeAws, launcher: Launcher[Any]
) -> None:
    price = launcher.machine(OPTIONS, "ml.g5.4xlarge").price
    assert price is not None
    assert (price.hour, price.date) == (2.03, "2026-07-02")
    elsewhere = dataclasses.replace(OPTIONS, region="eu-central-1")
    assert launcher.machine(elsewhere, "ml.g5.4xlarge").price is None
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": "2.5400000000"}}
    product = f'{{"terms": {{"OnDemand": {{"a": {{"priceDimensions": {{"b": {dimension}}}}}}}}}}}'.replace("'", '"')
    aws.says["GetProducts"] = [{"PriceList": [product]}]
    price = launcher.machine(elsewhere, "ml.g5.4xlarge").price
    assert price is not None
    assert (price.hour, price.source) == (2.54, "AWS's price list for eu-central-1")
    filters = {one["Field"]: one["Value"] for one in aws.asked[-1][1]["Filters"]}
    assert filters == {"regionCode": "eu-central-1", "component": "Training", "instanceName": "ml.g5.4xlarge"}


def test_no_file_of_a_job_leads_out_of_its_run(aws: FakeAws, launcher: Launcher[Any], tmp_path: Path) -> None:
    aws.says["DescribeTrainingJob"] = [says("Completed", "Completed")]
    keys = [f"of/mine/{NAME}/checkpoints/run/{key}" for key in ("run.json", "../../../outside")]
    listed = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in keys)
    aws._list = lambda prefix: f"<ListBucketResult>{listed}</ListBucketResult>".encode()  # type: ignore[method-assign]
    (aws.bucket / keys[0]).parent.mkdir(parents=True)
    (aws.bucket / keys[0]).write_bytes(b"{}")
    into = tmp_path / "deep" / "down" / "run"
    into.mkdir(parents=True)
    with pytest.raises(RunError, match="leads out of the run"):
        launcher.fetch(OPTIONS, NAME, into)
    assert [place.name for place in tmp_path.rglob("outside")] == []


IMAGE = f"123456789012.dkr.ecr.{REGION}.amazonaws.com/train:1"
NO_QUOTA = {"Quotas": [{"QuotaName": "ml.g5.4xlarge for training job usage", "Value": 0.0}]}

REFUSED: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], str]] = {
    "expired": ("GetCallerIdentity", [error("ExpiredToken", "expired", 403)], {}, "credentials have expired. Log in"),
    "unknown key": ("GetCallerIdentity", [error("InvalidClientTokenId", "no", 403)], {}, "not known to AWS"),
    "another account": ("GetCallerIdentity", [{"Account": "999999999999"}], {}, "of account 123456789012, and the"),
    "no role": ("GetRole", [error("NoSuchEntity", "none", 404)], {}, "there is no role sagemaker-training"),
    "a role of another service": ("GetRole", [{"AssumeRolePolicyDocument": "ec2.amazonaws.com"}], {}, "may not take"),
    "no bucket": ("HeadBucket", [error("404", "Not Found", 404)], {}, "there is no bucket a-bucket"),
    "another's bucket": ("HeadBucket", [error("403", "Forbidden", 403)], {}, "may not be used"),
    "a bucket elsewhere": ("HeadBucket", [{"region": "eu-west-1"}], {}, "is in eu-west-1, and the job would be in"),
    "no image": ("BatchGetImage", [{"images": [], "failures": []}], {"image": IMAGE},
                 "there is no image"),
    "no repository": ("BatchGetImage", [error("RepositoryNotFoundException", "no")],
                      {"image": IMAGE}, "there is no repository train"),
    "an image elsewhere": ("BatchGetImage", [{}], {"image": IMAGE.replace(REGION, "eu-west-1")}, "is in eu-west-1"),
    "no quota": ("ListServiceQuotas", [NO_QUOTA],
                 {}, 'its quota "ml.g5.4xlarge for training job usage" is 0'),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_created_is_refused_before_anything_is_sent(
    aws: FakeAws, launcher: Launcher[Any], job: Job, kind: str
) -> None:
    operation, answers, options, said = REFUSED[kind]
    aws.says[operation] = answers
    with pytest.raises(RunError) as raised:
        list(launcher.prepare(dataclasses.replace(OPTIONS, **options), job))
    assert said in raised.value.message
    assert not {"PutObject", "CreateTrainingJob"} & set(aws.names())


def test_what_may_not_be_looked_at_keeps_nothing_from_being_sent(
    aws: FakeAws, launcher: Launcher[Any], job: Job
) -> None:
    denied = error("AccessDenied", "not authorized", 403)
    aws.says |= {"GetRole": [denied], "BatchGetImage": [denied], "ListServiceQuotas": [denied]}
    told = list(launcher.prepare(dataclasses.replace(OPTIONS, image=IMAGE), job))
    assert len([line for line in told if "cannot be looked" in line]) == 3


def test_it_is_told_that_nobody_is_logged_in(
    aws: FakeAws, launcher: Launcher[Any], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(RunError, match="there are no credentials for AWS here"):
        list(launcher.prepare(OPTIONS, job))
    assert aws.names() == []


def test_it_is_told_that_there_is_no_region(
    aws: FakeAws, launcher: Launcher[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(RunError, match="no region is set"):
        launcher.machine(OPTIONS, "ml.g5.4xlarge")


def test_it_is_told_that_aws_cannot_be_reached(
    aws: FakeAws, launcher: Launcher[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="AWS cannot be reached"):
        launcher.status(OPTIONS, NAME)
