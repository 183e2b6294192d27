"""The GGUF form: what is written is what transformers reads, for each family, tokenizer and type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from fitune import Example, ModelError, Origin, RunError
from fitune.testing import write_tiny_tokenizer
from fitune.trained.export import gguf_read
from fitune.trained.export.gguf import Gguf, Type
from fitune.trained.export.gguf_family import family_of, told_of
from fitune.trained.export.gguf_splits import SPLITS
from fitune.trained.form import Merged
from fitune.trained.seen import see
from support.gguf_models import MODELS, SHAPE, bytewise, model_of, sentencepiece

TEXTS = ("Count to 5.\n1 2 3 naïve 中文 don't", "<|start|>user\nThere are numbers 1234 and words<|end|>\n<think> 5")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return bytewise("gpt-2")


def _rows(tokenizer: Any, texts: Sequence[str] = TEXTS, *, marked: bool = True) -> list[Example]:
    rows = [np.array(tokenizer(text, add_special_tokens=marked)["input_ids"], dtype=np.int32) for text in texts]
    return [Example(input_ids=ids, labels=ids.copy(), origin=Origin(file="f", row=1)) for ids in rows]


def _write(
    directory: Path,
    name: str,
    tokenizer: Any,
    kind: Type = "f16",
    texts: Sequence[str] = TEXTS,
    *,
    marked: bool = True,
) -> Path:
    form = Gguf(name="tiny", type=kind)
    model = model_of(name, len(tokenizer) + 3)
    form.write(
        Merged(model=model, tokenizer=tokenizer, dialogue=None, rows=_rows(tokenizer, texts, marked=marked)), directory
    )
    return directory / form.file


def _differ(file: Path, name: str, tokenizer: Any) -> float:
    """|found - own| / |own| of all logits."""
    rows = _rows(tokenizer)
    own = torch.cat(see(model_of(name, len(tokenizer) + 3), rows).logits)
    found = torch.cat(see(gguf_read.opened(file, CPU), rows).logits)
    return float((found - own).norm() / own.norm())


def _field(file: Path, key: str) -> Any:
    field = gguf.GGUFReader(str(file)).get_field(key)
    return None if field is None else field.contents()


@pytest.mark.parametrize("name", MODELS)
def test_each_family_says_what_it_said(tmp_path: Path, tokenizer: Any, name: str) -> None:
    file = _write(tmp_path, name, tokenizer)
    assert _differ(file, name, tokenizer) < 0.004
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(str(file)).tensors}
    assert ("output.weight" in stored) == (not MODELS[name].get("tie_word_embeddings", False))
    for one in stored.values():
        flat = "norm" in one.name or one.name.endswith(".bias") or one.name == "rope_freqs.weight"
        assert one.tensor_type == (gguf.GGMLQuantizationType.F32 if flat else gguf.GGMLQuantizationType.F16)


@pytest.mark.parametrize(("kind", "most", "least"), [("bf16", 0.02, 0.003), ("q8_0", 0.06, 0.01)])
def test_types_round_as_they_say(tmp_path: Path, tokenizer: Any, kind: Type, most: float, least: float) -> None:
    file = _write(tmp_path, "qwen3", tokenizer, kind)
    assert least < _differ(file, "qwen3", tokenizer) < most
    stored = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(str(file)).tensors}
    assert stored["blk.1.ffn_down.weight"] == kind.upper()
    assert stored["blk.1.attn_q_norm.weight"] == "F32"


def test_each_weight_is_the_nearest_of_its_type(tmp_path: Path, tokenizer: Any) -> None:
    """Against plain arithmetic: blocks of 32 share a scale, the largest of them over 127."""
    file = _write(tmp_path, "qwen2", tokenizer, "q8_0")
    (one,) = (t for t in gguf.GGUFReader(str(file)).tensors if t.name == "blk.0.ffn_up.weight")
    model: Any = model_of("qwen2", len(tokenizer) + 3)
    own = model.model.layers[0].mlp.up_proj.weight.detach().reshape(-1, 32)
    scale = own.abs().amax(1, keepdim=True) / 127
    expected = (own / scale).round() * scale.half().float()
    found = torch.from_numpy(gguf.quants.dequantize(one.data, one.tensor_type)).reshape(-1, 32)
    torch.testing.assert_close(found, expected, rtol=0, atol=float(scale.max()) * 1e-3)


@pytest.mark.parametrize("name", SPLITS)
def test_the_way_of_cutting_is_found_by_what_it_does(tmp_path: Path, name: str) -> None:
    tokenizer = bytewise(name)
    file = _write(tmp_path, "qwen2", tokenizer)
    assert _field(file, "tokenizer.ggml.pre") == name
    assert _field(file, "tokenizer.ggml.model") == "gpt2"
    tokens, types = _field(file, "tokenizer.ggml.tokens"), _field(file, "tokenizer.ggml.token_type")
    assert len(tokens) == len(types) == len(tokenizer) + 3
    assert [types[tokenizer.convert_tokens_to_ids(one)] for one in ("<|end|>", "<think>", "a")] == [3, 4, 1]
    assert (tokens[-1], types[-1]) == (f"[PAD{len(tokens) - 1}]", 5)


@pytest.mark.parametrize("old", [True, False])
def test_pieces_with_scores(tmp_path: Path, old: bool) -> None:
    """Llama 2 and Mistral: no merges are written, but scores, from which the same ones follow."""
    tokenizer = sentencepiece(old=old)
    texts = TEXTS if old else TEXTS[1:]
    file = _write(tmp_path, "mistral", tokenizer, texts=texts)
    assert (_field(file, "tokenizer.ggml.model"), _field(file, "tokenizer.ggml.merges")) == ("llama", None)
    assert _field(file, "tokenizer.ggml.add_space_prefix") is old  # llama.cpp's are behind special tokens too
    assert _field(file, "tokenizer.ggml.add_bos_token") is True
    types = _field(file, "tokenizer.ggml.token_type")
    assert [types[tokenizer.convert_tokens_to_ids(one)] for one in ("<unk>", "<0x41>", "<s>")] == [2, 6, 3]


def test_blanks_that_llama_cpp_cannot_put(tmp_path: Path) -> None:
    """Before a text's beginning, which one row has, and not behind special tokens, which another one has."""
    tokenizer = sentencepiece(old=False)
    with pytest.raises(ModelError, match="in both places, or in neither"):
        _write(tmp_path, "mistral", tokenizer)
    plain = _write(tmp_path, "mistral", tokenizer, texts=TEXTS[:1])
    assert _field(plain, "tokenizer.ggml.add_space_prefix") is True


def test_texts_begin_with_the_mark_that_was_trained_with(tmp_path: Path) -> None:
    tokenizer = sentencepiece(old=True)
    assert _field(_write(tmp_path, "llama", tokenizer, marked=False), "tokenizer.ggml.add_bos_token") is False


def test_a_mark_that_the_template_writes_is_not_added_once_more(tmp_path: Path) -> None:
    """SmolLM2's turns begin with its mark of beginning, which its tokenizer puts before no text by itself."""
    tokenizer = bytewise("smollm")
    tokenizer.bos_token = "<|start|>"
    file = _write(tmp_path, "llama", tokenizer, texts=TEXTS[1:])
    assert _field(file, "tokenizer.ggml.add_bos_token") is False


def test_a_tokenizer_that_cuts_otherwise_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file would be read with digits one by one, where the run had numbers as they are."""
    from fitune.trained.export import gguf_tokenizer

    monkeypatch.setattr(gguf_tokenizer, "name_of", lambda *given, **named: "qwen2")
    with pytest.raises(RunError, match="does not make the same tokens"):
        _write(tmp_path, "qwen2", bytewise("gpt-2", 700))


def test_a_way_of_cutting_that_nobody_knows(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    tokenizer = bytewise("gpt-2")
    cast(Any, tokenizer).backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(ModelError, match="in none of the ways"):
        _write(tmp_path, "qwen2", tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_single_bytes(tmp_path: Path) -> None:
    """That of `fitune.testing`: GGUF has no empty lists, and llama.cpp wants merges."""
    write_tiny_tokenizer(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="wants merges"):
        _write(tmp_path / "out", "llama", tokenizer)


def test_fewer_embeddings_than_tokens(tmp_path: Path, tokenizer: Any) -> None:
    form = Gguf(name="tiny", type="f16")
    model = model_of("llama", len(tokenizer) - 1)
    with pytest.raises(ModelError, match="embeddings for"):
        form.write(Merged(model=model, tokenizer=tokenizer, dialogue=None, rows=[]), tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("gemma", {}, 'no GGUF is written of "gemma", but of llama, mistral, qwen2, qwen3. Merge it'),
        ("qwen3", {"attention_bias": True}, "attention_bias = true, which llama.cpp lacks"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window = true"),
        ("llama", {"hidden_act": "gelu"}, 'hidden_act = "gelu"'),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, 'is "dynamic"'),
    ],
)
def test_what_llama_cpp_computes_otherwise(kind: str, changes: dict[str, Any], said: str) -> None:
    config = AutoConfig.for_model(kind, **{**SHAPE, **changes}, vocab_size=99)
    with pytest.raises(ModelError, match=said):
        family_of(config)


def test_a_window_is_told_of() -> None:
    config: Callable[..., Any] = AutoConfig.for_model
    (told,) = told_of(config("mistral", **{**SHAPE, "sliding_window": 128}))
    assert "attends to the last 128 tokens" in told
    assert told_of(config("mistral", **{**SHAPE, "sliding_window": None})) == ()


def test_a_weight_that_float16_cannot_hold(tmp_path: Path, tokenizer: Any) -> None:
    model = model_of("llama", len(tokenizer))
    cast(Any, model).model.layers[0].mlp.up_proj.weight.data[0, 0] = 7e4
    merged = Merged(model=model, tokenizer=tokenizer, dialogue=None, rows=_rows(tokenizer))
    with pytest.raises(ModelError, match="larger than float16 can hold"):
        Gguf(name="tiny", type="f16").write(merged, tmp_path)
