"""A directory of what was trained, on the hub: shown first, and sent only if that is asked for; all in one commit.

What is sent is weights in safetensors or GGUF, and what belongs to them. Anything else in the directory is an error,
and so is a link, and a text that holds a secret: what is published cannot be taken back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune.errors import RunError, cause
from fitune.recipe.secrets import secret_in
from fitune.runs.card import CARD

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WEIGHTS = (".safetensors", ".gguf")
TEXTS = (".json", ".txt", ".md", ".jinja", ".model")
NAMES = ("Modelfile", "LICENSE", "merges.txt")

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

LARGEST_TEXT = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file that is sent: its path within the directory, and its bytes."""

    name: str
    bytes: int


def files_of(directory: Path) -> list[File]:
    """What is sent of a directory. Raises `RunError` if something there must not be."""
    if not directory.is_dir():
        raise RunError(f"{directory}: no such directory. Give one that ft run, ft merge or ft export wrote")
    places = sorted(place for place in directory.rglob("*") if place.is_symlink() or not place.is_dir())
    found = [File(name=place.relative_to(directory).as_posix(), bytes=_checked(place)) for place in places]
    if not any(file.name.endswith(WEIGHTS) for file in found):
        raise RunError(f"{directory} holds no weights. Give a directory that ft run, ft merge or ft export wrote")
    if not any(file.name == CARD for file in found):
        raise RunError(f"{directory} holds no model card ({CARD}): a model that nobody knows the origin of is not sent")
    return found


def _checked(place: Path) -> int:
    """The bytes of a file that may be sent. Raises `RunError`."""
    if place.is_symlink() or not place.is_file():
        raise RunError(f"{place} is no file but a link, or another thing: it is not sent. Take it away")
    if place.suffix not in (*WEIGHTS, *TEXTS) and place.name not in NAMES:
        raise RunError(f"{place} is no part of a model: it is not sent. Take it away")
    size = place.stat().st_size
    if place.suffix not in WEIGHTS and place.suffix != ".model":
        _must_be_public(place, size)
    return size


def _must_be_public(place: Path, size: int) -> None:
    """Raise `RunError` if a text holds what is a secret by its looks."""
    try:
        text = place.read_text(encoding="utf-8") if size <= LARGEST_TEXT else None
    except (OSError, ValueError) as error:
        raise RunError(f"{place} cannot be read: {cause(error)}. Nothing is sent") from error
    if text is None:
        raise RunError(f"{place} is too large for a text ({size:,} bytes). Nothing is sent")
    for number, line in enumerate(text.splitlines(), 1):
        if (what := secret_in(line)) is not None:
            raise RunError(f"{place}, line {number}: it holds {what}. Nothing is sent. Take it out")


def must_be_repository(name: str) -> None:
    """Raise `RunError` unless it is OWNER/NAME."""
    if not REPOSITORY.fullmatch(name):
        raise RunError(f"--repo {name}: a repository of the hub is OWNER/NAME")


def send(directory: Path, files: Sequence[File], repository: str, *, private: bool) -> str:
    """Send the files in one commit, to a repository that is made if it is not there; gives the commit's address.

    The token is the one that `hf auth login` or HF_TOKEN gave. Raises `RunError`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api: HfApi = HfApi()
    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=directory / file.name) for file in files
    ]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, operations, commit_message="Model, with its card")
    except LocalTokenNotFoundError as error:
        raise RunError("the hub knows nobody here. Log in (hf auth login), or set HF_TOKEN") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RunError(f"{repository} was not written: {cause(error)}. What is there is as it was") from error
    return str(commit.commit_url)
