"""`ft launch` from its command line to a job and back; and all that keeps a job from being sent, each in one line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fitune.cli.main import main
from fitune.testing import write_recipe, write_tiny_data
from fitune_plugins.launchers import sagemaker
from support.commands import Capture
from support.fake_aws import BUCKET, ENVIRONMENT, ROLE, FakeAws, error

LAUNCH_TOML = f"""\
[local]
root = "jobs"
gpu = false

[sagemaker]
role = "{ROLE}"
bucket = "s3://{BUCKET}/mine"
image = "registry.example/train:1"
"""

ON = ("--on", "sagemaker", "--instance", "ml.g5.4xlarge")


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAws]:
    """An account, and a recipe beside which `launch.toml` says how to reach it."""
    pytest.importorskip("boto3", reason="needs fitune[sagemaker]")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(LONG, 600 * "x")
    write_recipe(tmp_path)
    (tmp_path / "launch.toml").write_text(LAUNCH_TOML, encoding="utf-8")
    with FakeAws(tmp_path / "aws") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def ft(*arguments: str, capsys: Capture) -> str:
    """What a command that succeeds prints; that data are prepared is said on standard error."""
    main(arguments)
    printed = capsys.readouterr()
    assert "error" not in printed.err
    return printed.out


def until_ended(run: str, capsys: Capture) -> str:
    """The state in which its job ends."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = json.loads(ft("launch", "status", run, "--json", capsys=capsys))["status"]
        if found["state"] in ("done", "failed", "stopped", "absent"):
            return f"{found['state']} {found['what']}".strip()
        time.sleep(0.2)
    raise AssertionError(f"it does not end: {found}")


def test_from_a_recipe_to_sagemaker_and_back(aws: FakeAws, tmp_path: Path, capsys: Capture) -> None:
    command = ("launch", "recipe.toml", *ON, "--max-cost", "20", "--no-install", "--out", "runs/mine")
    dry = ft(*command, "--dry-run", capsys=capsys)
    assert "nothing was sent" in dry
    assert not (tmp_path / "runs").exists()
    assert not {"PutObject", "CreateTrainingJob"} & set(aws.names())
    out = ft(*command, capsys=capsys)
    for said in (
        "it fits",
        "for 3 steps by forecast",
        "at $2.03 an hour",
        "2026-07-02",
        "$20.00 at most",
        "9 h 51 min",
    ):
        assert said in out, out
    (job,) = aws.jobs.values()
    assert job.request["StoppingCondition"] == {"MaxRuntimeInSeconds": int(20 / 2.03 * 3600)}
    assert "on sagemaker" in ft("runs", capsys=capsys)
    assert until_ended("runs/mine", capsys) == "done"
    assert "step 3/3" in ft("launch", "logs", "runs/mine", capsys=capsys)
    assert "fetched: runs/mine" in ft("launch", "fetch", "runs/mine", capsys=capsys)
    assert (tmp_path / "runs/mine/adapter/adapter_model.safetensors").is_file()
    listed = ft("runs", capsys=capsys)
    assert "done on sagemaker" in listed
    assert "3/3" in listed
    assert "$0.00" in ft("launch", "list", capsys=capsys)  # of seven seconds
    assert "runs/mine" in ft("launch", "list", "--on", "sagemaker", capsys=capsys)


def test_a_job_that_was_submitted_and_not_recorded_is_found_by_its_name(
    aws: FakeAws, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """This process is killed."""

    submit = sagemaker.submit

    def and_die(options: Any, job: Any) -> None:
        submit(options, job)
        raise Killed

    monkeypatch.setattr(sagemaker, "submit", and_die)
    with pytest.raises(Killed):
        main(("launch", "recipe.toml", *ON, "--no-install", "--out", "runs/mine"))
    capsys.readouterr()
    (name,) = aws.jobs
    noted = json.loads((tmp_path / "runs/mine/launch.json").read_text(encoding="utf-8"))
    assert (noted["job"], noted["heard"]) == (name, None)
    assert "stopping" in ft("launch", "stop", "runs/mine", capsys=capsys) or aws.jobs[name].stopped
    assert until_ended("runs/mine", capsys).startswith("stopped")
    (tmp_path / "runs/mine/launch.json").unlink()  # and where nothing at all is noted, AWS is asked
    assert name in ft("launch", "list", "--on", "sagemaker", capsys=capsys)


def test_no_secret_is_kept(aws: FakeAws, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdefghij")
    aws.says["CreateTrainingJob"] = [{"TrainingJobArn": "arn:aws:sagemaker:us-east-1:123456789012:training-job/x"}]
    ft("launch", "recipe.toml", *ON, "--environment", "HF_TOKEN", "--out", "runs/mine", capsys=capsys)
    (created,) = [asked for name, asked in aws.asked if name == "CreateTrainingJob"]
    assert created["Environment"] == {"HF_TOKEN": "hf_0123456789abcdefghij"}
    for place in [*(tmp_path / "runs").rglob("*"), *aws.bucket.rglob("*")]:
        assert not place.is_file() or b"hf_0123456789abcdefghij" not in place.read_bytes(), place


def test_a_directory_that_one_is_in_is_not_replaced(
    aws: FakeAws, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ft("launch", "recipe.toml", *ON, "--out", "mine", capsys=capsys)
    monkeypatch.chdir("mine")
    with pytest.raises(SystemExit):
        main(("launch", "fetch", "."))
    assert "error: .: you are in it, and it is replaced as a whole. Leave it first" in capsys.readouterr().err
    assert Path("launch.json").is_file()


# ------------------------------------------------------------------------------------------------------- bad launches
def _says(operation: str, answer: dict[str, Any]) -> Callable[[FakeAws, Path], None]:
    return lambda aws, home: aws.says.__setitem__(operation, [answer])


def _no_data(aws: FakeAws, home: Path) -> None:
    (home / "data.jsonl").unlink()


def _bad_row(aws: FakeAws, home: Path) -> None:
    with write_tiny_data(home / "data.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "user"}]}\n')


def _large_model(aws: FakeAws, home: Path) -> None:
    config = json.loads((home / "model" / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": 8192, "intermediate_size": 65536, "num_hidden_layers": 4, "head_dim": 2048}
    (home / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _full_directory(aws: FakeAws, home: Path) -> None:
    (home / "runs" / "mine").mkdir(parents=True)
    (home / "runs" / "mine" / "notes.txt").write_text("mine", encoding="utf-8")


def _a_run(aws: FakeAws, home: Path) -> None:
    run = home / "a-run"
    run.mkdir()
    (run / "recipe.toml").write_text((home / "recipe.toml").read_text(encoding="utf-8"), encoding="utf-8")


def _loop(aws: FakeAws, home: Path) -> None:
    (home / "model" / "loop").symlink_to(home / "model")


def _leads_nowhere(aws: FakeAws, home: Path) -> None:
    (home / "model" / "gone").symlink_to(home / "no such file")


def _settings(text: str) -> Callable[[FakeAws, Path], None]:
    def write(aws: FakeAws, home: Path) -> None:
        (home / "launch.toml").write_text(text, encoding="utf-8")

    return write


LONG = "A_LONG_VARIABLE"

RECIPE, MANY = ("recipe.toml",), ("--set", "train.steps=1000000000")

BAD: dict[str, tuple[Callable[[FakeAws, Path], None] | None, tuple[str, ...], str]] = {
    "unknown launcher": (None, (*RECIPE, "--on", "sagemeker"), 'Did you mean "sagemaker"?'),
    "no role": (_settings(LAUNCH_TOML.replace("role", "# role")), (*RECIPE, *ON), '"role" is missing'),
    "no image": (_settings(LAUNCH_TOML.replace("image", "# image")), (*RECIPE, *ON), '"image" is missing'),
    "unknown option": (None, (*RECIPE, *ON, "--option", "rolle=x"), 'unknown key "rolle". Did you mean "role"?'),
    "bad option": (None, (*RECIPE, *ON, "--option", "volume_gb=0"), '"volume_gb" is 0. It takes: integer >= 1'),
    "bad role": (None, (*RECIPE, *ON, "--option", "role=admin"), '"admin" is no ARN of a role'),
    "bad bucket": (None, (*RECIPE, *ON, "--option", "bucket=a-bucket"), '"a-bucket" is no place on S3'),
    "a secret": (None, (*RECIPE, *ON, "--option", "image=hf_0123456789abcdefghij"), "holds a Hugging Face token"),
    "no such settings": (None, (*RECIPE, *ON, "--settings", "none.toml"), "none.toml cannot be read"),
    "settings of nobody": (_settings("[sagmaker]\n"), (*RECIPE, *ON), 'no launcher "sagmaker"'),
    "unknown instance": (None, (*RECIPE, *ON[:2], "--instance", "ml.g5.4xlage"), 'Did you mean "ml.g5.4xlarge"?'),
    "no instance": (None, (*RECIPE, *ON[:2]), "Give --instance, e.g. ml.g5.4xlarge"),
    "expired": (_says("GetCallerIdentity", error("ExpiredToken", "", 403)), (*RECIPE, *ON), "credentials have expired"),
    "no bucket": (_says("HeadBucket", error("404", "", 404)), (*RECIPE, *ON), "there is no bucket a-bucket"),
    "no quota": (_says("ListServiceQuotas", {"Quotas": [
        {"QuotaName": "ml.g5.4xlarge for training job usage", "Value": 0.0}]}), (*RECIPE, *ON), "is 0. Ask for more"),
    "quota met": (_says("CreateTrainingJob", error("ResourceLimitExceeded", "limit is 1 Instances")), (*RECIPE, *ON),
                  "quota does not allow it: limit is 1 Instances"),
    "no PassRole": (_says("CreateTrainingJob", error("AccessDeniedException", "iam:PassRole")), (*RECIPE, *ON),
                    "AWS does not allow it: iam:PassRole"),
    "too long for SageMaker": (None, (*RECIPE, *ON, "--hours", "1000"), "672 h at most"),
    "too short for anything": (None, (*RECIPE, *ON, "--hours", "0.001"), "in which nothing is trained"),
    "too long": (None, (*RECIPE, *ON, *MANY, "--hours", "5"), "would be stopped before its end"),
    "too dear": (None, (*RECIPE, *ON, *MANY, "--max-cost", "5"), "--max-cost 5, at $2.03 an hour"),
    "no price": (None, (*RECIPE, *ON[:2], "--instance", "ml.g6.xlarge", "--max-cost", "5"), "none is known of ml.g6"),
    "spot without checkpoints": (None, (*RECIPE, *ON, "--spot", "--set", "checkpoint.minutes=0"),
                                 "the recipe writes no checkpoints on the way"),
    "spot where there is none": (None, (*RECIPE, "--on", "local", "--spot"), "has no machines that are taken back"),
    "no data": (_no_data, (*RECIPE, *ON), "data.jsonl"),
    "a bad row": (_bad_row, (*RECIPE, *ON), "data.jsonl:13"),
    "does not fit": (_large_model, (*RECIPE, *ON), "does not fit on ml.g5.4xlarge"),
    "no variable": (None, (*RECIPE, *ON, "--environment", "NO_SUCH_TOKEN"), "there is no such variable here"),
    "a secret on the command line": (None, (*RECIPE, *ON, "--environment", "HF_TOKEN=hf_0123456789abcdefghij"),
                                     "takes the name of a variable alone, and its value from here: --environment HF_"),
    "no name of a variable": (None, (*RECIPE, *ON, "--environment", "A B"), '"A B": that is no name of a variable'),
    "a variable of this machine": (None, (*RECIPE, *ON, "--environment", "PATH"), "where things are on this machine"),
    "a variable too long for SageMaker": (None, (*RECIPE, *ON, "--environment", LONG),
                                          f"Environment.{LONG} of the training job has a length of 600, and SageMaker"),
    "two machines": (None, (*RECIPE, *ON, "--instance", "ml.g5.xlarge"), "a job is one machine. Name one"),
    "a machine in capitals": (None, (*RECIPE, *ON[:3], "ML.G5.4XLARGE"), 'Did you mean "ml.g5.4xlarge"?'),
    "no hours": (None, (*RECIPE, *ON, "--hours", "nan"), "'nan' is no number"),
    "endless hours": (None, (*RECIPE, *ON, "--hours", "inf"), "'inf' is no number"),
    "more hours than there are": (None, (*RECIPE, *ON, "--hours", "1e300"), "the limit is 1e+300 h"),
    "endless money": (None, (*RECIPE, *ON, "--max-cost", "inf"), "'inf' is no number"),
    "no price at all": (None, (*RECIPE, *ON, "--price", "nan"), "'nan' is no number"),
    "links in circles": (_loop, (*RECIPE, *ON), "model/loop: it leads back to a directory that it lies in"),
    "a link to nothing": (_leads_nowhere, (*RECIPE, *ON), "model/gone: it is a link that leads nowhere"),
    "a directory with something, in a trial": (_full_directory, (*RECIPE, *ON, "--out", "runs/mine", "--dry-run"),
                                               "runs/mine is not empty"),
    "a directory with something": (_full_directory, (*RECIPE, *ON, "--out", "runs/mine"), "runs/mine is not empty"),
    "no run to go on from": (None, (*RECIPE, *ON, "--set", "adapter.from=runs/gone"), "runs/gone: no such directory"),
    "a run": (_a_run, ("a-run", *ON), "Give a recipe: ft launch sends a run that is yet to begin"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_launch_is_one_error_and_leaves_nothing_that_costs_money(
    aws: FakeAws, tmp_path: Path, capsys: Capture, kind: str
) -> None:
    harm, arguments, said = BAD[kind]
    if harm is not None:
        harm(aws, tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(("launch", *arguments))
    printed = capsys.readouterr()
    assert ended.value.code == 2
    errors = [line for line in printed.err.splitlines() if line.lower().startswith("error: ")]  # click's, in capitals
    assert len(errors) == 1, printed.err
    assert "hf_0123456789abcdefghij" not in printed.err
    assert said in errors[0]
    assert "Traceback" not in printed.err
    assert "sent: " not in printed.out
    assert aws.jobs == {}
    assert [place for place in aws.bucket.rglob("*") if place.is_file()] == []
    assert list(tmp_path.glob("runs/*/launch.json")) == []
    assert kind.startswith("a directory with something") or not (tmp_path / "runs").exists()


def test_what_does_not_fit_is_told_with_what_would(aws: FakeAws, tmp_path: Path, capsys: Capture) -> None:
    _large_model(aws, tmp_path)
    with pytest.raises(SystemExit):
        main(("launch", "recipe.toml", *ON))
    said = capsys.readouterr().err
    assert "It would fit as it is with --instance ml.g6e.2xlarge (L40S)" in said
