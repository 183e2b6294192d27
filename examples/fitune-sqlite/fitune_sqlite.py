"""Source `sqlite`, listener and command `sqlite-log`: rows out of a database, and a run's steps into one."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import click
from annotated_types import Ge

from fitune import (
    DataContext,
    DataError,
    DataStage,
    Listener,
    Origin,
    Problem,
    Row,
    Run,
    RunError,
    Stage,
    StepReport,
    hookimpl,
)

LOG = "steps.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteOptions:
    """Options of the source `sqlite`."""

    path: Path
    """The database, which is only read."""
    query: str
    """What gives the rows, by columns that a format knows: "select question as prompt, answer as completion from ...".
    Order them, or a run is not the same twice."""


def make(options: SqliteOptions, context: DataContext) -> Stage:
    """Give what reads the rows; what of them is NULL is left out."""

    def read(nothing: Iterator[Any]) -> Iterator[Row]:
        with _opened(options.path) as database:
            try:
                cursor = database.execute(options.query)
                names = [column[0] for column in cursor.description or ()]
                for number, values in enumerate(cursor, 1):
                    origin = Origin(file=str(options.path), row=number)
                    odd = [name for name, value in zip(names, values, strict=True) if isinstance(value, bytes)]
                    if odd:
                        context.reject(DataError(f'{origin}: "{odd[0]}" is a blob, not text or a number'))
                        continue
                    row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
                    yield Row(values=row, origin=origin)
            except sqlite3.Error as error:
                raise DataError(f"{options.path}: {error}. The query is: {options.query}") from error

    return read


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A database that nothing is written to."""
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        yield database
    finally:
        database.close()


def check(options: SqliteOptions) -> Iterable[Problem]:
    """Look whether the file is there."""
    if not options.path.is_file():
        yield Problem(key="path", what=f"no such file: {options.path}", fix="Give the path of an SQLite database")


def fingerprint(options: SqliteOptions) -> str | None:
    """Say what would be read now; nothing where changes still stand in a journal beside the file."""
    if any(options.path.with_name(f"{options.path.name}{end}").exists() for end in ("-wal", "-journal")):
        return None
    return sha256(options.query.encode() + b"\0" + options.path.read_bytes()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteLogOptions:
    """Options of the listener `sqlite-log`."""

    every: Annotated[int, Ge(1)] = 1
    """Steps between two that are written down."""


class SqliteLog:
    """Listens to one run."""

    def __init__(self, options: SqliteLogOptions) -> None:
        self._every = options.every

    @hookimpl
    def ft_step_done(self, run: Run, step: StepReport) -> None:
        """Write it down; one that is made again, behind a checkpoint, takes the place of the first."""
        if step.step % self._every:
            return
        with contextlib.closing(sqlite3.connect(run.directory / LOG)) as database, database:
            database.execute("create table if not exists steps (step integer primary key, loss real, rate real)")
            database.execute(
                "insert or replace into steps values (?, ?, ?)", (step.step, step.loss, step.learning_rate)
            )


@click.command("sqlite-log")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only so many of the last steps.")
def sqlite_log_command(run: Path, last: int | None) -> None:
    """Print the steps of RUN that the listener sqlite-log has written down."""
    if not (run / LOG).is_file():
        raise RunError(f'{run} holds no {LOG}. Add a [[listener]] with use = "sqlite-log" to its recipe')
    with _opened(run / LOG) as database:
        rows = database.execute(
            "select step, loss, rate from steps order by step desc limit ?", (last or -1,)
        ).fetchall()
    for step, loss, rate in reversed(rows):
        click.echo(f"step {step}  loss {loss:.4f}  rate {rate:.3g}")


@hookimpl
def ft_data_stages() -> Iterable[DataStage[SqliteOptions]]:
    """Offer the source."""
    yield DataStage(
        name="sqlite",
        summary="Source: the rows that a query gives of an SQLite database",
        options=SqliteOptions,
        takes="nothing",
        gives="rows",
        make=make,
        check=check,
        fingerprint=fingerprint,
    )


@hookimpl
def ft_listeners() -> Iterable[Listener[SqliteLogOptions]]:
    """Offer the listener."""
    yield Listener(
        name="sqlite-log",
        summary=f"Writes loss and learning rate of each step into {LOG} in the run's directory",
        options=SqliteLogOptions,
        make=SqliteLog,
    )


@hookimpl
def ft_commands(cli: click.Group) -> None:
    """Add the command."""
    cli.add_command(sqlite_log_command)
