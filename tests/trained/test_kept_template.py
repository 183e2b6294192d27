"""A run whose recipe names a chat template's file is opened with the template that it trained with, file or no file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from fitune.compose.dialogue import dialogue_of
from fitune.data.prepare import context_of
from fitune.recipe.source import TomlSource
from fitune.testing import open_registry
from fitune.trained.open import find, tokenizer_for
from fitune.trained.templates import kept_templates
from support.after_runs import finished, ft, refused

FILE = """\
{%- for message in messages -%}
{{ '[' + message['role'] + ('!' if loud else '') + ']' + message['content'] + '<|end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[assistant' + ('!' if loud else '') + ']' }}{%- endif -%}
"""
ASKED = [{"role": "user", "content": "1"}]
WRITTEN = "[user!]1<|end|>[assistant!]"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kept_template")
    (place / "mine.jinja").write_text(FILE, encoding="utf-8")
    stage = f'data.stage=[{{use="chat", template_file="{place}/mine.jinja", variables={{loud=true}}}}]'
    run = finished(place, stage, "train.steps=2", "eval.exact_match=false", "checkpoint.steps=1")
    (place / "mine.jinja").unlink()  # else the copies would find it
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy, with a template's file of its own."""
    shutil.copytree(whole.parent, tmp_path / "all")
    (tmp_path / "all" / "mine.jinja").write_text(FILE, encoding="utf-8")
    recipe = tmp_path / "all" / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace(str(whole.parent), str(tmp_path / "all")))
    _without_digest(recipe)
    return recipe.parent


def _without_digest(recipe: Path) -> None:
    """The line of a recipe that tells whether it was changed."""
    recipe.write_text(recipe.read_text(encoding="utf-8").partition("\n")[2], encoding="utf-8")


def _prompt(run: Path, checkpoint: str | None = None) -> tuple[str, tuple[str, ...]]:
    """What the model of the run would be given, and what is told."""
    trained = find(run, open_registry(), checkpoint)
    dialogue = dialogue_of(trained.recipe, context_of(trained.recipe, tokenizer_for(trained)))
    assert dialogue is not None
    return dialogue.prompt(ASKED), trained.notices


def test_of_a_file_that_is_as_it_was_nothing_is_told(run: Path) -> None:
    assert _prompt(run) == (WRITTEN, ())


@pytest.mark.parametrize("change", ["is gone", "has changed since"])
def test_the_template_that_was_trained_with_takes_the_files_place(run: Path, change: str) -> None:
    file = run.parent / "mine.jinja"
    if change == "is gone":
        file.unlink()
    else:
        file.write_text(FILE.replace("[", "("), encoding="utf-8")
    kept = run / "adapter" / "chat_template.jinja"
    told = f"{file}, the chat template that was trained with, {change}: {kept}, which the run kept, takes its place"
    assert _prompt(run) == (WRITTEN, (told,))
    assert _prompt(run, "step-1") == (WRITTEN, (told,))


def test_every_command_opens_it_without_the_file(run: Path, tmp_path: Path) -> None:
    before = json.loads(ft("eval", run, "--json")[0])["loss"]
    (run.parent / "mine.jinja").unlink()
    said, told = ft("eval", run, "--json")
    assert json.loads(said)["loss"] == before
    assert "is gone" in told
    assert "is gone" in ft("generate", run, "--prompt", "1", "--max-new-tokens", "1")[1]
    ft("merge", run, "--to", tmp_path / "merged")
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = merged.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert text == WRITTEN


def test_a_file_that_the_command_line_names_is_taken_as_it_is(run: Path) -> None:
    (run.parent / "mine.jinja").unlink()
    assert len(list(kept_templates(run, TomlSource.read(run / "recipe.toml")))) == 1
    number = next(n for n, stage in enumerate(_stages(run)) if "template_file" in stage)
    named = f"data.stage.{number}.template_file={str(run.parent / 'other.jinja')!r}"
    assert list(kept_templates(run, TomlSource.read(run / "recipe.toml", [named]))) == []


def _stages(run: Path) -> list[dict[str, object]]:
    stages: list[dict[str, object]] = TomlSource.read(run / "recipe.toml").values["data"]["stage"]
    return stages


def test_a_run_of_0_1_which_saved_its_bases_template_still_needs_the_file(run: Path) -> None:
    identity = run / "identity.json"
    values = json.loads(identity.read_text(encoding="utf-8"))
    del values["place"]
    identity.write_text(json.dumps(values), encoding="utf-8")
    assert _prompt(run) == (WRITTEN, ())
    (run.parent / "mine.jinja").unlink()
    assert "no such file" in refused("generate", run, "--prompt", "1")
