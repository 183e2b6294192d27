"""AWS on this machine, as far as a launcher asks it: S3 in a directory, training jobs as real processes.

    with FakeAws(tmp_path) as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)

A job's container is a process with an /opt/ml of its own, which begins as the request says. What SageMaker says of a
job may be prescribed in its place: `aws.says["DescribeTrainingJob"] = [{...}, ...]`, one answer each time, the last one
from then on. An answer may be an error: `error("ThrottlingException", "Rate exceeded")`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/sagemaker-training"
REGION = "us-east-1"
BUCKET = "a-bucket"

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nowhere/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere/credentials",
    "AWS_MAX_ATTEMPTS": "1",
}
"""Of somebody who is logged in there."""

TARGETS = {
    "SageMaker": "sagemaker",
    "Logs_20140328": "logs",
    "AmazonEC2ContainerRegistry_V20150921": "ecr",
    "ServiceQuotasV20190624": "service-quotas",
    "AWSPriceListService": "pricing",
}


def error(code: str, message: str, status: int = 400) -> dict[str, Any]:
    """An answer that is an error."""
    return {"__type": code, "message": message, "status": status}


class Container:
    """A training job at work: what SageMaker does around a container."""

    def __init__(self, home: Path, request: Mapping[str, Any], bucket: Path) -> None:
        self.home, self.request, self.bucket = home, request, bucket
        self.name: str = request["TrainingJobName"]
        self.stopped = False
        config = home / "input" / "config"
        config.mkdir(parents=True)
        channels = {one["ChannelName"]: one for one in request["InputDataConfig"]}
        for name, values in {
            "hyperparameters": request["HyperParameters"],
            "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"]},
            "inputdataconfig": {name: {"TrainingInputMode": "File"} for name in channels},
        }.items():
            (config / f"{name}.json").write_text(json.dumps(values))
        for name, one in channels.items():
            source = self.local(one["DataSource"]["S3DataSource"]["S3Uri"])
            shutil.copytree(source, home / "input" / "data" / name)
        entry = [
            word.replace("/opt/ml", str(home)) for word in request["AlgorithmSpecification"]["ContainerEntrypoint"]
        ]
        arguments = [str(home) for _ in request["AlgorithmSpecification"]["ContainerArguments"]]
        environment = {**os.environ, **request.get("Environment", {})}
        self.log = (home / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, *entry[1:], *arguments], stdout=self.log, stderr=self.log, env=environment
        )

    def local(self, uri: str) -> Path:
        """Where an object lies here."""
        return self.bucket / uri.removeprefix(f"s3://{BUCKET}/").rstrip("/")

    def describe(self) -> dict[str, Any]:
        """As DescribeTrainingJob says it; what was written is on S3 by then."""
        code = self.process.poll()
        checkpoints = self.home / "checkpoints"
        if checkpoints.is_dir():
            uploaded = self.local(self.request["CheckpointConfig"]["S3Uri"])
            # What a job that is at work renames or removes meanwhile is not there to be copied.
            with contextlib.suppress(*(OSError, shutil.Error) if code is None else ()):
                shutil.copytree(checkpoints, uploaded, dirs_exist_ok=True)
        failure = self.home / "output" / "failure"
        status, second = ("InProgress", "Training") if code is None else ("Completed", "Completed")
        if code and not self.stopped:
            status = second = "Failed"
        elif code is not None and self.stopped:
            status = second = "Stopped"
        return {
            "TrainingJobName": self.name,
            "TrainingJobStatus": status,
            "SecondaryStatus": second,
            "BillableTimeInSeconds": 7,
            **({"FailureReason": f"AlgorithmError: {failure.read_text()}"} if failure.is_file() else {}),
        }

    def stop(self) -> None:
        """As `docker stop` does."""
        self.stopped = True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)


class FakeAws:
    """The server."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bucket = home / "s3"
        self.bucket.mkdir(parents=True)
        self.jobs: dict[str, Container] = {}
        self.says: dict[str, list[dict[str, Any]]] = {
            "GetCallerIdentity": [{"Account": ACCOUNT}],
            "GetRole": [{"AssumeRolePolicyDocument": '{"Service": "sagemaker.amazonaws.com"}'}],
            "BatchGetImage": [{"images": [{"imageId": {"imageTag": "latest"}}]}],
            "ListServiceQuotas": [{"Quotas": [
                {"QuotaName": f"ml.{size} for {kind}training job usage", "Value": 1.0}
                for size in ("g5.xlarge", "g5.4xlarge") for kind in ("", "spot ")
            ]}],
            "GetProducts": [{"PriceList": []}],
            "HeadBucket": [{"region": REGION}],
        }  # fmt: skip
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Each operation with what it was asked."""

    def __enter__(self) -> FakeAws:
        aws = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

            def _do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                target = self.headers.get("X-Amz-Target")
                if target:
                    status, kind, answer = aws.of_json(target.rpartition(".")[2], json.loads(body or b"{}"))
                elif self.command == "POST" and self.path == "/":
                    status, kind, answer = aws.of_query(dict(urllib.parse.parse_qsl(body.decode())))
                else:
                    status, kind, answer = aws.of_s3(self.command, self.path, body)
                self.send_response(status)
                for name, value in kind.items():
                    self.send_header(name, value)
                if "Content-Length" not in kind:
                    self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _do  # noqa: N815 - as http.server calls them

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.jobs.values():
            if job.process.poll() is None:
                job.process.kill()
            job.process.wait()
            job.log.close()
        self.server.shutdown()
        self.server.server_close()

    def names(self) -> list[str]:
        """The operations that were asked for, in order."""
        return [name for name, _ in self.asked]

    def said(self, operation: str) -> dict[str, Any] | None:
        """The answer that is prescribed."""
        answers = self.says.get(operation)
        return None if not answers else answers.pop(0) if len(answers) > 1 else answers[0]

    def of_json(self, operation: str, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        """Of services that speak JSON."""
        self.asked.append((operation, asked))
        found = self.said(operation)
        if found is None:
            found = getattr(self, operation)(asked)
        status = found.get("status", 400) if "__type" in found else 200
        return status, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(found).encode()

    def CreateTrainingJob(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - AWS's name
        """Start a container."""
        name = asked["TrainingJobName"]
        if name in self.jobs:
            return error("ResourceInUse", "Training job names must be unique within an AWS account and region")
        self.jobs[name] = Container(self.home / "jobs" / name, asked, self.bucket)
        return {"TrainingJobArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/{name}"}

    def DescribeTrainingJob(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        """How a container is."""
        job = self.jobs.get(asked["TrainingJobName"])
        return error("ValidationException", "Requested resource not found.") if job is None else job.describe()

    def StopTrainingJob(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        """Ask it to end."""
        self.jobs[asked["TrainingJobName"]].stop()
        return {}

    def ListTrainingJobs(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        """All of them."""
        return {"TrainingJobSummaries": [
            {**job.describe(), "TrainingJobArn": "arn:aws:sagemaker:us-east-1:123456789012:training-job/x",
             "CreationTime": 0} for job in self.jobs.values()
        ]}  # fmt: skip

    def DescribeLogStreams(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        """One for each container."""
        name = asked["logStreamNamePrefix"].rstrip("/")
        return {"logStreams": [{"logStreamName": f"{name}/algo-1", "creationTime": 1}] if name in self.jobs else []}

    def GetLogEvents(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        """What a container has printed, in two pages."""
        lines = (self.jobs[asked["logStreamName"].partition("/")[0]].home / "log").read_text().splitlines()
        half = len(lines) // 2
        token = asked.get("nextToken", "begin")
        pages = {"begin": (lines[:half], "middle"), "middle": (lines[half:], "end"), "end": ([], "end")}
        events, following = pages[token]
        return {"events": [{"message": line} for line in events], "nextForwardToken": following}

    def of_query(self, asked: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Of services that speak XML."""
        operation = asked["Action"]
        self.asked.append((operation, dict(asked)))
        found = self.said(operation) or {}
        if "__type" in found:
            inner = f"<Code>{found['__type']}</Code><Message>{found['message']}</Message>"
            body = f"<ErrorResponse><Error>{inner}</Error></ErrorResponse>"
            return found["status"], {"Content-Type": "text/xml"}, body.encode()
        inner = "".join(f"<{key}>{escape(str(value))}</{key}>" for key, value in found.items())
        if operation == "GetRole":
            inner = f"<Role>{inner}</Role>"
        body = f"<{operation}Response><{operation}Result>{inner}</{operation}Result></{operation}Response>"
        return 200, {"Content-Type": "text/xml"}, body.encode()

    def of_s3(self, verb: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Of S3, in path style."""
        parts = urllib.parse.urlsplit(path)
        bucket, _, key = urllib.parse.unquote(parts.path).lstrip("/").partition("/")
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        operation = {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}[verb]
        operation = operation if key else {"HEAD": "HeadBucket"}.get(verb, "ListObjectsV2")
        self.asked.append((operation, {"Bucket": bucket, "Key": key}))
        found = self.said(operation)
        if found is not None and "__type" in found:
            text = f"<Error><Code>{found['__type']}</Code><Message>{found['message']}</Message></Error>"
            extra = {"x-amz-bucket-region": found["region"]} if "region" in found else {}
            return found["status"], {"Content-Type": "application/xml", **extra}, text.encode()
        if operation == "HeadBucket":
            return 200, {"x-amz-bucket-region": (found or {})["region"]}, b""
        if operation == "ListObjectsV2":
            return 200, {"Content-Type": "application/xml"}, self._list(query.get("prefix", ""))
        place = self.bucket / key
        if verb == "PUT":
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(body)
            return 200, {"ETag": '"0"'}, b""
        if verb == "DELETE":
            place.unlink(missing_ok=True)
            return 204, {}, b""
        if not place.is_file():
            return (
                404,
                {"Content-Type": "application/xml"},
                b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>",
            )
        content = place.read_bytes()
        return 200, {"ETag": '"0"', "Content-Length": str(len(content))}, content

    def _list(self, prefix: str) -> bytes:
        keys = sorted(place.relative_to(self.bucket).as_posix() for place in self.bucket.rglob("*") if place.is_file())
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{(self.bucket / key).stat().st_size}</Size></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode()
