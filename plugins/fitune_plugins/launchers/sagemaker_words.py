"""What AWS answers, in words: errors with what to do about them, and how a training job is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from fitune import JobState, JobStatus, RunError

NEW_CREDENTIALS = "Log in again, e.g. aws sso login, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY anew"

CODES = {
    "ExpiredToken": f"the credentials have expired. {NEW_CREDENTIALS}",
    "ExpiredTokenException": f"the credentials have expired. {NEW_CREDENTIALS}",
    "RequestExpired": "the request came too late: is the clock of this machine right?",
    "InvalidClientTokenId": f"the credentials are not known to AWS. {NEW_CREDENTIALS}",
    "UnrecognizedClientException": f"the credentials are not known to AWS. {NEW_CREDENTIALS}",
    "SignatureDoesNotMatch": f"the secret key is wrong. {NEW_CREDENTIALS}",
    "InvalidAccessKeyId": f"the credentials are not known to AWS. {NEW_CREDENTIALS}",
    "ThrottlingException": "AWS is asked too often just now, after several tries. Wait a minute, and try again",
    "Throttling": "AWS is asked too often just now, after several tries. Wait a minute, and try again",
    "TooManyRequestsException": "AWS is asked too often just now, after several tries. Wait a minute, and try again",
    "SlowDown": "S3 is asked too often just now, after several tries. Wait a minute, and try again",
    "NoSuchBucket": "there is no such bucket. Give --option bucket=s3://NAME/PREFIX",
    "ServiceUnavailable": "AWS does not answer just now. Try again",
    "InternalFailure": "AWS has failed inside. Try again",
}
"""What errors of AWS mean here, by their codes."""

MISSING = ("Requested resource not found", "Could not find", "does not exist")
"""What it says of a training job that is not there."""


@contextlib.contextmanager
def in_words(doing: str) -> Iterator[None]:
    """Around calls of AWS: their errors become `RunError`s that say what was being done, and what to do."""
    from boto3.exceptions import S3UploadFailedError
    from botocore import exceptions as aws

    try:
        yield
    except aws.ClientError as error:
        raise RunError(f"{doing}: {of_client(error)}") from error
    except S3UploadFailedError as error:
        cause = error.__context__
        said = of_client(cause) if isinstance(cause, aws.ClientError) else " ".join(str(error).split())
        raise RunError(f"{doing}: {said}") from error
    except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError) as error:
        raise RunError(
            f"{doing}: there are no credentials for AWS here ({error}). Run aws configure or aws sso login, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except (aws.TokenRetrievalError, aws.SSOTokenLoadError, aws.UnauthorizedSSOTokenError) as error:
        raise RunError(f"{doing}: the log-in has expired ({error}). Run aws sso login") from error
    except aws.ProfileNotFound as error:
        raise RunError(f"{doing}: {error}. Give another --option profile=NAME, or leave it out") from error
    except aws.NoRegionError as error:
        raise RunError(f"{doing}: no region is set. Give --option region=us-east-1, or set AWS_REGION") from error
    except (aws.EndpointConnectionError, aws.ConnectionError, aws.HTTPClientError) as error:
        raise RunError(
            f"{doing}: AWS cannot be reached: {error}. Is there a network, and is the region right?"
        ) from error
    except aws.ParamValidationError as error:
        raise RunError(f"{doing}: {' '.join(str(error).split())}") from error


def of_client(error: Any) -> str:
    """What an answer that is an error says."""
    code, said = code_of(error), " ".join(str(error.response.get("Error", {}).get("Message", "")).split())
    if code in CODES:
        return CODES[code]
    if code in ("AccessDenied", "AccessDeniedException", "403", "UnauthorizedOperation"):
        return f"AWS does not allow it: {said or code}. Ask whoever owns the account for that permission"
    if code == "ResourceLimitExceeded":
        return f"the account's quota does not allow it: {said}. Ask for more at Service Quotas, Amazon SageMaker"
    return f"{said or 'it failed'} ({code})"


def code_of(error: Any) -> str:
    """The code of an error of AWS."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_missing(error: Any) -> bool:
    """Whether an error says that there is no such training job."""
    said = str(error.response.get("Error", {}).get("Message", ""))
    return code_of(error) in ("ValidationException", "ResourceNotFound") and any(one in said for one in MISSING)


STATES: dict[str, tuple[JobState, str]] = {
    "Starting": ("waiting", "SageMaker starts it"),
    "Pending": ("waiting", "it waits for a machine"),
    "LaunchingMLInstances": ("waiting", "it waits for a machine"),
    "PreparingTrainingStack": ("waiting", "its machine is prepared"),
    "Downloading": ("waiting", "its machine fetches what was sent"),
    "DownloadingTrainingImage": ("waiting", "its machine fetches the image"),
    "Training": ("running", ""),
    "Uploading": ("running", "it has ended; what it trained is uploaded"),
    "Updating": ("running", "SageMaker changes it"),
    "Interrupted": ("waiting", "its spot machine was taken back; SageMaker waits for another, and it goes on from its "
                    "last checkpoint"),
    "Restarting": ("waiting", "SageMaker starts it again, and it goes on from its last checkpoint"),
    "Stopping": ("stopping", "it saves and ends, within two minutes"),
    "Stopped": ("stopped", "it was asked to stop"),
    "MaxRuntimeExceeded": ("stopped", "it has met its limit of time"),
    "MaxWaitTimeExceeded": ("stopped", "no spot machine was to be had for long enough (option wait_hours)"),
    "Completed": ("done", ""),
    "Failed": ("failed", ""),
}  # fmt: skip
"""By SageMaker's secondary status (docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeTrainingJob.html)."""

PRIMARY: dict[str, JobState] = {
    "InProgress": "running",
    "Completed": "done",
    "Failed": "failed",
    "Stopping": "stopping",
    "Stopped": "stopped",
    "Deleting": "stopped",
}
"""By its status, where the secondary one is not known."""


def status_of(name: str, said: Mapping[str, Any]) -> JobStatus:
    """How a training job is, by what SageMaker says of it."""
    primary, second = str(said.get("TrainingJobStatus", "")), str(said.get("SecondaryStatus", ""))
    state, what = STATES.get(second, (PRIMARY.get(primary, "running"), second))
    if primary in ("Completed", "Failed", "Stopped") and PRIMARY[primary] != state:
        state, what = PRIMARY[primary], what if state == "stopped" else ""
    if state == "failed":
        what = " ".join(str(said.get("FailureReason") or "SageMaker gives no reason").split())
        what = what.removeprefix("AlgorithmError: ")
    elif state == "waiting" and (told := _last_message(said)) and "insufficient capacity" in told.lower():
        what = f"{what}: AWS has no such machine free just now, and SageMaker tries again"
    billed = said.get("BillableTimeInSeconds")
    return JobStatus(name=name, state=state, what=what, billed=None if billed is None else float(billed))


def _last_message(said: Mapping[str, Any]) -> str:
    """What SageMaker says of the last change."""
    changes = said.get("SecondaryStatusTransitions") or []
    return str(changes[-1].get("StatusMessage") or "") if changes else ""
