"""Data source `sample`: a text file of questions and answers, a line each: `question = answer`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fitune import DataContext, DataError, DataStage, Origin, Problem, Row, Stage, hookimpl


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """Options of the source `sample`."""

    path: Path
    """The file, in UTF-8."""
    mark: str = "="
    """What stands between a question and its answer."""


def make(options: SampleOptions, context: DataContext) -> Stage:
    """Give what reads the file, row by row."""

    def read(nothing: Iterator[Any]) -> Iterator[Row]:
        with options.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                origin = Origin(file=str(options.path), row=number)
                question, mark, answer = (part.strip() for part in line.partition(options.mark))
                if mark and question and answer:
                    yield Row(values={"prompt": question, "completion": answer}, origin=origin)
                else:
                    context.reject(DataError(f'{origin}: no "question {options.mark} answer": {line.strip()!r}'))

    return read


def check(options: SampleOptions) -> Iterable[Problem]:
    """Look whether the file is there."""
    if not options.path.is_file():
        yield Problem(key="path", what=f"there is no file {options.path}", fix="Mend the path")


def fingerprint(options: SampleOptions) -> str | None:
    """Say what would be read now."""
    return sha256(options.path.read_bytes()).hexdigest()


@hookimpl
def ft_data_stages() -> Iterable[DataStage[SampleOptions]]:
    """Offer the source."""
    yield DataStage(
        name="sample",
        summary="Source: lines of a question and its answer",
        options=SampleOptions,
        takes="nothing",
        gives="rows",
        make=make,
        check=check,
        fingerprint=fingerprint,
    )
