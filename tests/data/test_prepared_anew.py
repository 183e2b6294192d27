"""What makes data anew, and what finds those that were prepared before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.counted import CHAIN, Counted
from support.prepared import numbered, prepared, write


def test_the_second_start_makes_nothing(tmp_path: Path) -> None:
    path, counted = write(tmp_path, numbered(5)), Counted()
    sets = 'data.stage=[{use="counted"}, {use="chat"}]'
    first = prepared(path, sets, plugins=[counted])
    second = prepared(path, sets, plugins=[counted])
    assert counted.rows == 5
    assert (first.cached, second.cached) == (False, True)
    assert first.lasting
    assert second.lasting
    assert (first.flow, first.notes, first.lengths) == (second.flow, second.notes, second.lengths)
    for one, other in zip(first.rows, second.rows, strict=True):
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize("sets", [['data.source=[{use="unknown"}]'], ["data.cache=false"]])
def test_what_is_not_kept(sets: list[str], tmp_path: Path) -> None:
    path, counted = write(tmp_path, numbered(5)), Counted()
    for _ in range(2):
        data = prepared(path, 'data.stage=[{use="counted"}, {use="chat"}]', *sets, plugins=[counted])
        assert not data.cached
        assert not data.lasting
    assert counted.rows == 2 * len(data.rows)
    assert not (tmp_path / "cache").exists()


PLUGIN = """\
from fitune import DataStage, NoOptions, hookimpl

@hookimpl
def ft_data_stages():
    yield DataStage(name="own", summary="Mine", options=NoOptions, takes="rows", gives="rows",
                    make=lambda options, context: iter)
"""
OWN = ['plugins=["own.py"]', 'data.stage=[{use="own"}, {use="chat", template_file="t.jinja"}]', "eval.fraction=0.3"]


def put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    put(path, text.replace(old, new, 1))


def other_order(directory: Path) -> None:
    lines = (directory / "data.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    put(directory / "data.jsonl", "".join(reversed(lines)))


def other_tokenizer(directory: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory / "model")
    tokenizer.add_tokens(["Count"])
    tokenizer.save_pretrained(str(directory / "model"))


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda d: put(d / "data.jsonl", numbered(21)),
    "order of rows": other_order,
    "tokenizer": other_tokenizer,
    "the tokenizer's chat template": lambda d: replace(d / "model" / "chat_template.jinja", "<|end|>", "<|end|> "),
    "template file": lambda d: replace(d / "t.jinja", "<|end|>", "<|end|> "),
    "code of a plugin": lambda d: put(d / "own.py", PLUGIN + "# other\n"),
}
SETS = {
    "length": "train.length=63",
    "seed": "seed=43",
    "bad rows": 'data.bad_rows="skip"',
    "max_empty": "data.max_empty=0.06",
    "fraction": "eval.fraction=0.4",
    "weight": "data.source.0.weight=1.5",
    "option of a source": "data.source.0.limit=19",
    "option of a stage": 'data.stage.1.loss="all"',
    "another stage": 'data.stage=[{use="own"}, {use="chat", template_file="t.jinja"}, {use="tokenize"}, '
    '{use="truncate"}, {use="pack"}]',
    "option of a stage that is put in": 'data.stage=[{use="own"}, {use="chat", template_file="t.jinja"}, '
    '{use="tokenize"}, {use="truncate", policy="left"}]',
}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A recipe with all that a key is made of."""
    path = write(tmp_path, numbered(20))
    put(tmp_path / "own.py", PLUGIN)
    put(tmp_path / "t.jinja", (tmp_path / "model" / "chat_template.jinja").read_text(encoding="utf-8"))
    return path


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_change_in_a_file_makes_data_anew(change: str, whole: Path) -> None:
    assert not prepared(whole, *OWN).cached
    assert prepared(whole, *OWN).cached
    CHANGES[change](whole.parent)
    assert not prepared(whole, *OWN).cached


@pytest.mark.parametrize("change", SETS, ids=str)
def test_a_change_in_a_setting_makes_data_anew(change: str, whole: Path) -> None:
    assert not prepared(whole, *OWN).cached
    assert not prepared(whole, *OWN, SETS[change]).cached
    assert prepared(whole, *OWN).cached


@pytest.mark.parametrize(
    "other", ["train.learning_rate=1", "train.steps=9", "train.micro_batch=4", "adapter.r=2", 'name="b"']
)
def test_what_does_not_touch_data_makes_none_anew(other: str, whole: Path) -> None:
    prepared(whole, *OWN)
    assert prepared(whole, *OWN, other).cached


def test_dates_do_not_count(whole: Path) -> None:
    prepared(whole, *OWN)
    for file in ("data.jsonl", "own.py", "t.jinja", "model/tokenizer.json"):
        os.utime(whole.parent / file, (1, 1))
    assert prepared(whole, *OWN).cached


def test_how_batches_are_padded_makes_none_anew(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(3))
    prepared(path, f'data.stage=[{CHAIN}, {{use="pad"}}]')
    assert prepared(path, f'data.stage=[{CHAIN}, {{use="pad", to="length"}}]').cached
