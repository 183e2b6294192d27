"""What is exported, in llama.cpp itself: it computes what transformers does, and makes the same tokens of a text.

Where llama-cpp-python is installed, which takes a quarter of an hour to build: pip install llama-cpp-python.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fitune import Example, Origin
from fitune.trained.export.gguf import Gguf, Type
from fitune.trained.export.gguf_splits import PROBE, SPLITS
from fitune.trained.form import Merged
from fitune.trained.seen import see
from support.gguf_models import MODELS, bytewise, model_of, sentencepiece

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is built from source")

TEXT = "<|start|>user\nThere are numbers 1234 and words: naïve 中文, don't<|end|>\n<think> 5"


def _opened(directory: Path, name: str, tokenizer: Any, kind: Type = "f16") -> Any:
    """A model that was written, in llama.cpp, which keeps keys and values in float32: the file alone rounds."""
    ids = np.array(tokenizer(TEXT)["input_ids"], dtype=np.int32)
    rows = [Example(input_ids=ids, labels=ids.copy(), origin=Origin(file="f", row=1))]
    form = Gguf(name="tiny", type=kind)
    model = model_of(name, len(tokenizer) + 3)
    form.write(Merged(model=model, tokenizer=tokenizer, dialogue=None, rows=rows), directory)
    plain = llama_cpp.GGML_TYPE_F32
    found = llama_cpp.Llama(
        str(directory / form.file), n_ctx=256, n_threads=1, logits_all=True, type_k=plain, type_v=plain, verbose=False
    )
    return found, model, rows


@pytest.mark.parametrize(("kind", "most"), [("f16", 0.004), ("bf16", 0.03), ("q8_0", 0.09)])
@pytest.mark.parametrize("name", MODELS)
def test_it_computes_the_same(tmp_path: Path, name: str, kind: Type, most: float) -> None:
    tokenizer = bytewise("gpt-2")
    there, model, rows = _opened(tmp_path, name, tokenizer, kind)
    there.eval(rows[0].input_ids.tolist())
    own = see(model, rows).logits[0]
    found = torch.from_numpy(there.scores[: len(rows[0].input_ids)].copy())
    assert float((found - own).norm() / own.norm()) < most  # of q8_0 it rounds what weights are multiplied with too


def _cuts_alike(there: Any, tokenizer: Any, texts: Sequence[str] = (TEXT, PROBE, "1 2 3 4 5", "")) -> None:
    for text in texts:
        assert (
            there.tokenize(text.encode(), add_bos=False, special=True)
            == tokenizer(text, add_special_tokens=False)["input_ids"]
        )


@pytest.mark.parametrize("name", SPLITS)
def test_it_cuts_the_same(tmp_path: Path, name: str) -> None:
    tokenizer = bytewise(name)
    _cuts_alike(_opened(tmp_path, "qwen2", tokenizer)[0], tokenizer)


@pytest.mark.parametrize("old", [True, False])
def test_it_makes_the_same_pieces(tmp_path: Path, old: bool) -> None:
    tokenizer = sentencepiece(old=old)
    there, _, _ = _opened(tmp_path, "mistral", tokenizer)
    texts = (TEXT, PROBE, "1 2 3 4 5") if old else (TEXT, f"<|start|>{PROBE}", "<|end|> 1 2")
    _cuts_alike(there, tokenizer, texts)
    assert there.tokenize(b"a", add_bos=True)[0] == tokenizer.bos_token_id


def test_a_mark_of_beginning_that_the_template_writes_is_not_written_twice(tmp_path: Path) -> None:
    """As SmolLM2's is, whose turns begin with it."""
    tokenizer = bytewise("smollm")
    tokenizer.bos_token = "<|start|>"
    there, _, _ = _opened(tmp_path, "llama", tokenizer)
    assert there.tokenize(b"<|start|>user", add_bos=True, special=True) == tokenizer("<|start|>user")["input_ids"]


def test_it_knows_the_template_and_the_end_of_a_turn(tmp_path: Path) -> None:
    tokenizer = bytewise("smollm")
    there, _, _ = _opened(tmp_path, "llama", tokenizer)
    assert there.metadata["tokenizer.chat_template"] == tokenizer.chat_template
    assert there.token_eos() == tokenizer.convert_tokens_to_ids("<|end|>")
