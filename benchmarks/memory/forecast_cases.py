"""The runs whose memory `forecasts.py` forecasts and measures: recipes, data of exact lengths, shapes of models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

STEPS = 3
"""Optimizer steps of a run: the second is the first that meets the optimizer's state, the third shows that it lasts."""

TEMPLATE = 21
"""Tokens that the tokenizer's chat template puts around a prompt and its answer."""

Shape = str
"""A name in `SHAPES`."""


def _llama(hidden: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        **more,
    }


SHAPES: dict[Shape, dict[str, Any]] = {
    "deepseek": _llama(4096, 11008, 30, 32, 32, 102400, rms_norm_eps=1e-6),
    "llama8b": _llama(4096, 14336, 32, 32, 8, 128256, rope_theta=500000.0),
    "llama1b": _llama(2048, 8192, 16, 32, 8, 128256),
    "llama1b tied": _llama(2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True),
    "small": _llama(512, 1536, 8, 8, 4, 32000),
    "qwen": {
        **_llama(1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True),
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
    },
    "gemma": {
        **_llama(2304, 9216, 26, 8, 4, 256000, tie_word_embeddings=True),
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_implementation": "eager",
    },
}
"""Configurations by the models' own: DeepSeek-LLM 7B, Llama 3 8B, Llama 3.2 1B (and with a head of its own), Qwen2.5
1.5B, Gemma 2 2B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run."""

    shape: Shape = "deepseek"
    loader: Literal["shape", "hf"] = "shape"
    """"hf" reads a checkpoint; "shape" makes weights on the card, as loading leaves them there."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    targets: Literal["q,v", "all-linear", ""] = "q,v"
    """What the adapters are on; "" for full fine-tuning."""
    r: int = 4
    dropout: float = 0.0
    adapter_dtype: Literal["base", "float32"] = "base"
    length: int = 2048
    micro_batch: int = 1
    accumulation: int = 1
    checkpointing: int | Literal["all", ""] = ""
    """All layers, the first n, or none."""
    chunked: bool = False
    trained: int = 0
    """Tokens of the answer that is trained on; 0 for a whole row."""
    packed: tuple[int, ...] = ()
    """Tokens of each document of a row, the longest first."""
    evaluated: int = 0
    """Tokens of each held-out row; 0 for no evaluation."""
    nf4: bool = False
    adamw_8bit: bool = False
    expandable: bool = True
    """Whether the allocator's segments grow."""

    @property
    def name(self) -> str:
        """What is not as in most cases, in words."""
        layers = f" {self.checkpointing}" if isinstance(self.checkpointing, int) else ""
        words = [
            self.shape,
            "full" if not self.targets else f"{self.targets} r{self.r}",
            f"{self.micro_batch}x{self.length}",
            {"bfloat16": "", "float16": "fp16", "float32": "fp32"}[self.dtype],
            f"dropout {self.dropout}" if self.dropout else "",
            "fp32-adapter" if self.adapter_dtype == "float32" else "",
            f"ckpt{layers}" if self.checkpointing else "",
            "chunked" if self.chunked else "",
            f"acc{self.accumulation}" if self.accumulation > 1 else "",
            f"trained {self.trained}" if self.trained else "",
            f"packed {len(self.packed)}" if self.packed else "",
            f"eval 2x{self.evaluated}" if self.evaluated else "",
            "nf4" if self.nf4 else "",
            "adamw-8bit" if self.adamw_8bit else "",
            "" if self.expandable else "default-allocator",
            "checkpoint-read" if self.loader == "hf" else "",
        ]
        return " ".join(word for word in words if word)

    @property
    def group(self) -> Literal["LoRA", "LoRA on NF4", "full"]:
        """Which errors it is counted with."""
        if not self.targets:
            return "full"
        return "LoRA on NF4" if self.nf4 else "LoRA"

    @property
    def allowed(self) -> float:
        """Percent by which a forecast of allocated bytes may be wrong before it is looked into."""
        return 0.1 if self.group == "LoRA" else 1.0

    def recipe(self, model: Path) -> dict[str, Any]:
        """The recipe, its data beside it."""
        strategies: list[dict[str, Any]] = []
        if self.nf4:
            strategies.append({"use": "nf4"})
        if self.checkpointing:
            layers = {"layers": self.checkpointing} if isinstance(self.checkpointing, int) else {}
            strategies.append({"use": "gradient-checkpointing", **layers})
        if self.accumulation > 1:
            strategies.append({"use": "accumulation", "steps": self.accumulation})
        strategies += [{"use": "chunked-loss"}] * self.chunked
        strategies += [{"use": "expandable-segments"}] * self.expandable
        strategies += [{"use": "adamw-8bit"}] * self.adamw_8bit
        stages: list[dict[str, Any]] = [{"use": "plain-text"}, {"use": "tokenize"}]
        if self.trained:
            columns = {"prompt": "question", "completion": "answer"}
            stages = [{"use": "prompt-completion", **columns}, {"use": "chat"}]
        stages += [{"use": "pack"}] * bool(self.packed)
        adapter = {"use": "lora", "r": self.r, "dropout": self.dropout, "dtype": self.adapter_dtype}
        targets = self.targets if self.targets == "all-linear" else ["q_proj", "v_proj"]
        held_out = {"micro_batch": 2, "source": [{"use": "jsonl", "path": "eval.jsonl"}]}
        return {
            "name": "memory",
            "model": {"use": self.loader, "path": str(model), "dtype": self.dtype},
            "adapter": {**adapter, "targets": targets} if self.targets else {"use": "none"},
            "memory": {"strategy": strategies},
            "data": {"cache": False, "source": [{"use": "jsonl", "path": "data.jsonl"}], "stage": stages},
            "train": {
                "micro_batch": self.micro_batch,
                "length": self.length,
                "steps": STEPS,
                "learning_rate": 1e-6,
                "schedule": "constant",
            },
            **({"eval": held_out} if self.evaluated else {}),
        }

    def write(self, directory: Path, model: Path) -> Path:
        """Write recipe and data; gives the recipe's path."""
        import tomli_w

        directory.mkdir(parents=True)
        rows = self.micro_batch * self.accumulation * STEPS
        _write_rows(directory / "data.jsonl", (row for _ in range(rows) for row in self._row()))
        if self.evaluated:
            _write_rows(directory / "eval.jsonl", (_text(self.evaluated) for _ in range(4)))
        path = directory / "recipe.toml"
        path.write_text(tomli_w.dumps(self.recipe(model)), encoding="utf-8")
        return path

    def _row(self) -> Iterator[dict[str, str]]:
        """The documents of one row of exactly `length` tokens."""
        if self.packed:
            yield from (_text(tokens) for tokens in self.packed)
        elif self.trained:
            asked = self.length - self.trained - TEMPLATE
            yield {"question": "q" * asked, "answer": "a" * self.trained}
        else:
            yield _text(self.length)


def _text(tokens: int) -> dict[str, str]:
    """A text of so many tokens, the last of which ends it; the tokenizer is one of single bytes."""
    return {"text": "".join(chr(97 + at * at % 26) for at in range(tokens - 1))}


def _write_rows(path: Path, rows: Iterator[dict[str, str]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def all_cases() -> dict[str, Case]:
    """Every case of the README's table by its name; the first runs alone, for the context of its process to be seen."""
    return by_name([*_deepseek(), *_other_shapes(), *_quantized(), *_full()])


def by_name(cases: list[Case]) -> dict[str, Case]:
    """The cases by their names. Raises `ValueError` where two have one."""
    named = {case.name: case for case in cases}
    if len(named) < len(cases):
        raise ValueError("two cases have one name")
    return named


def _deepseek() -> Iterator[Case]:
    yield Case(checkpointing="all", accumulation=4, expandable=False)  # the recipe of the README
    yield Case()
    yield Case(loader="hf")
    yield Case(length=1024)
    yield Case(length=1024, micro_batch=2)
    yield Case(length=4096, checkpointing="all")
    yield Case(r=64)
    yield Case(dropout=0.05)
    yield Case(checkpointing=15)
    yield Case(checkpointing="all", chunked=True)
    yield Case(length=1024, accumulation=2, chunked=True)
    yield Case(micro_batch=2, accumulation=2, checkpointing="all")
    yield Case(adapter_dtype="float32")
    yield Case(packed=(1100, 600, 348))
    yield Case(trained=256)
    yield Case(trained=256, checkpointing="all", chunked=True)
    yield Case(evaluated=2048)
    yield Case(checkpointing="all", chunked=True, evaluated=2048)
    yield Case(targets="all-linear")
    yield Case(targets="all-linear", expandable=False)
    yield Case(targets="all-linear", r=64, checkpointing="all")
    yield Case(targets="all-linear", length=4096, checkpointing="all")
    yield Case(targets="all-linear", length=4096, chunked=True)
    yield Case(targets="all-linear", r=64, dropout=0.05, checkpointing=15, chunked=True)
    yield Case(targets="all-linear", r=64, length=1000, micro_batch=3, chunked=True)
    yield Case(
        targets="all-linear", r=64, dropout=0.05, length=1000, micro_batch=3, checkpointing=15, chunked=True,
        accumulation=2, expandable=False,
    )  # fmt: skip
    yield Case(targets="all-linear", dropout=0.05, adapter_dtype="float32", checkpointing="all")
    yield Case(
        targets="all-linear", length=4096, packed=(2100, 1100, 601, 295), checkpointing="all", chunked=True,
        accumulation=2,
    )  # fmt: skip
    yield Case(targets="all-linear", r=64, checkpointing="all", adamw_8bit=True)
    yield Case(targets="all-linear", r=64, length=1024, chunked=True, adamw_8bit=True, accumulation=4)


def _other_shapes() -> Iterator[Case]:
    yield Case(shape="llama8b")
    yield Case(shape="llama8b", targets="all-linear", length=4096, checkpointing="all", chunked=True)
    yield Case(shape="llama8b", targets="all-linear", r=64, dropout=0.05, checkpointing=15, accumulation=2)
    yield Case(shape="qwen")
    yield Case(shape="qwen", targets="all-linear", length=4096, checkpointing="all", chunked=True)
    yield Case(shape="qwen", targets="all-linear", packed=(1100, 600, 348), expandable=False)
    yield Case(shape="gemma", length=1024)
    yield Case(shape="gemma", targets="all-linear", checkpointing="all", chunked=True)
    yield Case(shape="gemma", targets="all-linear", dropout=0.05, micro_batch=2, length=1024, chunked=True)
    yield Case(shape="small", dtype="float32", length=1024)
    yield Case(shape="llama1b", dtype="float16")
    yield Case(
        shape="llama1b", dtype="float16", targets="all-linear", dropout=0.05, checkpointing="all", chunked=True,
        accumulation=2,
    )  # fmt: skip


def _quantized() -> Iterator[Case]:
    yield Case(nf4=True, loader="hf", targets="all-linear", checkpointing="all", chunked=True)
    yield Case(shape="qwen", nf4=True, loader="hf")
    yield Case(
        shape="qwen", nf4=True, loader="hf", targets="all-linear", r=64, dropout=0.05, length=4096,
        checkpointing="all", chunked=True,
    )  # fmt: skip
    yield Case(
        shape="qwen", nf4=True, loader="hf", targets="all-linear", adapter_dtype="float32", length=1024,
        micro_batch=2, accumulation=2, checkpointing=14, expandable=False,
    )  # fmt: skip
    yield Case(shape="qwen", nf4=True, loader="hf", targets="all-linear", chunked=True, adamw_8bit=True)


def _full() -> Iterator[Case]:
    yield Case(shape="llama1b", targets="")
    yield Case(shape="llama1b tied", targets="")
    yield Case(shape="llama1b", targets="", length=4096, checkpointing="all", chunked=True)
    yield Case(shape="llama1b tied", targets="", micro_batch=2, accumulation=2, checkpointing="all")
    yield Case(shape="llama1b tied", targets="", length=1024, chunked=True, expandable=False)
    yield Case(shape="llama1b tied", targets="", checkpointing=8, chunked=True, adamw_8bit=True)
    yield Case(shape="llama1b", targets="", packed=(1100, 600, 348), chunked=True, evaluated=1024)
    yield Case(shape="small", dtype="float32", targets="", length=512, micro_batch=2)
