"""What would keep a training job from being created, looked for before anything is sent: none of it costs money."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fitune import Job, RunError
from fitune_plugins.launchers.sagemaker_options import Clients, SageMakerOptions
from fitune_plugins.launchers.sagemaker_words import code_of, in_words

ECR = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([^:@]+)(?::([^@]+))?(?:@(.+))?")


def account(clients: Clients, options: SageMakerOptions) -> None:
    """Raise `RunError` where nobody is logged in, or in another account than the role's."""
    with in_words("logging in to AWS"):
        found = clients.of("sts").get_caller_identity()["Account"]
    if found != options.account:
        raise RunError(
            f"the role {options.role} is of account {options.account}, and the credentials here are of {found}. Give a "
            "role of that account, or another --option profile=NAME"
        )


def role(clients: Clients, options: SageMakerOptions) -> Iterator[str]:
    """Raise `RunError` for a role that is not there, or that SageMaker may not take; a line where nobody can tell."""

    name = options.role.rpartition("/")[2]
    try:
        with in_words(f"looking at the role {name}"):
            found = clients.of("iam").get_role(RoleName=name)["Role"]
    except RunError as error:
        code = _code(error)
        if code == "NoSuchEntity":
            raise RunError(
                f"there is no role {name} in account {options.account}. Give another --option role=ARN"
            ) from error
        yield f"the role cannot be looked at ({code}): whether it may be taken is known once it is sent"
        return
    if "sagemaker.amazonaws.com" not in str(found.get("AssumeRolePolicyDocument")):
        raise RunError(
            f"SageMaker may not take the role {name}: its trust policy does not name sagemaker.amazonaws.com. Add it, "
            "or give another --option role=ARN"
        )


def bucket(clients: Clients, options: SageMakerOptions) -> None:
    """Raise `RunError` for a bucket that is not there, is not one's own, or is in another region."""
    from botocore.exceptions import ClientError

    name = options.place[0]
    try:
        with in_words(f"looking at s3://{name}"):
            said = clients.of("s3").head_bucket(Bucket=name)
    except RunError as error:
        code, cause = _code(error), error.__cause__
        if code == "404":
            raise RunError(
                f"there is no bucket {name}. Make it, or give another --option bucket=s3://NAME/PREFIX"
            ) from error
        if code == "403":
            raise RunError(
                f"the bucket {name} may not be used with the credentials here. Give another, or ask its owner"
            ) from error
        if code not in ("301", "307"):
            raise
        said = cause.response["ResponseMetadata"]["HTTPHeaders"] if isinstance(cause, ClientError) else {}
        said = {"BucketRegion": said.get("x-amz-bucket-region")}
    region = said.get("BucketRegion")
    if region and region != clients.region:
        raise RunError(
            f"the bucket {name} is in {region}, and the job would be in {clients.region}: SageMaker reads from its own "
            f"region. Give a bucket there, or --option region={region}"
        )


def image(clients: Clients, options: SageMakerOptions) -> Iterator[str]:
    """Raise `RunError` for an image of ECR that is not there, or is in another region; a line where nobody can tell."""

    found = ECR.fullmatch(options.image)
    if found is None:
        yield f"the image {options.image} is of no registry that can be asked: the job will tell whether it is there"
        return
    registry, region, repository, tag, digest = found.groups()
    if region != clients.region:
        raise RunError(
            f"the image {options.image} is in {region}, and the job would be in {clients.region}. Give that of "
            f"{clients.region}"
        )
    wanted = {"imageDigest": digest} if digest else {"imageTag": tag or "latest"}
    try:
        with in_words(f"looking at the image {options.image}"):
            said = clients.of("ecr").batch_get_image(registryId=registry, repositoryName=repository, imageIds=[wanted])
    except RunError as error:
        code = _code(error)
        if code == "RepositoryNotFoundException":
            raise RunError(
                f"there is no repository {repository} in account {registry}. Give another --option image=URI"
            ) from error
        yield f"the image cannot be looked at ({code}): whether it is there is known once it is sent"
        return
    if not said.get("images"):
        raise RunError(f"there is no image {options.image}. Give another tag: --option image=URI")


def lengths(clients: Clients, values: Mapping[str, Any]) -> None:
    """Raise `RunError` for a part of a request that is longer than SageMaker takes, by botocore's model of it, which
    botocore itself does not look at. What it holds is not told: it may be secret.
    """
    model = clients.of("sagemaker").meta.service_model
    for name, count, most in _too_long(model.operation_model("CreateTrainingJob").input_shape, values, ""):
        raise RunError(f"{name} of the training job has a length of {count:,}, and SageMaker takes {most:,} at most")


def _too_long(shape: Any, value: Any, name: str) -> Iterator[tuple[str, int, int]]:
    """Parts that are: name, length, the most."""
    most = shape.metadata.get("max")
    if shape.type_name in ("string", "list", "map") and most is not None and len(value) > most:
        yield name, len(value), most
    if shape.type_name == "structure":
        for key, inner in value.items():
            yield from _too_long(shape.members[key], inner, f"{name}.{key}".lstrip("."))
    elif shape.type_name == "list":
        for inner in value:
            yield from _too_long(shape.member, inner, name)
    elif shape.type_name == "map":
        for key, inner in value.items():
            yield from _too_long(shape.key, key, f"{name}.{key[:40]}")
            yield from _too_long(shape.value, inner, f"{name}.{key[:40]}")


def _code(error: RunError) -> str:
    """The code of the answer that an error tells of. Raises the error where it is of no answer."""
    from botocore.exceptions import ClientError

    if not isinstance(error.__cause__, ClientError):
        raise error
    return code_of(error.__cause__)


def quota(clients: Clients, job: Job) -> Iterator[str]:
    """Raise `RunError` where the account may have no such machine; a line where that cannot be told."""
    kind = "spot training job usage" if job.spot else "training job usage"
    wanted = f"{job.machine.name} for {kind}"
    try:
        pages: Any = clients.of("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
        found = next((one["Value"] for page in pages for one in page["Quotas"] if one["QuotaName"] == wanted), None)
    except Exception as error:  # a permission that many do not have; the job itself will tell
        yield f"the quota of {job.machine.name} cannot be looked up ({type(error).__name__})"
        return
    if found is None:
        yield f'no quota "{wanted}" is known in {clients.region}'
    elif found < 1:
        raise RunError(
            f'the account may have no {job.machine.name} in {clients.region}: its quota "{wanted}" is {found:.0f}. Ask '
            "for more at Service Quotas, Amazon SageMaker (console.aws.amazon.com/servicequotas); it may take days"
        )
