"""Rows of the cache name the files that they come from now, wherever a project has been moved."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fitune.data.origins import found, kept
from fitune.testing import write_recipe
from support.prepared import prepared


@pytest.mark.parametrize(
    ("file", "before", "after", "expected"),
    [
        ("/a/d.jsonl", "/a/d.jsonl", "/b/c/d.jsonl", "/b/c/d.jsonl"),
        ("/a/x/d.jsonl", "/a/x", "/b", "/b/d.jsonl"),
        ("/a/x/d.jsonl", "/a/*/d.jsonl", "/b/c/*/d.jsonl", "/b/c/x/d.jsonl"),
        ("/a/x/y/d.jsonl", "/a/**/d.jsonl", "/b/**/d.jsonl", "/b/x/y/d.jsonl"),
        ("/ab/d.jsonl", "/a", "/b", "/ab/d.jsonl"),
        ("/elsewhere/d.jsonl", "/a/d.jsonl", "/b/d.jsonl", "/elsewhere/d.jsonl"),
        ("someone/dataset", "/a/d.jsonl", "/b/d.jsonl", "someone/dataset"),
    ],
)
def test_a_file_is_found_again(file: str, before: str, after: str, expected: str) -> None:
    assert found(kept(file, [Path(before)]), [Path(after)]) == expected
    assert found(kept(file, [Path("/z/other"), Path(before)]), [Path("/y/other"), Path(after)]) == expected


def test_the_nearest_path_names_a_file() -> None:
    """Whichever comes first."""
    places = [Path("/a/x.jsonl"), Path("/a/b/d.jsonl"), Path("/a/b")]
    assert kept("/a/b/d.jsonl", places) == [1, 0, ""]
    assert found([1, 0, ""], [Path("/c"), Path("/d/e.jsonl"), Path("/f")]) == "/d/e.jsonl"


def test_a_project_that_was_moved_finds_its_rows(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "here")
    first = prepared(recipe)
    assert not first.cached
    assert prepared(recipe).cached
    shutil.move(tmp_path / "here", tmp_path / "there" / "deep")
    moved = prepared(tmp_path / "there" / "deep" / recipe.name)
    assert moved.cached
    assert moved.digest == first.digest
    assert moved.rows[0].origin.file == str(tmp_path / "there" / "deep" / "data.jsonl")
    assert moved.rows[0].origin.row == first.rows[0].origin.row


def test_equal_files_elsewhere_share_an_entry_and_name_their_own(tmp_path: Path) -> None:
    one, other = write_recipe(tmp_path / "one"), write_recipe(tmp_path / "other")
    assert not prepared(one).cached
    found = prepared(other)
    assert found.cached
    assert {row.origin.file for row in found.rows} == {str(tmp_path / "other" / "data.jsonl")}
    assert {row.origin.file for row in prepared(one).rows} == {str(tmp_path / "one" / "data.jsonl")}
