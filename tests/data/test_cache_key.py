"""What the key of prepared data depends on: all that changes a row, and nothing else."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fitune import DataContext, DataStage, NoOptions
from fitune.data import cache_key
from fitune.data.cache_key import contents_of, key_of
from fitune.errors import DataError, PluginError
from fitune.plugin import code
from fitune.plugin.code import code_of
from fitune.plugin.recipe import Use


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Options that name files."""

    turns: int = 2
    file: Path | None = None
    more: tuple[Path, ...] = field(default=())


def stage(name: str = "chat", **fields: Any) -> DataStage[Any]:
    made: dict[str, Any] = {"takes": "rows", "gives": "documents", "options": Template, "make": Template, **fields}
    return DataStage(name=name, summary=name, **made)


def source(fingerprint: Callable[[Any], str | None] | None) -> Use[DataStage[Any]]:
    record = stage("file", takes="nothing", gives="rows", options=NoOptions, fingerprint=fingerprint)
    return Use(record=record, options=NoOptions())


def use(**options: Any) -> Use[DataStage[Any]]:
    return Use(record=stage(), options=Template(**options))


def tokenizer(**values: Any) -> Any:
    text = values.pop("backend", "{vocabulary}")
    made = {"chat_template": "{{ messages }}", "special_tokens_map": {"eos_token": "</s>"}, **values}
    return SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: text), **made)


CONTEXT = DataContext(tokenizer=tokenizer(), length=64, seed=42)


def key(
    contents: Sequence[str] = ("a", "b"),
    stages: Sequence[Use[DataStage[Any]]] = (),
    context: DataContext = CONTEXT,
    settings: Sequence[object] = (),
    weight: float | None = None,
) -> str:
    sources = [replace(source(None), weight=weight)]
    return key_of(contents, sources, stages or [use()], context, settings)


CHANGES: dict[str, Callable[[], str]] = {
    "content": lambda: key(contents=("a", "c")),
    "order of contents": lambda: key(contents=("b", "a")),
    "contents run together": lambda: key(contents=("ab",)),
    "weight": lambda: key(weight=2.0),
    "an option": lambda: key(stages=[use(turns=3)]),
    "a stage more": lambda: key(stages=[use(), use()]),
    "another name": lambda: key(stages=[Use(record=stage("chat2"), options=Template())]),
    "length": lambda: key(context=replace(CONTEXT, length=65)),
    "seed": lambda: key(context=replace(CONTEXT, seed=43)),
    "bad rows": lambda: key(context=replace(CONTEXT, skip_bad_rows=True)),
    "settings": lambda: key(settings=[0.1]),
    "vocabulary": lambda: key(context=replace(CONTEXT, tokenizer=tokenizer(backend="{other}"))),
    "template": lambda: key(context=replace(CONTEXT, tokenizer=tokenizer(chat_template=None))),
    "special tokens": lambda: key(context=replace(CONTEXT, tokenizer=tokenizer(special_tokens_map={}))),
}


def test_the_same_gives_the_same() -> None:
    assert key() == key()
    assert len(key()) == 32
    int(key(), 16)
    assert key(context=replace(CONTEXT, count=print)) == key()  # who counts makes no row


def test_each_change_gives_another_and_no_two_the_same() -> None:
    keys = [key(), *(change() for change in CHANGES.values())]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("wing", ["data", "plugin"])
def test_the_code_that_prepares_is_part_of_it(wing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the core: those wings and no other, whose changes would prepare all data anew."""
    looked_at: list[str] = []

    def changed(place: str) -> str:
        looked_at.append(place)
        return "other" if Path(place).name == wing else code_of(place)

    before = key()
    monkeypatch.setattr("fitune.data.cache_key.code_of", changed)
    assert key() != before
    core = Path(cache_key.__file__).parents[1]
    assert [place for place in looked_at if Path(place).parent == core] == [str(core / "plugin"), str(core / "data")]


def test_a_version_of_a_library_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    assert key() != before


def test_the_content_of_files_that_options_name_and_not_their_time(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    for options in ({"file": file}, {"more": (tmp_path / "none", file)}):
        file.write_text("one")
        first = key(stages=[use(**options)])
        file.write_text("two")
        assert key(stages=[use(**options)]) != first
        file.write_text("one")
        assert key(stages=[use(**options)]) == first


def test_the_code_of_a_single_file_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "single_file_stage.py"
    monkeypatch.syspath_prepend(tmp_path)

    def made(text: str) -> str:
        file.write_text(text)
        module = __import__(file.stem)
        record = stage(make=partial(partial(module.make), 1))  # what it is made by may be wrapped
        return key(stages=[Use(record=record, options=Template())])

    first = made("def make(*_): return 1\n")
    assert made("def make(*_): return 2\n") != first
    assert made("def make(*_): return 1\n") == first
    del sys.modules[file.stem]


def test_all_code_of_a_package_counts(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/stage.py", "inner/chat.jinja", "notes.txt"):
        (package / name).write_text(name)
    digest = code._package.__wrapped__
    seen = {digest(str(package))}
    for name in ("inner/stage.py", "inner/chat.jinja", "__init__.py"):
        (package / name).write_text(f"{name} changed")
        seen.add(digest(str(package)))
    (package / "inner" / "stage.py").rename(package / "stage.py")
    seen.add(digest(str(package)))
    assert len(seen) == 5
    (package / "notes.txt").write_text("changed")
    assert digest(str(package)) in seen


def test_what_sources_say_of_their_content() -> None:
    assert contents_of([]) == []
    assert contents_of([source(lambda options: "a"), source(lambda options: "b")]) == ["a", "b"]


@pytest.mark.parametrize("silent", [None, lambda options: None], ids=["cannot tell", "does not know"])
def test_one_source_that_cannot_tell_is_enough(silent: Callable[[Any], str | None] | None) -> None:
    assert contents_of([source(lambda options: "a"), source(silent)]) is None


def test_a_source_that_cannot_be_read_and_one_that_is_broken() -> None:
    def unreadable(options: Any) -> str:
        raise DataError("no such file")

    def broken(options: Any) -> str:
        raise ZeroDivisionError

    with pytest.raises(DataError, match="no such file"):
        contents_of([source(unreadable)])
    with pytest.raises(PluginError, match='data stage "file" failed: ZeroDivisionError'):
        contents_of([source(broken)])


def test_a_source_that_was_moved_has_the_same_key(tmp_path: Path) -> None:
    """On 0.1 a moved project prepared its data anew. Which files are meant is in the key, and not where they lie."""

    def of(path: Path) -> str:
        record = stage("file", takes="nothing", gives="rows", fingerprint=lambda _: "content")
        return key_of(["content"], [Use(record=record, options=Template(file=path))], [use()], CONTEXT, ())

    assert of(Path("/a/data.jsonl")) == of(Path("/b/c/data.jsonl"))
    assert of(Path("/a/x/*/d.jsonl")) == of(Path("/b/*/d.jsonl"))
    assert (
        len({of(Path(path)) for path in ("/a/d.jsonl", "/a/d.json", "/a/*.jsonl", "/a/*/d.jsonl", "/a/**/d.jsonl")})
        == 5
    )


def test_a_file_of_a_stage_that_was_moved_has_the_same_key(tmp_path: Path) -> None:
    """Its content is in the key; that of a directory is not, so that its place is."""
    places = [tmp_path / "a" / "chat.jinja", tmp_path / "b" / "chat.jinja"]
    for place in places:
        place.parent.mkdir()
        place.write_text("same")
    first, second = (key(stages=[use(file=place)]) for place in places)
    assert first == second
    assert key(stages=[use(file=places[0], turns=3)]) != first
    assert key(stages=[use(file=places[0].parent)]) != key(stages=[use(file=places[1].parent)])
    assert key(stages=[use(more=(places[0],))]) == key(stages=[use(more=(places[1],))]) != first
