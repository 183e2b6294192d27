"""Loader `deepseek-7b`, on a tiny model of its kind: its tokens, its template, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fitune import ModelError, ModelLoader
from fitune.testing import open_registry, write_recipe
from fitune.train.loop import train
from fitune_plugins.loaders import deepseek_7b
from support.tiny import parts_of

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
ANSWER = "4.\n\n  Not 5"


def _write_tokenizer(directory: Path, begin: str = BEGIN, end: str = END) -> None:
    """A byte-level tokenizer that puts a begin token, whose configuration, as the published one's, calls it Llama's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (begin, end)])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 256)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end).save_pretrained(str(directory))
    config = directory / "tokenizer_config.json"
    values = {**json.loads(config.read_text(encoding="utf-8")), "tokenizer_class": "LlamaTokenizerFast"}
    config.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny recipe with a tiny model of DeepSeek's kind, which the loader is told to take for the real one."""
    path = write_recipe(tmp_path / "recipe", {"model": {"use": "deepseek-7b", "dtype": "float32"}})
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=260, max_position_embeddings=512, bos_token_id=256, eos_token_id=257, initializer_range=0.1,
    )  # fmt: skip
    shape = {key: getattr(config, key) for key in deepseek_7b.SHAPE}
    monkeypatch.setattr(deepseek_7b, "SHAPE", shape)
    LlamaForCausalLM(config).save_pretrained(path.parent / "model")
    (path.parent / "model" / "chat_template.jinja").unlink()
    _write_tokenizer(path.parent / "model")
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes"},
    ]
    (path.parent / "data.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    return path


def _tokenizer(recipe: Path) -> Any:
    loader = open_registry().find(ModelLoader, "deepseek-7b")
    return loader.load_tokenizer(loader.options(path=recipe.parent / "model"))


def test_the_rendered_conversation_and_what_is_trained_on(recipe: Path) -> None:
    parts = parts_of(recipe)
    tokenizer, example = parts.run.tokenizer, parts.examples[0]
    text = f"{BEGIN}Be brief.\n\nUser: 2 + 2?\n\nAssistant: {ANSWER}{END}User: Sure?\n\nAssistant: Yes{END}"
    assert tokenizer.decode(example.input_ids.tolist()) == text
    assert (example.input_ids == tokenizer.bos_token_id).sum() == 1  # the template's own, and no second one
    assert tokenizer.decode(example.labels[example.labels != -100].tolist()) == f" {ANSWER}{END} Yes{END}"
    assert [report.step for report in train(parts) if hasattr(report, "learning_rate")] == [1, 2, 3]


def test_the_tokenizer_is_that_of_the_file(recipe: Path) -> None:
    """Read as the Llama tokenizer that its configuration names, it would lose spaces and line ends."""
    tokenizer = _tokenizer(recipe)
    text = "  two spaces\n\n\tand a tab, 你好"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert tokenizer(text).input_ids[0] == tokenizer.bos_token_id == 256  # raw text gets its begin token
    assert tokenizer.pad_token == tokenizer.eos_token == END


def test_a_tokenizers_own_template_is_kept(recipe: Path) -> None:
    (recipe.parent / "model" / "chat_template.jinja").write_text("mine", encoding="utf-8")
    assert _tokenizer(recipe).chat_template == "mine"


def test_an_unknown_role_is_refused(recipe: Path) -> None:
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match="knows the roles system, user and assistant"):
        _tokenizer(recipe).apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


@pytest.mark.parametrize(
    ("begin", "end", "message"),
    [("<s>", END, "its begin-of-text token is"), (BEGIN, "</s>", "its end-of-text token is")],
)
def test_another_tokenizer_is_refused(recipe: Path, begin: str, end: str, message: str) -> None:
    _write_tokenizer(recipe.parent / "model", begin, end)
    with pytest.raises(ModelError, match="not DeepSeek-LLM 7B: ") as caught:
        _tokenizer(recipe)
    assert message in caught.value.message


def test_another_shape_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepseek_7b, "SHAPE", {**deepseek_7b.SHAPE, "num_hidden_layers": 30})
    (recipe.parent / "model" / "model.safetensors").unlink()  # refused before a weight is read
    with pytest.raises(ModelError, match="is not DeepSeek-LLM 7B: its num_hidden_layers is 30, not 2"):
        parts_of(recipe)


def test_a_damaged_configuration(recipe: Path) -> None:
    loader = open_registry().find(ModelLoader, "deepseek-7b")
    (recipe.parent / "model" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"the configuration of .* cannot be loaded: "):
        loader.load_model(loader.options(path=recipe.parent / "model"), torch.device("cpu"))


def test_the_published_shape() -> None:
    """arXiv 2401.02954, table 2: 6.9 G parameters."""
    s: Any = deepseek_7b.SHAPE
    attention, mlp = 4 * s["hidden_size"] ** 2, 3 * s["hidden_size"] * s["intermediate_size"]
    layer = attention + mlp + 2 * s["hidden_size"]
    total = s["num_hidden_layers"] * layer + 2 * s["vocab_size"] * s["hidden_size"] + s["hidden_size"]
    assert total == 6_910_365_696
