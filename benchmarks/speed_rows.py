"""What `benchmarks/speed.py` measures: its rows, the data and the recipe of each, and what a card could do at most."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]
ACCUMULATION = 4
"""Micro-batches of a step, each of one row."""
R, ALPHA = 4, 8
TIMED = 11
"""Steps that are timed."""
WARM_UP = 3
"""Of these, the first that are left out of the median."""
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
END, PAD = "</s>", "<pad>"
DOCUMENTS = 1500
"""Texts that are read for packed rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    length: int
    """Tokens of a row."""
    capped: bool = False
    """Whether torch's allocator is limited."""
    nf4: bool = False
    packed: bool = False
    """Whether rows are real texts packed together; else one text of random words each."""
    fp8: bool = False
    """Whether fitune may compute in 8 bits; no rival is compared."""


ROWS = {
    "4096": Row(length=4096),
    "4096-cap": Row(length=4096, capped=True),
    "2048-cap": Row(length=2048, capped=True),
    "1024": Row(length=1024),
    "4096-nf4-cap": Row(length=4096, capped=True, nf4=True),
    "4096-packed": Row(length=4096, packed=True),
    "4096-fp8": Row(length=4096, fp8=True),
}


def recipe(row: Row, model: Path, data: Path, *, length: int, fit: str | bool, steps: int) -> Json:
    """What `ft run` is given; with `fit`, it chooses the strategies, but for 4 bits where the row has them."""
    named: list[Json] = [{"use": "accumulation", "steps": ACCUMULATION}]
    if row.nf4 or (row.fp8 and not fit):
        named.insert(0, {"use": "nf4" if row.nf4 else "fp8"})
    memory: Json = {"strategy": named, "fast": bool(fit)}
    if fit:
        memory |= {"fit": fit, "allow": ["fp8"] if row.fp8 else []}
    packing = [{"use": "truncate"}, {"use": "pack"}] if row.packed else []
    stages = [{"use": "plain-text"}, {"use": "tokenize"}, *packing]
    return {
        "name": "speed",
        "model": {"use": "hf", "path": str(model), "dtype": "bfloat16"},
        "adapter": {"use": "lora", "r": R, "alpha": ALPHA, "targets": "all-linear"},
        "memory": memory,
        "data": {"source": [{"use": "jsonl", "path": str(data)}], "stage": stages},
        "train": {"length": length, "steps": steps, "learning_rate": 1e-4, "schedule": "constant"},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The files of a row."""

    model: Path
    """The checkpoint with a tokenizer that fits the data."""
    texts: Path
    """JSON Lines of texts, for fitune."""
    tokens: Path
    """A JSON list of the same texts in token ids, an end token behind each, for rivals."""
    attended: float
    """Tokens of the text that a token is in, in the mean over tokens."""


def prepare(row: Row, length: int, model: Path, texts: Path | None, home: Path) -> Prepared:
    """Make the files of a row in `home`; `texts` is gsm8k's JSON Lines, which only a packed row needs."""
    from transformers import AutoTokenizer

    kind = "real" if row.packed else "random"
    linked = home / f"model-{kind}"
    if not linked.exists():
        linked.mkdir()
        for file in model.iterdir():
            if file.name in ("config.json", "generation_config.json") or "safetensors" in file.name:
                (linked / file.name).symlink_to(file.resolve())
        size = json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        _write_tokenizer(linked, size, list(_texts(texts)) if row.packed else None)
    rows = list(_texts(texts)) if row.packed else _random_rows(length, (TIMED + 2) * ACCUMULATION, linked)
    file = home / f"{kind}-{length}"
    lines = "".join(json.dumps({"text": text}) + "\n" for text in rows)
    file.with_suffix(".jsonl").write_text(lines, encoding="utf-8")
    encoded = AutoTokenizer.from_pretrained(linked)([text + END for text in rows], add_special_tokens=False)
    tokens = [list(ids)[:length] for ids in encoded["input_ids"]]
    file.with_suffix(".json").write_text(json.dumps(tokens), encoding="utf-8")
    attended = sum(len(ids) ** 2 for ids in tokens) / sum(map(len, tokens))
    return Prepared(model=linked, texts=file.with_suffix(".jsonl"), tokens=file.with_suffix(".json"), attended=attended)


def _texts(file: Path | None) -> Iterator[str]:
    if file is None:
        raise SystemExit("a packed row needs --texts: JSON Lines with question and answer")
    for line in file.read_text(encoding="utf-8").splitlines()[:DOCUMENTS]:
        problem = json.loads(line)
        yield f"{problem['question']}\n{problem['answer']}"


def _random_rows(length: int, number: int, model: Path) -> list[str]:
    """Texts of `length - 1` random words, each of which is one token."""
    words = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    usual = [word for word in words if word.startswith("w")]
    draw = random.Random(0)
    return [" ".join(draw.choices(usual, k=length - 1)) for _ in range(number)]


def _write_tokenizer(directory: Path, size: int, texts: list[str] | None) -> None:
    """Write a tokenizer of `size` tokens: one of single words `w0`, `w1` ..., or one that was trained on texts."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if texts is None:
        words = {f"w{number}": number for number in range(size - 2)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=min(16000, size - 2), show_progress=False, initial_alphabet=sorted(alphabet)
        )
        tokenizer.train_from_iterator(texts, trainer)
        state = json.loads(tokenizer.to_str())
        vocabulary = state["model"]["vocab"]
        vocabulary.update({f"<filler {number}>": number for number in range(len(vocabulary), size - 2)})
        tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (END, PAD)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD).save_pretrained(str(directory))


def possible(config: Json, length: float, flops: float, *, recomputed: bool = False) -> float:
    """Tokens a second if every product ran at `flops` and nothing else took time.

    Of LoRA on a frozen base: 2 operations a weight forward and 2 for the gradient of the input, none for the base's
    own; attention, where a token sees half of its text of `length` tokens, takes 1 forward and 2 backward.
    `recomputed` adds a second forward pass.
    """
    layers, hidden, inner = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    attention = 2 * length * hidden * layers
    heads = config["num_key_value_heads"] / config["num_attention_heads"]
    weights = layers * (hidden * hidden * (2 + 2 * heads) + 3 * hidden * inner) + hidden * config["vocab_size"]
    passes = 3 if recomputed else 2
    return float(flops / (2 * passes * weights + (passes + 1) * attention))
