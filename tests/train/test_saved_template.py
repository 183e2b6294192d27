"""The template that was trained with is saved by the run itself, so that plain transformers writes the trained form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from fitune.compose.dialogue import save_tokenizer
from fitune.plugin.records import Dialogue
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from support.tiny import train

ASKED = [{"role": "user", "content": "Count to 2."}]
FILE = """\
{%- for message in messages -%}
{{ '[' + message['role'] + ('!' if loud else '') + ']' + message['content'] + '<|end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[assistant' + ('!' if loud else '') + ']' }}{%- endif -%}
"""
WRITTEN = {
    "template = 'chatml'": "<|im_start|>user\nCount to 2.<|im_end|>\n<|im_start|>assistant\n",
    "template_file = 'mine.jinja', variables = {loud = true}": "[user!]Count to 2.<|end|>[assistant!]",
    "template_file = 'mine.jinja'": "[user]Count to 2.<|end|>[assistant]",
    "template = 'tokenizer'": "<|start|>user\nCount to 2.<|end|>\n<|start|>assistant\n",
}


@pytest.mark.parametrize("kind", ["lora", "none"])
@pytest.mark.parametrize("how", WRITTEN)
def test_the_saved_tokenizer_writes_the_trained_form(tmp_path: Path, how: str, kind: str) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"train": {"steps": 1}, "adapter": {"use": kind}})
    Path("mine.jinja").write_text(FILE, encoding="utf-8")  # in the test's own directory
    run = tmp_path / "run"
    made = train(recipe, run, f"data.stage=[{{use = 'chat', {how}}}]", "data.cache=false")
    saved: Any = AutoTokenizer.from_pretrained(run / made.recipe.adapter.record.directory)
    assert saved.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True) == WRITTEN[how]
    live: Any = made.tokenizer
    assert "<|start|>" in live.apply_chat_template(ASKED, tokenize=False), "the run's own stays as it was"
    again = read_recipe(run / "recipe.toml", open_registry())
    assert again.to_toml() == made.recipe.to_toml()


def test_a_run_on_text_saves_the_tokenizer_as_it_is(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"train": {"steps": 1}, "data": {"stage": [{"use": "plain-text"}]}})
    (recipe.parent / "data.jsonl").write_text('{"text": "1 2 3"}\n{"text": "4 5 6"}\n', encoding="utf-8")
    train(recipe, tmp_path / "run")
    before, after = (
        AutoTokenizer.from_pretrained(place).chat_template
        for place in (recipe.parent / "model", tmp_path / "run/adapter")
    )
    assert before == after


def test_a_model_of_its_own_ends_answers_where_they_were_trained_to_end(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"train": {"steps": 1}, "adapter": {"use": "none"}})
    Path("mine.jinja").write_text(FILE.replace("<|end|>", "<|pad|>"), encoding="utf-8")
    train(recipe, tmp_path / "run", "data.stage=[{use='chat', template_file='mine.jinja'}]", "checkpoint.steps=1")
    for place in ("model", "checkpoints/step-1/model"):
        assert GenerationConfig.from_pretrained(tmp_path / "run" / place).eos_token_id == [257, 258]


@pytest.mark.parametrize("own", [True, False])
def test_of_several_templates_the_trained_one_is_the_default(tmp_path: Path, own: bool) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    tokenizer: Any = AutoTokenizer.from_pretrained(recipe.parent / "model")
    several = {"default": "{{ 'a' }}", "tool_use": "{{ 'b' }}"}
    tokenizer.chat_template = several
    trained = "{%- set x = 1 -%}{{ 'a' }}" if own else "{{ 'c' }}"
    save_tokenizer(tokenizer, Dialogue(prompt=str, end="", template=trained), tmp_path / "saved")
    assert tokenizer.chat_template == several
    saved: Any = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.apply_chat_template(ASKED, tokenize=False) == ("a" if own else "c")
    with_tools = saved.apply_chat_template(ASKED, tokenize=False, tools=[json.loads("{}")])
    assert with_tools == ("b" if own else "c")
