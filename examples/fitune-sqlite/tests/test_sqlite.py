"""`sqlite` and `sqlite-log` keep their contracts, and the command tells what the listener wrote."""

import sqlite3
from contextlib import closing
from pathlib import Path

import fitune_sqlite
import pytest
from click.testing import CliRunner
from fitune_sqlite import sqlite_log_command

from fitune import DataError, RunError, run
from fitune.testing import assert_listener, assert_source, open_registry, write_recipe

QUERY = "select question as prompt, answer as completion from talks order by id"


def database(path: Path, *more: tuple[object, object]) -> Path:
    """A database of four rows and these."""
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("create table talks (id integer primary key, question, answer)")
        rows = [(f"{n} + {n}?", str(2 * n)) for n in range(4)]
        made.executemany("insert into talks (question, answer) values (?, ?)", [*rows, *more])
    return path


def test_the_source_keeps_its_contract(tmp_path: Path) -> None:
    good, bad = database(tmp_path / "good.db"), database(tmp_path / "bad.db", ("blob?", b"\0"))
    damaged: dict[str, object] = {"path": str(bad), "query": QUERY}
    assert_source(fitune_sqlite, "sqlite", tmp_path, {"path": str(good), "query": QUERY}, damaged=damaged)


@pytest.mark.parametrize(
    ("content", "query", "told"),
    [
        (b"no database" * 99, QUERY, "file is not a database"),
        (None, "select absent from talks", "no such column: absent"),
    ],
)
def test_what_cannot_be_read_is_one_error(tmp_path: Path, content: bytes | None, query: str, told: str) -> None:
    file = database(tmp_path / "talks.db")
    if content is not None:
        file.write_bytes(content)
    source = {"use": "sqlite", "path": str(file), "query": query}
    recipe = write_recipe(tmp_path / "recipe", {"data": {"source": [source]}})
    with pytest.raises(DataError, match=told):
        run(recipe, tmp_path / "run", registry=open_registry(fitune_sqlite))


def test_the_listener_keeps_its_contract(tmp_path: Path) -> None:
    assert_listener(fitune_sqlite, "sqlite-log", tmp_path, {"every": 2})


def test_a_run_reads_and_writes_databases_and_the_command_tells(tmp_path: Path) -> None:
    source = {"use": "sqlite", "path": str(database(tmp_path / "talks.db")), "query": QUERY}
    changes: dict[str, object] = {"data": {"source": [source]}, "listener": [{"use": "sqlite-log"}]}
    recipe = write_recipe(tmp_path / "recipe", changes)
    directory = run(recipe, tmp_path / "run", registry=open_registry(fitune_sqlite))
    told = CliRunner().invoke(sqlite_log_command, [str(directory), "--last", "2"], catch_exceptions=False).output
    assert [line.split()[:2] for line in told.splitlines()] == [["step", "2"], ["step", "3"]]
    with pytest.raises(RunError, match=r"holds no steps\.db"):
        sqlite_log_command.callback(tmp_path, None)  # type: ignore[misc]
