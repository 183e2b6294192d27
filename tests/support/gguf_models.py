"""Tiny models of the families that are written as GGUF, with tokenizers of several kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from fitune.testing.tiny import CHAT_TEMPLATE
from fitune.trained.export.gguf_splits import PROBE, SPLITS

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-5,
}

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "llama, wide heads": {"head_dim": 32},
    "llama, linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "llama, of 3.1": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "mistral": {"sliding_window": None},
    "mistral, windowed": {"sliding_window": 128},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
}
"""By a name that begins with transformers' `model_type`."""

CORPUS = [PROBE, "Count to 5. 1 2 3 4 5 the then there other another counting counted numbers\nand words" * 3]


def bytewise(cut: str, size: int = 340) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that cuts as models do whose GGUF files name it so."""
    own: dict[str, Any] = {
        "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "deepseek-llm": _isolated(*SPLITS["deepseek-llm"].patterns[:-1], digits=False),
        "deepseek-coder": _isolated(*SPLITS["deepseek-coder"].patterns[:-1], digits=True),
    }
    cuts = own.get(cut) or _isolated(*SPLITS[cut].patterns)
    tokenizer = Tokenizer(models.BPE(ignore_merges=SPLITS[cut].whole_first))
    tokenizer.pre_tokenizer = cuts
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|start|>", "<|end|>", "<|pad|>")])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return _fast(tokenizer)


def _isolated(*patterns: str, digits: bool | None = None) -> Any:
    parts: list[Any] = [pre_tokenizers.Split(Regex(one), behavior="isolated") for one in patterns]
    if digits is not None:
        parts.append(pre_tokenizers.Digits(individual_digits=digits))
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sentencepiece(*, old: bool) -> PreTrainedTokenizerFast:
    """A tokenizer as those of Llama 2 and Mistral: bytes where no piece fits, and a mark of beginning before a text;
    `old` puts the blank in a normalizer.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS[1:], trainer)
    if not old:
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|start|>", "<|end|>", "<|pad|>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = _fast(tokenizer)
    fast.bos_token, fast.unk_token = "<s>", "<unk>"
    return fast


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def model_of(name: str, vocabulary: int) -> PreTrainedModel:
    """A model with weights that are the same at every call; norms and biases are no ones and no zeros."""
    config = AutoConfig.for_model(name.split(",")[0], **{**SHAPE, **MODELS[name]}, vocab_size=vocabulary)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build: Any = AutoModelForCausalLM.from_config
        model: PreTrainedModel = build(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.eval()
    return model


def write(directory: Path, name: str, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a model with its tokenizer; gives `directory`."""
    model_of(name, len(tokenizer) + 3).save_pretrained(directory)
    tokenizer.save_pretrained(str(directory))
    return directory
