"""Model loader `deepseek-7b`: DeepSeek-LLM 7B, base or chat, checked to be that model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fitune import ModelError, ModelLoader, Problem, hookimpl
from fitune_plugins.data.chat_template import named
from fitune_plugins.loaders.fingerprint import of_directory, of_hub
from fitune_plugins.loaders.loading import DType, build_model, check_path, first_line, load_model, load_tokenizer
from fitune_plugins.loaders.quantized import problems, stored
from fitune_plugins.loaders.unpacked import load_plain
from fitune_plugins.loaders.weight_files import on_this_machine

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.quantization_config import QuantizationConfigMixin

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

SHAPE = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 102400,
}
"""The configuration of the published model (arXiv 2401.02954, table 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSeek7bOptions:
    """Options of the loader `deepseek-7b`."""

    id: Literal["deepseek-ai/deepseek-llm-7b-base", "deepseek-ai/deepseek-llm-7b-chat"] = (
        "deepseek-ai/deepseek-llm-7b-base"
    )
    """The base or the chat model."""
    path: Path | None = None
    """Directory with config, weights and tokenizer, used in place of the hub."""
    revision: str = "main"
    """Branch, tag or commit on the hub; the commit that it stands for is recorded with the run."""
    dtype: DType = "bfloat16"
    """Type of the weights, and so of the computation."""


def _check(options: DeepSeek7bOptions) -> Iterable[Problem]:
    yield from check_path(options.path)
    yield from problems(None, options.path, options.revision)


def _tokenizer(options: DeepSeek7bOptions) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    # The published files call a byte-level tokenizer a Llama one. transformers 5 would rebuild it as that, with
    # SentencePiece's rules, and lose spaces and line ends; this class takes tokenizer.json as it is.
    if options.path is not None:
        tokenizer = load_tokenizer(str(options.path), PreTrainedTokenizerFast)
    else:
        tokenizer = load_tokenizer(options.id, PreTrainedTokenizerFast, revision=options.revision)
    for what, expected, found in (
        ("begin-of-text", BEGIN, tokenizer.bos_token),
        ("end-of-text", END, tokenizer.eos_token),
    ):
        if found != expected:
            raise ModelError(
                f"not DeepSeek-LLM 7B: its {what} token is {expected!r}, this tokenizer's is {found!r}. "
                'For another model, use = "hf"'
            )
    tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = named("deepseek-llm")  # the chat model's, for the base model, which has none
    return tokenizer


def _checked_source(options: DeepSeek7bOptions) -> tuple[str, dict[str, Any]]:
    """Where the model is, once its configuration is known to be the published one's. Raises `ModelError`."""
    from transformers import AutoConfig

    source = str(options.path) if options.path else options.id
    arguments = {} if options.path else {"revision": options.revision}
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **arguments)
    except Exception as error:  # the hub's client raises kinds of its own
        raise ModelError(f"the configuration of {source} cannot be loaded: {first_line(error)}") from error
    for key, expected in SHAPE.items():
        found = getattr(config, key, None)
        if found != expected:
            raise ModelError(
                f'{source} is not DeepSeek-LLM 7B: its {key} is {expected}, not {found}. For another model, use = "hf"'
            )
    return source, arguments


def _model(options: DeepSeek7bOptions, device: torch.device) -> PreTrainedModel:
    source, arguments = _checked_source(options)
    return load_model(source, options.dtype, device, **arguments)


def _plain(options: DeepSeek7bOptions, device: torch.device) -> PreTrainedModel:
    source, arguments = _checked_source(options)
    return load_plain(source, options.dtype, device, **arguments)


def _quantized(
    options: DeepSeek7bOptions, device: torch.device, quantization: QuantizationConfigMixin
) -> PreTrainedModel:
    source, arguments = _checked_source(options)
    return load_model(source, options.dtype, device, quantization_config=quantization, **arguments)


def _built(options: DeepSeek7bOptions) -> PreTrainedModel:
    from transformers import LlamaConfig

    if options.path is not None:
        source, arguments = _checked_source(options)
        return build_model(source, options.dtype, **arguments)
    known: dict[str, Any] = {key: value for key, value in SHAPE.items() if key != "model_type"}
    return build_model(LlamaConfig(**known), options.dtype)  # it is pinned here: nothing need be fetched


def _fingerprint(options: DeepSeek7bOptions) -> str | None:
    return of_hub(options.id, options.revision) if options.path is None else of_directory(options.path)


@hookimpl
def ft_model_loaders() -> Iterable[ModelLoader[DeepSeek7bOptions]]:
    """Offer the loader."""
    yield ModelLoader(
        name="deepseek-7b",
        summary="DeepSeek-LLM 7B, base or chat, checked to be that model",
        options=DeepSeek7bOptions,
        load_tokenizer=_tokenizer,
        load_model=_model,
        build_model=_built,
        load_quantized=_quantized,
        load_plain=_plain,
        stored=lambda options: stored(None, options.path, options.revision, options.dtype),  # the hub's is plain
        fingerprint=_fingerprint,
        files=lambda options: on_this_machine(options.id, options.path, options.revision),
        check=_check,
    )
