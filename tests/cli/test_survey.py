"""`ft data`: its whole output, as text and as JSON, and that it needs no model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitune.cli.main import main
from fitune.cli.show_data import picture
from fitune.data.survey import BINS, histogram, pieces
from fitune.errors import CONTROLS
from fitune.testing import write_tiny_data
from support.prepared import RECIPE, numbered, prepared, read, turns, write

PACKED = (
    "--set",
    'data.stage=[{use="chat"}, {use="tokenize"}, {use="truncate"}, {use="pack"}]',
    "--set",
    "train.length=128",
)
GOLDEN = """\
prepared now, and kept for the next start
  jsonl                             12
  detect                            12
  chat                              12
  tokenize                          12
  truncate                          12
    rows read as messages: 12
documents by tokens, before any is cut
            30-34 ##################                       3
            35-39 ######################################## 7
            40-44 ############                             2
12 rows, 438 tokens, the longest 41 of 64
trained on: 66 tokens, 15.1 %

row 1 ({here}/data.jsonl:1): 33 tokens, 2 trained on
<|start|>user
Count to 1.<|end|>
<|start|>assistant
⟦1<|end|>⟧


row 2 ({here}/data.jsonl:2): 35 tokens, 4 trained on
<|start|>user
Count to 2.<|end|>
<|start|>assistant
⟦1 2<|end|>⟧

"""
"""Counted by hand from the data of `fitune.testing`: a row is 32 tokens and 2 n - 1 of an answer that counts to n."""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose model has no weights."""
    path = write(tmp_path, "")
    write_tiny_data(tmp_path / "data.jsonl")
    return path


def ft(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `ft data` prints; the line that says that data are prepared goes to standard error."""
    main(["data", "r.toml", "--no-third-party", *arguments])
    return capsys.readouterr().out


def ft_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    found = json.loads(ft(capsys, "--json", *arguments))
    assert isinstance(found, dict)
    return found


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["data", "r.toml", "--no-third-party", *arguments])
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------------------------------------------------- text


def test_the_whole_text(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ft(capsys) == GOLDEN.replace("{here}", str(recipe.parent))


def test_the_second_time_it_says_so(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "r.toml", "--no-third-party"])
    assert capsys.readouterr().err == "preparing the training data\n"
    main(["data", "r.toml", "--no-third-party"])
    printed = capsys.readouterr()
    assert printed.out.startswith("prepared before, and found in the cache\n")
    assert printed.out.partition("\n")[2] == GOLDEN.partition("\n")[2].replace("{here}", str(recipe.parent))
    assert printed.err == ""


def test_data_that_are_not_kept(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ft(capsys, "--set", "data.cache=false")
    assert text.startswith("prepared now, and not kept for the next start\n")


def test_one_row(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ft(capsys, "--row", "12")
    assert f"\nrow 12 ({recipe.parent}/data.jsonl:12): 35 tokens, 4 trained on\n" in text
    assert text.count("\nrow ") == 1


def test_no_rows(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ft(capsys, "--rows", "0")
    assert text.endswith("trained on: 66 tokens, 15.1 %\n")


def test_more_rows_than_there_are(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ft(capsys, "--rows", "99").count("\nrow ") == 12


def test_packed_rows_tell_their_efficiency_and_show_their_borders(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ft(capsys, *PACKED, "--row", "1")
    assert "\n4 rows of 12 documents, 438 tokens, the longest " in text
    assert f"\npacking efficiency {438 / 4 / 128:.4f}\n" in text
    assert "\ndocuments by tokens, before any is cut or packed\n" in text
    shown = text.partition("\nrow 1 ")[2]
    assert shown.count("──────── next document ────────") == shown.count("<|start|>user") - 1 >= 1
    assert shown.count("⟦") == shown.count("⟧") == shown.count("<|start|>user")


def test_held_out_rows(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "held.jsonl").write_text(turns("Held?", "out"), encoding="utf-8")
    text = ft(capsys, "--held-out", "--set", f'eval.source=[{{use="jsonl", path="{recipe.parent}/held.jsonl"}}]')
    assert "\n1 rows, " in text
    assert "⟦out<|end|>⟧" in text


def test_the_share_that_is_held_out_is_told_of_each_source(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "same.jsonl").write_text(turns("Same?", "yes") * 5, encoding="utf-8")
    sources = [f'{{use="jsonl", path="{recipe.parent}/{name}.jsonl"}}' for name in ("data", "same")]
    asked = ("--set", f"data.source=[{', '.join(sources)}]", "--set", "eval.fraction=0.375")
    # 4.5 of 12 and 6.375 of 17, rounded; of five equal rows all or none.
    lines = ("5 of 12 rows of jsonl", "0 of 5 rows of jsonl', not 1: equal rows stay on one side")
    said = "".join(f"    held out: {line}\n" for line in lines)
    assert said in ft(capsys, "--held-out", *asked)
    assert said in ft(capsys, *asked)
    assert ft_json(capsys, "--held-out", *asked)["shares"] == [
        {"held_out": 5, "rows": 12, "asked": 5, "source": "jsonl"},
        {"held_out": 0, "rows": 5, "asked": 1, "source": "jsonl'"},
    ]
    assert "held out: " not in ft(capsys, "--held-out", *asked, "--set", "eval.split=by_row")


def test_held_out_rows_that_there_are_not(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error(capsys, "--held-out") == (
        'error: r.toml: no held-out data. Add an [[eval.source]], or "fraction" to [eval]'
    )


def test_a_row_that_there_is_not(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error(capsys, "--row", "13") == "error: there is no row 13: there are 12"


def test_a_tokenizer_that_cannot_be_loaded(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "model" / "tokenizer.json").write_text("{", encoding="utf-8")
    assert error(capsys).startswith("error: ")


# ------------------------------------------------------------------------------------------------------------- JSON


def test_json_says_the_same(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ft_json(capsys, "--rows", "1")
    examples = found.pop("examples")
    assert found == {
        "flow": [["jsonl", 12], ["detect", 12], ["chat", 12], ["tokenize", 12], ["truncate", 12]],
        "notes": [["rows read as messages", 12]],
        "shares": [],
        "rows": 12,
        "documents": 12,
        "tokens": 438,
        "targets": 66,
        "length": 64,
        "longest": 41,
        "histogram": [[30, 34, 3], [35, 39, 7], [40, 44, 2]],
        "packed": False,
        "cached": False,
        "lasting": True,
        "roles": [],
        "efficiency": 438 / (12 * 64),
        "target_share": 66 / 438,
        "notices": [],
    }
    assert examples == [
        {
            "row": 1,
            "origin": f"{recipe.parent}/data.jsonl:1",
            "tokens": 33,
            "targets": 2,
            "documents": [],
            "pieces": [
                {"kind": "special", "text": "<|start|>"},
                {"kind": "context", "text": "user\nCount to 1."},
                {"kind": "special", "text": "<|end|>"},
                {"kind": "context", "text": "\n"},
                {"kind": "special", "text": "<|start|>"},
                {"kind": "context", "text": "assistant\n"},
                {"kind": "trained", "text": "1"},
                {"kind": "trained special", "text": "<|end|>"},
                {"kind": "context", "text": "\n"},
            ],
        }
    ]


def test_json_of_packed_rows(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ft_json(capsys, *PACKED, "--rows", "9")
    assert (found["rows"], found["documents"], found["packed"]) == (4, 12, True)
    assert sum(len(row["documents"]) for row in found["examples"]) == 12
    for row in found["examples"]:
        kinds = [piece["kind"] for piece in row["pieces"]]
        assert kinds.count("border") == len(row["documents"]) - 1
        assert sum(row["documents"]) == row["tokens"]


# ---------------------------------------------------------------------------------------------------------- pictures


HOSTILE = "\x1b]0;mine\x07\x1b[31mred\x1b[0m \x9b2J \u202eabc\u2066 \ufeff \r\n\ttab"
"""Would retitle, recolour and clear a terminal, and turn the direction of writing round."""


def test_a_terminal_obeys_nothing_in_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, turns(HOSTILE, HOSTILE), RECIPE.replace("length = 64", "length = 512"))
    text = ft(capsys)
    assert "⟦\\x1b]0;mine\\x07\\x1b[31mred\\x1b[0m \\x9b2J \\u202eabc\\u2066 \\ufeff \\x0d\n        tab<|end|>⟧" in text
    assert not CONTROLS.search(text)
    printed = ft(capsys, "--json")
    assert not CONTROLS.search(printed)
    pieces_of_row = json.loads(printed)["examples"][0]["pieces"]
    assert HOSTILE in [piece["text"] for piece in pieces_of_row if piece["kind"] == "trained"]


@pytest.mark.parametrize(
    "values",
    [
        {"messages": [{"role": "\x1b[31m", "content": "a"}]},
        {"messages": [{"\x9b2J": "a"}]},
        {"\x1b[2J": "a"},
        {"conversations": [{"from": "\u202ehuman", "value": "a"}]},
    ],
)
def test_errors_show_what_a_terminal_would_obey(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, json.dumps(values) + "\n")
    said = error(capsys)
    assert not CONTROLS.search(said)
    assert any(escape in said for escape in ("\\x1b[", "\\x9b2J", "\\u202e"))


def test_marks_stand_around_exactly_the_trained_text(tmp_path: Path) -> None:
    path = write(tmp_path, turns("Wie heißt du? [bold]", "Ünï [/bold] 🙂"))
    recipe = read(path)
    tokenizer = recipe.model.record.load_tokenizer(recipe.model.options)
    example = prepared(path).rows[0]
    assert picture(pieces(example, tokenizer)).plain == (
        "<|start|>user\nWie heißt du? [bold]<|end|>\n<|start|>assistant\n⟦Ünï [/bold] 🙂<|end|>⟧\n"
    )
    assert "".join(text for _, text in pieces(example, tokenizer)) == tokenizer.decode(example.input_ids.tolist())


def test_what_is_cut_within_its_answer_is_marked_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path, turns("1?", "2" * 60))
    recipe = read(path)
    tokenizer = recipe.model.record.load_tokenizer(recipe.model.options)
    text = picture(pieces(prepared(path).rows[0], tokenizer)).plain
    assert text.startswith("<|start|>user\n1?<|end|>\n<|start|>assistant\n⟦2222")
    assert text.endswith("222⟧")


# --------------------------------------------------------------------------------------------------------- histogram


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.dictionaries(st.integers(1, 10**7), st.integers(1, 1000), min_size=1, max_size=30))
def test_a_histogram_holds_all_lengths_in_few_bins_of_one_round_width(lengths: dict[int, int]) -> None:
    bins = histogram(Counter(lengths))
    width = bins[0][1] - bins[0][0] + 1
    assert 1 <= len(bins) <= BINS
    assert str(width).rstrip("0") in ("1", "2", "5")
    assert all(last - first + 1 == width and first % width == 0 for first, last, _ in bins)
    assert [first for first, _, _ in bins] == [bins[0][0] + n * width for n in range(len(bins))]
    for first, last, number in bins:
        assert number == sum(n for length, n in lengths.items() if first <= length <= last)
    assert sum(number for _, _, number in bins) == sum(lengths.values())
    assert bins[0][2] > 0
    assert bins[-1][2] > 0


def test_numbers_are_of_all_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, numbered(1500))
    found = ft_json(capsys, "--row", "1500")
    assert found["rows"] == 1500
    assert found["examples"][0]["origin"] == f"{tmp_path}/data.jsonl:1500"
    assert found["examples"][0]["pieces"][-3]["text"] == "1499"
