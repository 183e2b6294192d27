"""Rows that are longer than a model's table of positions are found before training; behind rotary ones' end, told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fitune.compose.positions import made_for, table_of
from fitune.testing import write_recipe, write_tiny_tokenizer
from support.after_runs import ft, refused

N = 64
GPT: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": N}
BERT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": N,
}
DECODER: dict[str, Any] = {**BERT, "is_decoder": True}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "openai-gpt": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "codegen": {**GPT, "n_head": 4, "rotary_dim": 4},
    "ctrl": {**GPT, "dff": 16},
    "gpt_neo": {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "max_position_embeddings": N,
        "attention_types": [[["global", "local"], 1]],
    },
    "opt": {**BERT, "word_embed_proj_dim": 16, "ffn_dim": 16},
    "biogpt": BERT,
    "bert": DECODER,
    "roberta": {**DECODER, "max_position_embeddings": N + 2, "pad_token_id": 1},
    "roformer": {**DECODER, "embedding_size": 16},
    "electra": {**DECODER, "embedding_size": 16},
    "bart": {
        "d_model": 16,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "max_position_embeddings": N,
        "is_decoder": True,
    },
    "xlm": {"emb_dim": 16, "n_layers": 1, "n_heads": 2, "max_position_embeddings": N, "causal": True},
    "mpt": {"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": N},
    "xglm": {"d_model": 16, "num_layers": 1, "attention_heads": 2, "ffn_dim": 16, "max_position_embeddings": N},
    "llama": BERT,
    "gpt_neox": BERT,
    "falcon": BERT,
    "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2},
}
WITHOUT = {"xglm", "llama", "gpt_neox", "falcon", "bloom"}
"""Those whose positions are computed, however many."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_table_ends_where_the_model_does(name: str) -> None:
    config = AutoConfig.for_model(name, vocab_size=64, **FAMILIES[name])
    with torch.device("meta"):
        found = table_of(AutoModelForCausalLM.from_config(config))
    assert found == (None if name in WITHOUT else N)
    model = AutoModelForCausalLM.from_config(config).eval()
    takes = {length: _takes(model, length) for length in (N, N + 1)}
    assert takes == {N: True, N + 1: name in WITHOUT}


def _takes(model: Any, length: int) -> bool:
    try:
        model(input_ids=torch.full((1, length), 5))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
    ],
)
def test_scaled_positions_reach_further(rope: dict[str, Any], positions: int) -> None:
    config = AutoConfig.for_model("llama", vocab_size=64, rope_parameters={"rope_theta": 10000.0, **rope}, **BERT)
    with torch.device("meta"):
        assert made_for(AutoModelForCausalLM.from_config(config)) == positions


# ------------------------------------------------------------------------------------------------------- in a recipe


def _recipe(directory: Path, *, words: int, length: int = 128, **changes: Any) -> Path:
    """A GPT-2 of 64 positions, and rows of about so many tokens."""
    train = {"length": length, "steps": 1, "micro_batch": 2}
    recipe = write_recipe(
        directory / "recipe", {"train": train, "adapter": {"use": "lora", "targets": ["c_attn"]}, **changes}
    )
    config = AutoConfig.for_model("gpt2", vocab_size=260, bos_token_id=0, eos_token_id=257, **GPT)
    AutoModelForCausalLM.from_config(config).save_pretrained(recipe.parent / "model")
    write_tiny_tokenizer(recipe.parent / "model")
    turns = [{"role": "user", "content": "x" * words}, {"role": "assistant", "content": "y"}]
    lines = [json.dumps({"messages": turns}) + "\n"] * 4
    (recipe.parent / "data.jsonl").write_text("".join(lines), encoding="utf-8")
    return recipe


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["training", "held out"])
def test_rows_behind_the_table_are_found_before_training(tmp_path: Path, where: str) -> None:
    recipe = _recipe(tmp_path, words=80 if where == "training" else 5)
    if where == "held out":
        long = _recipe(tmp_path / "other", words=80).parent / "data.jsonl"
        recipe.write_text(recipe.read_text() + f'[[eval.source]]\nuse = "jsonl"\npath = "{long}"\n')
    looked = ("data", recipe, *(["--held-out"] if where == "held out" else []))
    for command in (("check", recipe), looked, ("run", recipe, "--out", tmp_path / "run")):
        said = refused(*command)
        assert "([train] length = 128), but the model has a table of 64. Set [train] length = 64, and cut" in said
        assert said.startswith("rows take up to 1")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
def test_short_rows_train_whatever_the_length(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, words=5)
    for command in (("check", recipe), ("data", recipe), ("run", recipe, "--out", tmp_path / "run")):
        out, err = ft(*command)
        assert "positions" not in out + err
    stages = 'data.stage=[{use="chat"}, {use="tokenize"}, {use="pad", to="length"}]'
    assert "rows take up to 128 positions" in refused("check", recipe, "--set", stages)


@pytest.mark.filterwarnings("ignore")
def test_answers_end_where_the_table_does(tmp_path: Path) -> None:
    """Prompts of 25 and of 58 tokens, of which one has 6 left: fewer than are asked for."""
    recipe = _recipe(tmp_path, words=6)
    held_out = recipe.parent / "held_out.jsonl"
    more = (_recipe(tmp_path / "other", words=39).parent / "data.jsonl").read_text().splitlines(keepends=True)
    held_out.write_text("".join([*(recipe.parent / "data.jsonl").read_text().splitlines(keepends=True)[:2], more[0]]))
    evaluation = "[eval]\nexact_match = true\nmax_new_tokens = 30\nmicro_batch = 4\n"
    recipe.write_text(recipe.read_text() + f'{evaluation}\n[[eval.source]]\nuse = "jsonl"\npath = "{held_out}"\n')
    ft("run", recipe, "--out", tmp_path / "run")
    answers = json.loads((tmp_path / "run" / "examples.json").read_text())["answers"]
    assert [len(answer["prompt"]) for answer in answers] == [22, 22, 55]
    both = ("--raw", "--max-new-tokens", 30)
    out, _ = ft("generate", tmp_path / "run", "--prompt", "x" * 60, *both)
    assert len(out.strip()) <= 4
    assert "the prompt has 64 tokens, and the model takes 64 in all" in refused(
        "generate", tmp_path / "run", "--prompt", "x" * 64, *both
    )


@pytest.mark.filterwarnings("ignore")
def test_packed_documents_begin_anew(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, words=5)
    stages = 'data.stage=[{use="chat"}, {use="tokenize"}, {use="truncate"}, {use="pack"}]'
    out, _ = ft("run", recipe, "--set", stages, "--out", tmp_path / "run")
    assert "done in" in out
    assert "rows take up to 92 positions" in refused("check", _recipe(tmp_path / "long", words=70), "--set", stages)


def test_rows_longer_than_rotary_positions_are_told(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"train": {"steps": 1}})
    config = recipe.parent / "model" / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 32'))
    told = "([train] length = 128), and the model was made for 32 (max_position_embeddings)"
    for command in (("check", recipe), ("data", recipe), ("run", recipe, "--out", tmp_path / "run")):
        assert told in " ".join("".join(ft(*command)).split())
    assert "made for" not in "".join(ft("check", recipe, "--set", "train.length=32"))
