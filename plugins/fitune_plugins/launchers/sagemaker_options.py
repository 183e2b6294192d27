"""The options of launcher `sagemaker`, and the clients of AWS that they make."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Gt, Le

from fitune import Problem, RunError
from fitune_plugins.launchers.sagemaker_words import in_words

ROLE = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}):role/?[\w+=,.@/-]+")

BUCKET = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SageMakerOptions:
    """Options of `sagemaker`. Credentials are where AWS's own programs look for them, and nowhere else."""

    role: str
    """The ARN of the role that the job works as: it must be allowed to read and write the bucket and to write logs."""
    bucket: str
    """Where what is sent, checkpoints and results are kept: s3://NAME/PREFIX, in the region of the job."""
    image: str
    """The training image, with Python 3.10 or later: of Amazon ECR, e.g. one of AWS's Deep Learning Containers."""
    region: str = ""
    """Where to train; by default that of the credentials' profile, or of AWS_REGION."""
    profile: str = ""
    """The profile of ~/.aws/config; by default that of AWS_PROFILE."""
    volume_gb: Annotated[int, Ge(1), Le(16384)] = 100
    """Gigabytes of disk for packages, the base model and checkpoints, where the machine has no disk of its own."""
    wait_hours: Annotated[float, Gt(0)] = 24.0
    """For a spot machine: how long to wait for it, in all."""
    subnets: tuple[str, ...] = ()
    """Of a VPC that the job is to be in; it needs a way to a package index and to the model."""
    security_groups: tuple[str, ...] = ()
    """Of that VPC."""

    @property
    def place(self) -> tuple[str, str]:
        """The bucket's name, and the prefix within it, which ends with a slash if it is not empty."""
        found = BUCKET.fullmatch(self.bucket)
        assert found is not None
        prefix = (found[2] or "").strip("/")
        return found[1], f"{prefix}/" if prefix else ""

    @property
    def account(self) -> str:
        """The number of the account whose role it is."""
        found = ROLE.fullmatch(self.role)
        assert found is not None
        return found[1]


def check(options: SageMakerOptions) -> Iterator[Problem]:
    """What cannot be, without asking AWS."""
    if ROLE.fullmatch(options.role) is None:
        yield Problem(
            key="role",
            what=f'"{options.role}" is no ARN of a role',
            fix='Give one that SageMaker may take, e.g. "arn:aws:iam::123456789012:role/sagemaker-training"',
        )
    if BUCKET.fullmatch(options.bucket) is None:
        yield Problem(key="bucket", what=f'"{options.bucket}" is no place on S3', fix='Give "s3://NAME/PREFIX"')
    if not options.image.strip() or re.search(r"\s", options.image):
        yield Problem(key="image", what=f'"{options.image}" is no image', fix="Give that of a registry, with its tag")
    if bool(options.subnets) != bool(options.security_groups):
        yield Problem(key="subnets", what="subnets and security_groups belong together", fix="Give both, or neither")


class Clients(NamedTuple):
    """What AWS is asked through."""

    session: Any
    region: str

    def of(self, service: str, region: str | None = None) -> Any:
        """The client of a service."""
        from botocore.config import Config

        config = Config(
            retries={"mode": "standard", "max_attempts": 5}, connect_timeout=10, read_timeout=60,
            user_agent_extra="fitune",
        )  # fmt: skip
        with in_words(f"AWS {service}"):
            return self.session.client(service, region_name=region or self.region, config=config)


def clients(options: SageMakerOptions) -> Clients:
    """Those of the options. Raises `RunError` where boto3 is not there, or no region is set."""
    try:
        import boto3
    except ImportError:
        raise RunError(
            "launcher sagemaker needs boto3, which is not installed: pip install 'fitune[sagemaker]'"
        ) from None
    from botocore.session import get_session

    with in_words("AWS"):
        inner = get_session()
        inner.register_component("data_loader", _models())
        session = boto3.Session(
            profile_name=options.profile or None, region_name=options.region or None, botocore_session=inner
        )
        if not session.region_name:
            raise RunError("no region is set. Give --option region=us-east-1, or set AWS_REGION")
    return Clients(session=session, region=session.region_name)


@functools.cache
def _models() -> Any:
    """What is known of AWS's services, read once: SageMaker's alone are megabytes."""
    from botocore.loaders import create_loader

    return create_loader()
