"""Model loader `sample`: a Llama of random weights, of the size that its options say, with a directory's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from fitune import ModelError, ModelLoader, Problem, hookimpl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """Options of the loader `sample`."""

    tokenizer: Path
    """Directory of a tokenizer in transformers' form."""
    hidden: Annotated[int, Ge(16)] = 64
    """Width of the hidden states, a multiple of 16."""
    layers: Annotated[int, Ge(1)] = 2
    """Decoder layers."""
    seed: int = 0
    """Of the random weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights."""


def load_tokenizer(options: SampleOptions) -> PreTrainedTokenizerBase:
    """Read the tokenizer. Raises `ModelError`."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(options.tokenizer))
    except (OSError, ValueError) as error:
        raise ModelError(f"{options.tokenizer}: no tokenizer can be read: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(options: SampleOptions, device: torch.device) -> PreTrainedModel:
    """Make it on the host, equal at every call, and move it."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = _made(options)
    torch.nn.Module.eval(model)
    torch.nn.Module.to(model, device)
    return model


def build_model(options: SampleOptions) -> PreTrainedModel:
    """Make it without weights, for a forecast."""
    import torch

    with torch.device("meta"):
        model = _made(options)
    torch.nn.Module.eval(model)
    return model


def _made(options: SampleOptions) -> PreTrainedModel:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(options)
    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 16,
        num_key_value_heads=options.hidden // 16,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model: PreTrainedModel = LlamaForCausalLM(config)
    return model.type(getattr(torch, options.dtype))


def fingerprint(options: SampleOptions) -> str | None:
    """Say which weights would be made."""
    return f"random:{options.hidden}x{options.layers}:{options.seed}:{options.dtype}"


def check(options: SampleOptions) -> Iterable[Problem]:
    """Look at what can be known before anything is made."""
    if options.hidden % 16:
        yield Problem(key="hidden", what=f"{options.hidden} is no multiple of 16", fix="Give one")
    if not options.tokenizer.is_dir():
        yield Problem(key="tokenizer", what=f"there is no directory {options.tokenizer}", fix="Mend the path")


@hookimpl
def ft_model_loaders() -> Iterable[ModelLoader[SampleOptions]]:
    """Offer the loader."""
    yield ModelLoader(
        name="sample",
        summary="A Llama of random weights, of any size",
        options=SampleOptions,
        load_tokenizer=load_tokenizer,
        load_model=load_model,
        build_model=build_model,
        fingerprint=fingerprint,
        check=check,
    )
