"""Options dataclasses: described to people, and read strictly from TOML."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tomli
from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen

from fitune.errors import Problem
from fitune.plugin.options import NoOptions, describe, flat, parse, to_table, toml_text
from fitune.plugin.recipe import Checkpoint, Data, Evaluation, General, Train
from fitune.plugin.registry import Registry


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A table within a table."""

    size: Annotated[float, Gt(0)] = 1.0
    """How large."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Options of every type."""

    whole: Annotated[int, Ge(1)]
    """An integer,
    told in two lines."""
    share: Annotated[float, Ge(0), Lt(1)] = 0.1
    """A share."""
    flag: bool = True
    """A flag."""
    word: Literal["base", "float32"] = "base"
    """A word."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options(Base):
    """More of them."""

    share: float = 0.5
    """A share, told anew."""
    text: str | None = None
    """A text."""
    file: Path = Path("a b.txt")
    """A file."""
    names: Annotated[tuple[str, ...], MinLen(1)] | Literal["all"] = ("q", "v")
    """Names."""
    sizes: tuple[int, ...] = dataclasses.field(default_factory=tuple)
    """Sizes."""
    within: Annotated[int, Interval(ge=0, le=9)] | None = None
    """A digit."""
    least: Annotated[float, Le(1e-8)] = 1e-8
    """A small number."""
    inner: Inner = Inner()
    """A table."""
    many: tuple[Inner, ...] = ()
    """Tables."""
    choices: tuple[Literal["a", "b"], ...] = ("a",)
    """Choices."""
    silent: str = 'say "é"'


DESCRIBED = {
    "whole": ("integer >= 1", None, "An integer, told in two lines."),
    "share": ("number", "0.5", "A share, told anew."),
    "flag": ("true or false", "true", "A flag."),
    "word": ('"base" or "float32"', '"base"', "A word."),
    "text": ("string", "none", "A text."),
    "file": ("path", '"a b.txt"', "A file."),
    "names": ('array of strings (at least 1) or "all"', '["q", "v"]', "Names."),
    "sizes": ("array of integers", "[]", "Sizes."),
    "within": ("integer >= 0 and <= 9", "none", "A digit."),
    "least": ("number <= 1e-08", "1e-08", "A small number."),
    "inner": ("table", "{size = 1.0}", "A table."),
    "many": ("array of tables", "[]", "Tables."),
    "choices": ('array of "a" or "b"', '["a"]', "Choices."),
    "silent": ("string", '"say \\"é\\""', ""),
}


def test_describe_tells_type_default_and_meaning_of_each() -> None:
    assert {o.name: (o.type, o.default, o.doc) for o in describe(Options)} == DESCRIBED


def test_describe_keeps_the_order_of_declaration() -> None:
    assert [option.name for option in describe(Options)] == [field.name for field in dataclasses.fields(Options)]


def test_a_parent_tells_its_own_words() -> None:
    assert {o.name: o.doc for o in describe(Base)}["share"] == "A share."


def test_no_options() -> None:
    assert describe(NoOptions) == []
    assert parse(NoOptions, {}) == (NoOptions(), [])


def test_parse_reads_every_type() -> None:
    table = {"whole": 3, "share": 1, "flag": False, "word": "float32", "text": "t", "file": "f", "names": "all",
             "sizes": [1, 2], "within": 9, "inner": {"size": 2}, "many": [{"size": 3}, {}]}  # fmt: skip
    value, problems = parse(Options, table)
    assert problems == []
    assert value == Options(
        whole=3, share=1.0, flag=False, word="float32", text="t", file=Path("f"), names="all", sizes=(1, 2), within=9,
        inner=Inner(size=2.0), many=(Inner(size=3.0), Inner()),
    )  # fmt: skip
    assert value is not None
    assert isinstance(value.share, float)


def test_parse_gives_defaults() -> None:
    assert parse(Options, {"whole": 1}) == (Options(whole=1), [])


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, ("whole", '"whole" is missing', "Add it; it takes: integer >= 1")),
        ({"whole": 0}, ("whole", '"whole" is 0', "It takes: integer >= 1")),
        ({"whole": "1"}, ("whole", '"whole" is "1"', "It takes: integer >= 1")),
        ({"whole": True}, ("whole", '"whole" is true', "It takes: integer >= 1")),
        ({"whole": 1.0}, ("whole", '"whole" is 1.0', "It takes: integer >= 1")),
        ({"share": float("nan")}, ("share", '"share" is nan', "It takes: finite number")),
        ({"least": 1}, ("least", '"least" is 1', "It takes: number <= 1e-08")),
        ({"flag": 1}, ("flag", '"flag" is 1', "It takes: true or false")),
        ({"word": "bass"}, ("word", '"word" is "bass"', 'Did you mean "base"? It takes: "base" or "float32"')),
        ({"text": ["a"]}, ("text", '"text" is ["a"]', "It takes: string")),
        ({"text": "x" * 99, "file": 1}, ("file", '"file" is 1', "It takes: path")),
        ({"flag": "x" * 99}, ("flag", f'"flag" is "{"x" * 75} ...', "It takes: true or false")),
        ({"names": ["q", 1]}, ("names", '"names" is ["q", 1]', 'It takes: array of strings (at least 1) or "all"')),
        ({"names": "al"}, ("names", '"names" is "al"',
                           'Did you mean "all"? It takes: array of strings (at least 1) or "all"')),
        ({"sizes": [1, "2"]}, ("sizes", '"sizes" is [1, "2"]', "It takes: array of integers")),
        ({"within": 10}, ("within", '"within" is 10', "It takes: integer >= 0 and <= 9")),
        ({"inner": 3}, ("inner", '"inner" is 3', "It takes: table")),
        ({"inner": {"size": 0}}, ("inner.size", '"size" is 0', "It takes: number > 0")),
        ({"inner": {"size": float("inf")}}, ("inner.size", '"size" is inf', "It takes: finite number > 0")),
        ({"inner": {"sizes": 1}}, ("inner.sizes", 'unknown key "sizes"', 'Did you mean "size"?')),
        ({"many": [{}, {"size": "1"}]}, ("many.1.size", '"size" is "1"', "It takes: number > 0")),
        ({"many": [{}, {"sise": 1}]}, ("many.1.sise", 'unknown key "sise"', 'Did you mean "size"?')),
        ({"choices": ["c"]}, ("choices", '"choices" is ["c"]', 'It takes: array of "a" or "b"')),
        ({"wholes": 1}, ("wholes", 'unknown key "wholes"', 'Did you mean "whole"?')),
        ({"inners": {}}, ("inners", 'unknown table "inners"', 'Did you mean "inner"?')),
    ],
)  # fmt: skip
def test_parse_tells_each_problem(table: dict[str, object], expected: tuple[str, str, str]) -> None:
    whole = {} if "whole" in table or not table else {"whole": 1}
    value, problems = parse(Options, {**whole, **table})
    key, what, fix = expected
    assert value is None
    assert problems == [Problem(key=key, what=what, fix=fix)]


def test_parse_tells_all_problems_at_once() -> None:
    _, problems = parse(Options, {"share": "a", "flag": 1, "sile": 2})
    assert sorted(problem.key for problem in problems) == ["flag", "share", "sile", "whole"]


def test_a_key_that_is_read_elsewhere_may_have_been_meant() -> None:
    _, problems = parse(NoOptions, {"sources": 1}, known=["source", "stage"])
    assert problems == [Problem(key="sources", what='unknown key "sources"', fix='Did you mean "source"?')]


def test_to_table_gives_back_what_parse_reads() -> None:
    value = Options(whole=3, names=("a",), file=Path("/f"), inner=Inner(size=2.0), many=(Inner(size=3.0),))
    table = to_table(value)
    assert "text" not in table, "TOML has no null"
    assert parse(Options, table) == (value, [])


@pytest.mark.parametrize(
    "value", [True, 3, 1e-8, 2e-4, 'a "b" \\ \n é', [1, 2], [], {"a": [{"b": "c"}]}, tomli.loads("d = 2026-01-31")["d"]]
)
def test_toml_text_is_toml(value: object) -> None:
    text = toml_text(value)
    assert "\n" not in text
    assert tomli.loads(f"value = {text}") == {"value": value}


def built_in() -> Sequence[tuple[str, type[Any]]]:
    """Every options dataclass of the built-in plugins, and the core's own tables."""
    registry = Registry.open(third_party=False)
    own = [(t.__name__, t) for t in (General, Data, Train, Evaluation, Checkpoint)]
    return [*own, *((f"{p.kind} {p.record.name}", p.record.options) for p in registry.provided)]


@pytest.mark.parametrize(("name", "options"), built_in(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_option_is_told_to_people_and_has_a_default_that_toml_reads(name: str, options: type[Any]) -> None:
    told = describe(options)
    assert [o.name for o in told if not o.doc.endswith((".", '".', ")"))] == []
    assert len({o.doc for o in told}) == len(told)
    for option in told:
        if option.default not in (None, "none"):
            default = tomli.loads(f"value = {option.default}")["value"]
            required = {o.name: _any_of(o.type) for o in told if o.default is None}
            assert parse(options, {**required, option.name: default})[1] == []


def _any_of(type_name: str) -> object:
    """A value of a type in words."""
    first = type_name.partition(" or ")[0]
    return 1 if first.startswith("integer") else json.loads(first) if first.startswith('"') else "x"


def test_the_built_in_providers_are_all_looked_at() -> None:
    assert len(built_in()) >= 5 + 16


def test_nested_tables_are_flattened_to_dotted_keys() -> None:
    table = {"seed": 1, "data": {"stage": [{"use": "chat"}, {"use": "pad", "to": 8}], "source": []}, "names": ["a"]}
    assert list(flat(table)) == [
        ("seed", 1),
        ("data.stage.0.use", "chat"),
        ("data.stage.1.use", "pad"),
        ("data.stage.1.to", 8),
        ("data.source", []),
        ("names", ["a"]),
    ]
