"""The model card says what a run was, without what is nobody's business; nothing that is wrong with it fails a run."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from fitune.errors import CONTROLS
from fitune.plugin.paths import located
from fitune.recipe.renamed import place_of_run
from fitune.runs.card import published, write_card
from support.after_runs import evaluations, finished, ft

GIB = 2**30


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("card"), "eval.exact_match=false", "train.steps=2")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    return copy


def _card(run: Path) -> Any:
    write_card(run, run / "adapter")
    return ModelCard.load(run / "adapter" / "README.md")


def test_it_takes_the_place_of_pefts(run: Path) -> None:
    (run / "adapter" / "README.md").write_text("[More Information Needed]", encoding="utf-8")
    card = _card(run)
    assert "More Information" not in card.content
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-generation")
    assert card.data.tags == ["fitune", "lora"]
    assert card.data.base_model is None  # a directory of this machine is nothing to link to
    assert "# tiny\n\nAn adapter of `model`, trained by fitune " in card.text
    assert 'PeftModel.from_pretrained(base, "adapter")' in card.text


def test_no_blank_card_is_written_with_a_checkpoint(run: Path) -> None:
    """peft's own takes a fifth of the time that a checkpoint of a small adapter takes."""
    saved = [*run.glob("checkpoints/*/adapter/*")]
    assert "adapter_model.safetensors" in {place.name for place in saved}
    assert "README.md" not in {place.name for place in saved}


def test_figures_are_the_runs(run: Path) -> None:
    text = _card(run).text
    before, after = evaluations(run)
    assert f"| held-out loss | {before['loss']:.4f} (step 0) | {after['loss']:.4f} (step 2) |" in text
    assert "- 4 held-out rows, " in text
    assert "## Memory" not in text  # a run on the CPU has no forecast


def test_the_forecast_stands_beside_what_was_measured(run: Path) -> None:
    forecast = {"card": "A10G", "allocated": 3 * GIB, "reserved": 4 * GIB, "context": GIB // 2, "error": None}
    measured = {"allocated": 2 * GIB, "reserved": 5 * GIB, "context": GIB // 4}
    (run / "memory.json").write_text(json.dumps({"forecast": forecast, "measured": measured}), encoding="utf-8")
    text = _card(run).text
    assert "## Memory on A10G" in text
    assert "| reserved | 4.000 GiB | 5.000 GiB |" in text


def test_the_recipe_is_whole_and_names_no_place_of_this_machine(run: Path) -> None:
    card = _card(run)
    recipe = tomli.loads(card.text.partition("```toml\n")[2].partition("```")[0])
    own = tomli.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    assert own["model"]["path"] == "../recipe/model"
    assert recipe["model"]["path"] == "model"
    assert recipe["data"]["source"][0]["path"] == "data.jsonl"
    assert recipe == published(own)
    assert recipe.keys() == own.keys()
    assert str(run.parent) not in card.content
    assert "/tmp" not in card.content


def test_what_others_may_see() -> None:
    assert published({"a": ["/home/me/x.jsonl", "~/y", "C:\\data\\z", "x/y"], "b": 3}) == {
        "a": ["x.jsonl", "y", "z", "x/y"],
        "b": 3,
    }
    assert published("https://me:secret@example.org/x") == "https://example.org/x"


@pytest.mark.parametrize("name", ["recipe.toml", "environment.json", "metrics.jsonl"])
@pytest.mark.parametrize("text", [None, "", "\x00{", "[1, 2]", "null"])
def test_a_file_that_is_missing_or_damaged_leaves_its_lines_out(run: Path, name: str, text: str | None) -> None:
    if text is None:
        (run / name).unlink()
    else:
        (run / name).write_text(text, encoding="utf-8")
    text_of = _card(run).text
    assert "## Use" in text_of
    assert ("## Results" in text_of) == (name != "metrics.jsonl")
    assert ("## Versions" in text_of) == (name != "environment.json")
    assert ("## Recipe" in text_of) == (name != "recipe.toml")


def test_it_never_fails_a_run(run: Path) -> None:
    write_card(run, run / "nowhere")
    assert not (run / "nowhere").exists()
    (run / "metrics.jsonl").write_text('{"event": "step", "loss": 1}\n', encoding="utf-8")  # without its step
    (run / "adapter" / "README.md").unlink(missing_ok=True)
    write_card(run, run / "adapter")


def test_the_license_and_name_of_the_base_model(run: Path, tmp_path: Path) -> None:
    recipe = run / "recipe.toml"
    values = tomli.loads(recipe.read_text(encoding="utf-8"))
    base = located(run, Path(values["model"]["path"]), place_of_run(recipe))
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n", encoding="utf-8")
    card = _card(run)
    assert card.data.license == "apache-2.0"
    assert "Its license: apache-2.0." in card.text
    (base / "README.md").unlink()
    named = f'path = "{values["model"]["path"]}"'
    text = recipe.read_text(encoding="utf-8").replace(named, 'id = "somebody/some-model"')
    recipe.write_text(text, encoding="utf-8")
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    (run / "environment.json").write_text(json.dumps({**environment, "model_commit": "abc123"}), encoding="utf-8")
    card = _card(run)
    assert (card.data.base_model, card.data.license) == ("somebody/some-model", None)
    assert "An adapter of `somebody/some-model` (commit `abc123`)" in card.text


def test_a_merged_model_has_its_parity(run: Path, tmp_path: Path) -> None:
    out, _ = ft("merge", run, "--to", tmp_path / "mine", "--dtype", "float32")
    card: Any = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.library_name == "transformers"
    assert 'AutoModelForCausalLM.from_pretrained("mine")' in card.text
    shown = card.text.partition("## Parity of the merged model\n\n```text\n")[2].partition("```")[0]
    assert shown.strip() == out.strip().rpartition("\n")[0]


HOSTILE = (
    "![x](http://evil/x.png)",
    "[here](http://evil)",
    "<script>alert(1)</script>",
    "`a` ``b`` ```c",
    "# head | cell | *b* _i_ ~~s~~ &lt;",
    "http://evil/x www.evil.example me@evil.example",
    "\x1b]8;;http://evil\x1b\\ \u202e \x9b31m",
    "```\n# out of the block\n",
    '", trust_remote_code=True)  #',
)


def _marks(card: str) -> set[str]:
    """All that Markdown takes for a mark there, as GitHub reads it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card)
    return {inner.type for token in tokens for inner in (token, *(token.children or ()))}


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_card_takes_from_a_run_is_text(run: Path, text: str) -> None:
    """On 0.1 all of it went into the card as it was."""
    plain = _marks(_card(run).text)
    recipe = tomli.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    recipe["name"] = text
    recipe["model"] = {"use": text, "id": text}
    recipe["data"]["source"] = [{"use": text, text: text, "path": text}]
    (run / "recipe.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
    environment = {"model_commit": text, "fitune": text, "python": text, "packages": {text: text}}
    (run / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    (run / "memory.json").write_text(
        json.dumps({
            "forecast": {"card": text, "allocated": 1, "reserved": 1, "context": 1},
            "measured": {"allocated": 1, "reserved": 1, "context": 1},
        })
    )  # fmt: skip
    card = _card(run).text
    assert _marks(card) <= plain | {"text_special"}
    assert CONTROLS.search(card) is None
    (program,) = (token.content for token in MarkdownIt("commonmark").parse(card) if token.info == "python")
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
    assert {len(call.args) + len(call.keywords) for call in calls} <= {1, 2}
    assert not any(call.keywords for call in calls)


def test_a_card_holds_no_secret(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "not-of-a-known-shape")
    recipe = tomli.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    recipe["data"]["source"][0]["note"] = "with not-of-a-known-shape"
    (run / "recipe.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
    assert "not-of-a-known-shape" not in _card(run).content
