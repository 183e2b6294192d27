"""What any objective has trained is evaluated again, answers, is merged, and is gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitune.testing import open_registry
from fitune.trained.evaluate import evaluate, find_to_evaluate
from support.after_runs import ft
from support.objectives import OBJECTIVES, WRITING, asked, write_preference_recipe
from support.tiny import metrics, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each, by its name."""
    place = tmp_path_factory.mktemp("after")
    recipe = write_preference_recipe(place / "recipe")
    for name in OBJECTIVES:
        train(recipe, place / name, asked(name))
    return place


@pytest.mark.parametrize("name", OBJECTIVES)
def test_evaluated_again_it_is_as_it_was(name: str, runs: Path) -> None:
    lines = metrics(runs / name, "evaluation")
    for base, line in ((True, lines[0]), (False, lines[-1])):
        again = evaluate(find_to_evaluate(runs / name, open_registry()), base=base)
        assert again.loss == pytest.approx(line["loss"], rel=1e-5)
        assert again.metrics == pytest.approx({key: line[key] for key in again.metrics}, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_other_pairs_are_evaluated_from_a_file(name: str, runs: Path) -> None:
    out, _ = ft("eval", runs / name, "--data", runs / "recipe" / "data.jsonl", "--json")
    found = json.loads(out)
    assert 0 <= found["accuracy"] <= 1
    assert found["rows"] == 24 if name.startswith("kto") else 12


@pytest.mark.parametrize("name", WRITING)
def test_it_answers(name: str, runs: Path) -> None:
    out, _ = ft("generate", runs / name, "--prompt", "ab", "--max-new-tokens", "4")
    assert out.endswith("\n")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_is_merged(name: str, runs: Path, tmp_path: Path) -> None:
    out, _ = ft("merge", runs / name, "--to", tmp_path / "merged", "--dtype", "float32")
    assert out.endswith(f"merged {tmp_path / 'merged'}\n")
    assert json.loads((tmp_path / "merged" / "parity.json").read_text(encoding="utf-8"))["wrong"] is None


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo"])
def test_sft_goes_before_it_and_behind_it(name: str, runs: Path, tmp_path: Path) -> None:
    """Its adapter is another run's beginning, and another's is its own."""
    rows = [{"prompt": "ab", "completion": "yes"}] * 4
    (runs / "recipe" / "sft.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    recipe = runs / "recipe" / "recipe.toml"
    file = runs / "recipe" / "sft.jsonl"
    sft = (f"data.path={file}", f'eval.source=[{{use="jsonl", path="{file}"}}]')
    train(recipe, tmp_path / "sft", *sft, f"adapter.from={runs / name}")
    run = train(recipe, tmp_path / "more", asked(name), f"adapter.from={tmp_path / 'sft'}")
    assert run.recipe.objective.reference in (None, "prepared")
    assert metrics(tmp_path / "more", "evaluation")[-1]["accuracy"] >= 0
