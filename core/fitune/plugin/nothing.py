"""What a provider's callables give where there is nothing to give: the defaults of records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fitune.errors import Problem


def nothing_told(options: Any, model: Any) -> Iterable[str]:
    """What an adapter says of itself that has nothing to say."""
    return ()


def no_packages(options: Any) -> Iterable[str]:
    """The packages of a provider that uses none beside those of its own distribution."""
    return ()


def no_files(options: Any) -> Iterable[Path]:
    """The files of a loader that names none."""
    return ()


def no_problems(options: Any) -> Iterable[Problem]:
    """The check of a provider that has nothing to check beyond the types and ranges of its options."""
    return ()
