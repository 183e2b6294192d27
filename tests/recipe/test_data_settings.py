"""`weight` of a source and `fraction` of `[eval]`: what they take, deterministically, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fitune.errors import RecipeError
from support.prepared import RECIPE, held_out, numbered, origins, prepared, read, turns, write

WEIGHTED = RECIPE.replace('path = "data.jsonl"', 'path = "data.jsonl"\nweight = 2.0')
PACKED = 'data.stage=[{use="chat"}, {use="tokenize"}, {use="truncate"}, {use="pack"}]'

# ----------------------------------------------------------------------------------------------------------- weight


def test_a_weight_of_two_takes_each_row_twice(tmp_path: Path) -> None:
    data = prepared(write(tmp_path, numbered(5), WEIGHTED))
    assert origins(data) == [1, 2, 3, 4, 5] * 2
    assert data.flow[0] == ("jsonl", 10)


def test_a_weight_of_a_half_takes_about_half_by_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(400))
    half = origins(prepared(path, "data.source.0.weight=0.5", "data.cache=false"))
    assert 160 < len(half) < 240
    assert half == sorted(set(half))
    assert half == origins(prepared(path, "data.source.0.weight=0.5", "data.cache=false"))
    other = origins(prepared(path, "data.source.0.weight=0.5", "seed=7"))
    assert other != half
    assert 160 < len(other) < 240


def test_a_weight_between_takes_all_and_some_again(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(200))
    taken = Counter(origins(prepared(path, "data.source.0.weight=1.5")))
    assert set(taken) == set(range(1, 201))
    assert set(taken.values()) == {1, 2}
    assert 70 < sum(times == 2 for times in taken.values()) < 130


def test_sources_have_weights_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(3), WEIGHTED + '\n[[data.source]]\nuse = "jsonl"\npath = "more.jsonl"\n')
    (tmp_path / "more.jsonl").write_text(turns("a", "b"), encoding="utf-8")
    files = Counter(Path(example.origin.file).name for example in prepared(path).rows)
    assert files == {"data.jsonl": 6, "more.jsonl": 1}


def test_a_weight_is_written_back(tmp_path: Path) -> None:
    source = read(write(tmp_path, numbered(1), WEIGHTED)).sources[0]
    assert source.weight == 2.0
    assert source.table() == {"use": "jsonl", "weight": 2.0, "path": str(tmp_path / "data.jsonl")}
    assert "weight" not in read(write(tmp_path, numbered(1))).sources[0].table()


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        ("0", '"weight" is 0. It takes: number > 0'),
        ("-1.5", '"weight" is -1.5. It takes: number > 0'),
        ("inf", '"weight" is inf. It takes: finite number > 0'),
        ('"twice"', '"weight" is "twice". It takes: number > 0'),
    ],
)
def test_a_wrong_weight_is_told_with_its_line(weight: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, numbered(1), WEIGHTED.replace("weight = 2.0", f"weight = {weight}"))
    with pytest.raises(RecipeError) as error:
        read(path)
    line = WEIGHTED.splitlines().index("weight = 2.0") + 1
    assert error.value.lines == (f"{path}:{line}: [data.source] weight: {said}",)


def test_a_weight_and_another_problem_are_both_told(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(1), WEIGHTED.replace("weight = 2.0", "weight = 0\nlimt = 3"))
    with pytest.raises(RecipeError) as error:
        read(path)
    assert [line.partition(": ")[2] for line in error.value.lines] == [
        '[data.source] weight: "weight" is 0. It takes: number > 0',
        '[data.source] limt: unknown key "limt". Did you mean "limit"?',
    ]


# --------------------------------------------------------------------------------------------------------- fraction


def texts(data: object, path: Path) -> set[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {lines[row - 1] for row in origins(data)}  # type: ignore[arg-type]


def test_a_fraction_parts_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(400))
    trained, kept = origins(prepared(path, "eval.fraction=0.25")), origins(held_out(path, "eval.fraction=0.25"))
    assert sorted(trained + kept) == list(range(1, 401))
    assert len(kept) == 100
    assert kept == origins(held_out(path, "eval.fraction=0.25", "data.cache=false"))
    assert kept != origins(held_out(path, "eval.fraction=0.25", "seed=7"))


def test_a_larger_fraction_keeps_what_a_smaller_one_held_out(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(200))
    assert set(origins(held_out(path, "eval.fraction=0.1"))) < set(origins(held_out(path, "eval.fraction=0.3")))


def test_equal_rows_fall_on_one_side(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(50) * 3)
    data = tmp_path / "data.jsonl"
    trained, kept = prepared(path, "eval.fraction=0.3"), held_out(path, "eval.fraction=0.3")
    assert not texts(trained, data) & texts(kept, data)
    assert set(Counter((row - 1) % 50 for row in origins(kept)).values()) == {3}


def test_rows_that_are_taken_twice_fall_on_one_side(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(60), WEIGHTED)
    trained, kept = origins(prepared(path, "eval.fraction=0.3")), origins(held_out(path, "eval.fraction=0.3"))
    assert not set(trained) & set(kept)
    assert set(Counter(trained + kept).values()) == {2}


def test_the_order_of_rows_does_not_count(tmp_path: Path) -> None:
    path, data = write(tmp_path, numbered(100)), tmp_path / "data.jsonl"
    before = texts(held_out(path, "eval.fraction=0.3"), data)
    data.write_text("".join(reversed(numbered(100).splitlines(keepends=True))), encoding="utf-8")
    assert texts(held_out(path, "eval.fraction=0.3"), data) == before


def test_rows_that_cannot_be_used_are_counted_once(tmp_path: Path) -> None:
    """Sources are read once more before, to know all of their rows."""
    path = write(tmp_path, numbered(20) + "no JSON\n")
    data = prepared(path, "eval.fraction=0.25", 'data.bad_rows="skip"')
    assert dict(data.notes)["bad rows skipped"] == 1
    assert [(one.held_out, one.rows) for one in data.shares] == [(5, 20)]


def test_each_row_by_itself_as_before_0_2(tmp_path: Path) -> None:
    path, rule = write(tmp_path, numbered(400)), 'eval.split="by_row"'
    kept = origins(held_out(path, "eval.fraction=0.25", rule))
    assert len(kept) != 100
    assert 70 < len(kept) < 130
    write(tmp_path, numbered(500))  # rows that are added move none
    assert origins(held_out(path, "eval.fraction=0.25", rule))[: len(kept)] == kept


def test_held_out_data_are_not_packed(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(100))
    kept = held_out(path, "eval.fraction=0.3", PACKED, "train.length=256")
    assert kept is not None
    assert not any(example.lengths for example in kept.rows)
    assert "pack" not in dict(kept.flow)
    assert any(example.lengths for example in prepared(path, "eval.fraction=0.3", PACKED, "train.length=256").rows)


def test_there_are_no_held_out_data_where_none_are_named(tmp_path: Path) -> None:
    assert held_out(write(tmp_path, numbered(3))) is None


def test_a_fraction_beside_a_source_is_an_error(tmp_path: Path) -> None:
    text = RECIPE + '\n[eval]\nfraction = 0.1\n\n[[eval.source]]\nuse = "jsonl"\npath = "data.jsonl"\n'
    with pytest.raises(RecipeError) as error:
        read(write(tmp_path, numbered(3), text))
    assert [line.partition(": ")[2] for line in error.value.lines] == [
        '[eval]: "fraction" has no effect beside an [[eval.source]]. Keep one of them'
    ]


@pytest.mark.parametrize("fraction", ["0", "1", "-0.1", '"half"'])
def test_a_fraction_out_of_range_is_an_error(fraction: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match='"fraction" is'):
        read(write(tmp_path, numbered(3)), f"eval.fraction={fraction}")


@pytest.mark.parametrize(
    "override", ["data.max_empty=1.5", "data.max_empty=-1", 'data.bad_rows="drop"', "data.cache=1"]
)
def test_settings_of_data_are_strict(override: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        read(write(tmp_path, numbered(3)), override)
