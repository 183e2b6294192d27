"""`ft new`: the recipe that it writes checks, and fits by forecast; what is not given is asked for, or told of."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fitune.cli import new
from fitune.cli.main import main
from fitune.memory.cards.cards import Card
from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_tiny_model
from support.commands import Capture, refused

Rows = Sequence[Mapping[str, Any]]

QUESTIONS: Rows = [{"question": f"{n}?", "answer": "yes " * n} for n in range(60)]


@pytest.fixture(autouse=True)
def _in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_model(Path("model"))
    write_rows(QUESTIONS)


def write_rows(rows: Rows) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def written(capsys: Capture, *arguments: str, to: str = "model.toml") -> tuple[Recipe, str]:
    """The recipe that was written, and what was said."""
    main(["new", "--model", "model", "--data", "rows.jsonl", *arguments])
    printed = capsys.readouterr()
    assert f"written: {to}" in printed.err
    return read_recipe(Path(to), open_registry()), printed.out


def test_it_fits_by_forecast(capsys: Capture) -> None:
    recipe, said = written(capsys, "--gpu", "2GiB")
    assert recipe.memory.fit == "2GiB"
    assert recipe.stages[0].table() | {"loss_keys": True} == {
        "use": "prompt-completion", "prompt": "question", "completion": "answer", "system": "system", "tools": "tools",
        "loss_keys": True,
    }  # fmt: skip
    assert "forecast on a budget of 2.00 GiB: " in said
    assert "reserved" in said
    assert said.endswith("Next: ft data model.toml   (what is trained on)\n      ft run model.toml\n")
    assert (recipe.train.epochs, recipe.evaluation.fraction) == (3.0, 0.05)


def test_what_cannot_fit_is_told_and_nothing_is_written(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["new", "--model", "model", "--data", "rows.jsonl", "--gpu", "4KiB"])
    told = capsys.readouterr().err
    assert "error: model does not fit on a budget of" in told
    assert not Path("model.toml").exists()


@pytest.mark.parametrize(
    ("row", "objective", "stages"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "sft", ["detect"]),
        ({"instruction": "a", "output": "b"}, "sft", ["detect"]),
        ({"instruction": "a", "response": "b"}, "sft", ["alpaca"]),
        ({"text": "once upon a time"}, "sft", ["plain-text", "tokenize", "truncate", "pack"]),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "dpo", ["preferences", "chat"]),
        ({"prompt": "a", "completion": "b", "label": True}, "kto", ["preferences", "chat"]),
    ],
)
def test_the_format_and_the_objective_are_told_by_columns(
    capsys: Capture, row: Mapping[str, Any], objective: str, stages: list[str]
) -> None:
    write_rows([row] * 3)
    recipe, _ = written(capsys, "--gpu", "cpu", "--to", "other.toml", to="other.toml")
    assert recipe.objective.record.name == objective
    assert [use.record.name for use in recipe.stages][: len(stages)] == stages
    assert recipe.evaluation.fraction is None  # of three rows nothing is held out
    assert not recipe.memory.fit


def test_longer_rows_get_more_room(capsys: Capture) -> None:
    short, _ = written(capsys, "--gpu", "cpu")
    Path("model.toml").unlink()
    write_rows([{"question": "?", "answer": "so " * 900}] * 60)
    config = json.loads(Path("model/config.json").read_text(encoding="utf-8"))
    Path("model/config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}), encoding="utf-8")
    longer, _ = written(capsys, "--gpu", "cpu")
    assert short.train.length < longer.train.length <= 2048


def test_full_fine_tuning(capsys: Capture) -> None:
    recipe, _ = written(capsys, "--gpu", "cpu", "--full", "--objective", "sft")
    assert recipe.adapter.record.name == "none"
    assert recipe.train.learning_rate == pytest.approx(2e-5)


def test_what_is_not_given_is_asked_for(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new, "can_ask", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("model\nrows.jsonl\ncpu\n"))
    main(["new"])
    printed = capsys.readouterr()
    assert "Model (a name on the hub" in printed.err
    assert Path("model.toml").exists()


def test_this_machines_card_need_not_be_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from fitune.cli import new_recipe
    from fitune.memory.cards.cards import find_card

    card: Card = find_card("a10g")
    for module in (new, new_recipe):
        monkeypatch.setattr(module, "local_card", lambda: card)
    monkeypatch.setattr(new_recipe, "_planned", lambda wish, seen, source, length, card, registry: (
        new_recipe._draft(wish, seen, source, new_recipe.Choice(nf4=False, length=length), card).text(), "enough"
    ))  # fmt: skip
    recipe, said = written(capsys)
    assert recipe.memory.fit is True
    assert "forecast on A10G: enough" in said


def test_without_a_terminal_it_says_what_is_missing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new, "local_card", lambda: None)
    told = refused("new", "--data", "rows.jsonl", capsys=capsys)
    assert "nobody can be asked here, which is no terminal: give --model, --gpu" in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "./gone", "--data", "rows.jsonl", "--gpu", "cpu"], "--model ./gone: no such file or directory"),
        (["--model", "model", "--data", "gone.jsonl", "--gpu", "cpu"], "--data gone.jsonl: no such file"),
        (["--model", "model", "--data", "s3://a/b", "--gpu", "cpu"], "neither a file nor a name on the hub"),
        (["--model", "model", "--data", "rows.jsonl", "--gpu", "a10h"], 'Did you mean "A10G"?'),
        (["--model", "model", "--data", "rows.jsonl", "--gpu", "cpu", "--to", "rows.jsonl"], "nothing is overwritten"),
    ],
)
def test_mistakes(capsys: Capture, arguments: list[str], says: str) -> None:
    assert says in refused("new", *arguments, capsys=capsys)


@pytest.mark.parametrize(("model", "hint"), [("modle", '. Did you mean "model"?\n'), ("gpt2", "here\n")])
def test_a_directory_that_is_not_there_is_taken_for_a_name(capsys: Capture, model: str, hint: str) -> None:
    main(["new", "--model", model, "--data", "rows.jsonl", "--gpu", "cpu"])
    told = f"{model}: taken for a model of the hub, since there is no such directory here"
    printed = capsys.readouterr().out
    assert told in printed
    assert hint in printed


def test_rows_that_nothing_reads_are_told_of(capsys: Capture) -> None:
    write_rows([{"a": 1}])
    told = refused("new", "--model", "model", "--data", "rows.jsonl", "--gpu", "cpu", capsys=capsys)
    assert "rows.jsonl:1: the format cannot be told by its columns: a" in told


def test_torch_is_not_imported_where_nothing_is_planned() -> None:
    arguments = ["new", "--model", "model", "--data", "rows.jsonl", "--gpu", "cpu"]
    code = f"import sys\nfrom fitune.cli.main import main\nmain({arguments})\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
