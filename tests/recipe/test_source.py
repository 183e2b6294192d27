"""Where each key of a recipe stands, and what `--set` does to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from fitune.errors import RecipeError
from fitune.recipe.source import Key, TomlSource

DOCUMENT = '''\
# a comment

name = "n"  # behind a value
text = """
[train]
steps = 3
"""
list = [
  1,  # one
  # nothing

  2,
]
inline = { a = 1, b = { c = 2 } }
dotted.deep.key = 3
"quoted key" = 4
'also.quoted' = 5

[train]

# about steps
steps = 3
words = "a # is no comment ] here"

[[memory.strategy]]
use = "one"

[[memory.strategy]]
# the second
use = "two"
tables = [
  { a = 1 },
  { a = 2 },
]

[[memory.strategy.part]]
size = 1

[ spaced . "name" ]
last = 9
'''
PLACES: dict[Key, tuple[int, str]] = {
    ("name",): (3, "name"),
    ("text",): (4, "text"),
    ("list",): (8, "list"),
    ("inline",): (14, "[inline]"),
    ("inline", "b"): (14, "[inline.b]"),
    ("inline", "b", "c"): (14, "[inline.b] c"),
    ("dotted", "deep"): (15, "[dotted.deep]"),
    ("dotted", "deep", "key"): (15, "[dotted.deep] key"),
    ("quoted key",): (16, "quoted key"),
    ("also.quoted",): (17, "also.quoted"),
    ("train",): (19, "[train]"),
    ("train", "steps"): (22, "[train] steps"),
    ("train", "words"): (23, "[train] words"),
    ("memory",): (25, "[memory]"),
    ("memory", "strategy"): (25, "[memory.strategy]"),
    ("memory", "strategy", 0): (25, "[memory.strategy]"),
    ("memory", "strategy", 0, "use"): (26, "[memory.strategy] use"),
    ("memory", "strategy", 1): (28, "[memory.strategy]"),
    ("memory", "strategy", 1, "use"): (30, "[memory.strategy] use"),
    ("memory", "strategy", 1, "tables", 1, "a"): (31, "[memory.strategy.tables] a"),
    ("memory", "strategy", 1, "part", 0): (36, "[memory.strategy.part]"),
    ("memory", "strategy", 1, "part", 0, "size"): (37, "[memory.strategy.part] size"),
    ("spaced", "name"): (39, "[spaced.name]"),
    ("spaced", "name", "last"): (40, "[spaced.name] last"),
    # What is not there is told where it is missing.
    ("train", "length"): (19, "[train]"),
    ("memory", "strategy", 1, "layers"): (28, "[memory.strategy]"),
    ("list", 1): (8, "list"),
}
PATH = Path("r.toml")


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(("key", "place"), PLACES.items(), ids=lambda value: str(value))
def test_where_a_key_stands(key: Key, place: tuple[int, str], newline: str) -> None:
    source = TomlSource(PATH, DOCUMENT.replace("\n", newline))
    line, words = place
    assert source.where(key) == (line, f"r.toml:{line}: {words}")


def test_a_key_of_nothing_that_is_there_has_the_file_for_a_place() -> None:
    assert TomlSource(PATH, DOCUMENT).where(("adapter", "use")) == (0, "r.toml")


def test_lines_are_those_of_an_editor_not_of_unicode() -> None:
    source = TomlSource(PATH, 'a = "\u2028 and \x85"\nb = 2\n')
    assert source.where(("b",)) == (2, "r.toml:2: b")


def test_a_last_line_without_an_end() -> None:
    assert TomlSource(PATH, "a = 1\nb = 2").where(("b",)) == (2, "r.toml:2: b")


def test_looking_up_places_changes_no_value() -> None:
    source = TomlSource(PATH, DOCUMENT)
    for key in PLACES:
        source.where(key)
    assert source.values == tomli.loads(DOCUMENT)


def test_a_mark_in_front_of_the_file_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_bytes(b"\xef\xbb\xbfa = 1\n")
    source = TomlSource.read(file)
    assert source.values == {"a": 1}
    assert source.where(("a",)) == (1, f"{file}:1: a")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.steps=20", ("train", "steps"), 20),
        ("train.steps = 20 # twenty", ("train", "steps"), 20),
        ("train.rate=2e-4", ("train", "rate"), 2e-4),
        ("train.flag=true", ("train", "flag"), True),
        ('name="20"', ("name",), "20"),
        ("name=a word", ("name",), "a word"),
        ("name=a = b", ("name",), "a = b"),
        ("name=", ("name",), ""),
        ("name=C:\\models", ("name",), "C:\\models"),
        ("name=1\nlist = 2", ("name",), "1\nlist = 2"),
        ('list=["a", "b"]', ("list",), ["a", "b"]),
        ("memory.strategy.1.use=three", ("memory", "strategy", 1, "use"), "three"),
        ("new.table.key=1", ("new", "table", "key"), 1),
        ("memory.strategy=[]", ("memory", "strategy"), []),
    ],
)
def test_an_override_gives_a_value_and_is_its_place(override: str, key: Key, value: object) -> None:
    source = TomlSource(PATH, DOCUMENT, [override])
    found: object = source.values
    for part in key:
        found = found[part]  # type: ignore[index]
    assert found == value
    assert type(found) is type(value)
    assert source.where(key) == (0, f"--set {override}")
    assert source.where(("train",)) == (19, "r.toml:19: [train]")


def test_an_override_changes_nothing_else() -> None:
    expected = tomli.loads(DOCUMENT)
    expected["train"]["steps"] = 20
    source = TomlSource(PATH, DOCUMENT, ["train.steps=20"])
    assert source.values == expected
    assert source.where(("train", "words")) == (23, "r.toml:23: [train] words")


def test_the_last_of_two_overrides_counts() -> None:
    source = TomlSource(PATH, DOCUMENT, ["train.steps=1", "train.words=a", "train.steps=2"])
    assert source.values["train"]["steps"] == 2
    assert source.where(("train", "steps")) == (0, "--set train.steps=2")


def test_a_table_that_only_an_override_made_has_it_for_a_place() -> None:
    source = TomlSource(PATH, DOCUMENT, ["adapter.r=4"])
    assert source.where(("adapter", "use")) == (0, "--set adapter.r=4")
    assert source.overridden(("adapter", "r")) == "adapter.r=4"
    assert source.overridden(("adapter", "use")) is None


def test_every_bad_override_is_told() -> None:
    with pytest.raises(RecipeError) as error:
        TomlSource(PATH, DOCUMENT, ["train", "train.steps.x=1", "memory.strategy.2.use=x"])
    assert error.value.lines == (
        "--set train: not an override. Write table.key=value, e.g. --set train.steps=20",
        '--set train.steps.x=1: "train.steps" is not a table, so it has no key "x"',
        '--set memory.strategy.2.use=x: "memory.strategy" has no entry "2": it has 2, counted from 0',
    )
