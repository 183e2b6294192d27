"""A recipe of any size is read in linear time, or refused in a line. On 0.1 these took minutes, or gave a traceback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli

from fitune.errors import DataError, RecipeError
from fitune.plugin.options import is_table
from fitune.recipe import toml
from fitune.recipe.reader import read_recipe
from fitune.recipe.source import Key, TomlSource
from fitune.testing import open_registry

PATH = Path("r.toml")
RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml"))


def _keys(values: Any, key: Key = ()) -> Iterator[Key]:
    if key:
        yield key
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _keys(value, (*key, name))
    elif isinstance(values, list) and is_table(values):
        for position, value in enumerate(values):
            yield from _keys(value, (*key, position))


def _slowly(text: str) -> Iterator[tuple[Key, int]]:
    """The lines of keys by definition: a prefix of lines parses exactly if it ends between two statements."""
    seen: set[Key] = set()
    lines = [f"{line}\n" for line in text.split("\n")]
    start = 0
    for end in range(1, len(lines) + 1):
        try:
            values = tomli.loads("".join(lines[:end]))
        except tomli.TOMLDecodeError:
            continue
        for key in _keys(values):
            if key not in seen:
                seen.add(key)
                yield key, start + 1
        start = end


DOCUMENTS = (
    'a = """\n[b]\n"""\nc = \'\'\'\n# "\'\'\'\nd = 1',
    'a = """x\\"""\n""""\nb = """"q" """\nc = \'\'\'\'q\'\'\'\'\n',
    'a = "# no [ comment"  # "a ] comment\nb = \'[\'\nc = [ # [\n  "]", # ]\n]\n',
    "[a.b]\nc = 1\n[a]\nd = 2\n[[a.e]]\n[[a.e.f]]\ng.h = 1\n[[a.e.f]]\n[[a.e]]\n[a.e.i]\nj = 1\n[[a.e.f]]\nk = 2\n",
    "a = { b = [ { c = 1 }, { d = 2 } ] }\n[x]\ny = [\n{ z = 1 },\n]\n",
    "\r\n# a\r\na = 1\r\n\r\n[b]\r\nc = '''\r\n'''\r\n",
    '"[a]" = 1\n["b.c"]\n"d]" = [[1, 2], [3]]\n',
    "",
)


@pytest.mark.parametrize("text", [*DOCUMENTS, *(file.read_text(encoding="utf-8") for file in RECIPES)])
def test_lines_are_those_of_the_definition(text: str) -> None:
    assert dict(toml.lines(text)) == dict(_slowly(text))
    assert RECIPES


def test_statements_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of five thousand keys and three thousand comments are found in one pass over the text."""
    text = "".join(f"# {n}\n" for n in range(3000)) + "".join(f"k{n} = {n}\n" for n in range(5000)) + "[a]\nb = [\n"
    text += "1,\n" * 3000 + "]\n"
    read = 0
    loads = tomli.loads

    def counted(part: str) -> dict[str, Any]:
        nonlocal read
        read += len(part)
        return loads(part)

    monkeypatch.setattr(tomli, "loads", counted)
    found = dict(toml.lines(text))
    assert read <= len(text)
    assert (found[("k4999",)], found[("a", "b")]) == (8000, 8002)


REFUSED = {
    "arrays": ("a = " + "[" * 400 + "]" * 400, "r.toml:1: no recipe: its values are nested more than 32 deep"),
    "many arrays": ("a = " + "[" * 50_000, "r.toml:1: no recipe: its values are nested more than 32 deep"),
    "tables": ("b = 1\na = " + "{x=" * 40 + "1" + "}" * 40, "r.toml:2: no recipe: its values are nested"),
    "a key": ("b = 1\n" + "a." * 500 + "a = 1", "r.toml:2: no recipe: a key has more than 32 parts"),
    "a long key": ("a." * 200_000 + "a = 1", "r.toml:1: no recipe: a key has more than 32 parts"),
    "quoted": ('"a" . ' * 500 + "a = 1", "r.toml:1: no recipe: a key has more than 32 parts"),
    "a header": ("\n[" + "a." * 500 + "a]", "r.toml:2: no recipe: a key has more than 32 parts"),
    "an inline key": ("x = {" + "a." * 500 + "a = 1}", "r.toml:1: no recipe: a key has more than 32 parts"),
    "digits": ("a = 1\nb = " + "9" * 5000, "r.toml:2: no recipe: a number has hundreds of digits"),
    "a million digits": ("b = -" + "9" * 900_000, "r.toml:1: no recipe: a number has hundreds of digits"),
    "65 bits": ("a = 1\n[x]\nb = 18446744073709551616", "r.toml:3: no recipe: a whole number has more than 64 bits"),
    "hexadecimal": ("b = 0x" + "f" * 5000, "r.toml:1: no recipe: a whole number has more than 64 bits"),
    "characters": ("# " + "x" * toml.LARGEST, "r.toml:1: no recipe: it has 1,048,578 characters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_recipe_is_refused_in_a_line(name: str) -> None:
    text, expected = REFUSED[name]
    with pytest.raises(RecipeError) as caught:
        TomlSource(PATH, text)
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].startswith(expected)


@pytest.mark.parametrize(
    "override", ["a=" + "[" * 400 + "]" * 400, "a=" + "9" * 5000, "a." * 500 + "a=1", "a=[" + "9" * 30 + "]"]
)
def test_so_are_overrides(override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        TomlSource(PATH, "a = {}", [override])
    assert len(caught.value.lines) == 1
    assert len(caught.value.lines[0]) < 1000


def test_a_part_of_an_override_that_is_no_position() -> None:
    assert TomlSource(PATH, "a = {}", ["a." + "9" * 5000 + "=1"]).values == {"a": {"9" * 5000: 1}}


@pytest.mark.parametrize(
    "text",
    [
        'a = "' + "b." * 200 + '"',
        "a = '''\n" + "b." * 200 + "c = 1\n'''",
        "# " + "9" * 1000 + "\na = 1",
        'a = "' + "9" * 1000 + '"',
        "a = 0." + "3" * 1000,
        "a = 9223372036854775807",
        "a = -9223372036854775808",
    ],
)
def test_what_only_looks_alike_is_read(text: str) -> None:
    assert TomlSource(PATH, text).values == tomli.loads(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.micro_batch", 10**9), ("adapter.r", 10**6), ("train.length", 10**9), ("eval.micro_batch", 10**9)],
)
def test_numbers_that_no_machine_could_work_with(recipe_path: Path, key: str, value: int) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe_path, open_registry(), [f"{key}={value}"])
    assert any(key.rpartition(".")[2] in line and "<=" in line for line in caught.value.lines)


def test_thousands_of_unknown_keys_are_told_shortly(recipe_path: Path) -> None:
    with recipe_path.open("a", encoding="utf-8") as file:
        file.write("\n[checkpoint]\n" + "".join(f"unknown{n} = {n}\n" for n in range(5000)))
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe_path, open_registry())
    assert len(caught.value.lines) == 51
    assert caught.value.lines[-1] == f"{recipe_path}: 4,950 more problems"


def test_a_line_of_an_error_is_never_longer_than_a_page() -> None:
    """Where a file had 100,000 columns, the line that named them had 700,000 characters."""
    what = f"a.csv:2: the columns are {', '.join(map(str, range(100_000)))}. Name a format"
    for (line,) in (DataError(what).lines, RecipeError([what]).lines):
        assert len(line) < 3100
        assert line.startswith("a.csv:2: the columns are 0, 1, 2, ")
        assert line.endswith(", 99999. Name a format")
        assert "characters left out" in line
    assert DataError("short").lines == ("short",)
