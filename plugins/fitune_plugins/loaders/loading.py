"""Models and tokenizers by transformers, for every loader: read, or built on the meta device; what is wrong with them.

What comes from another library's loading is told in one line, as a `ModelError`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fitune import ModelError, Problem
from fitune_plugins.loaders.quantized import (
    arguments_for,
    dequantises,
    make_trainable,
    must_have_packages,
    with_shapes,
    without_quantization,
)
from fitune_plugins.loaders.remote_code import NEEDED, must_name_no_kernel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CODE = ("trust_remote_code", "code_revision")
"""What transformers is told of code that comes with a model."""

DType = Literal["bfloat16", "float16", "float32"]


def load_tokenizer(source: str, kind: type[Any] | None = None, **arguments: Any) -> PreTrainedTokenizerBase:
    """A fast tokenizer with a pad token, by `AutoTokenizer` or the given class. Raises `ModelError`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    try:
        tokenizer = (kind or AutoTokenizer).from_pretrained(source, **{"trust_remote_code": False, **arguments})
    except Exception as error:  # tokenizers, the hub's client and JSON each raise kinds of their own
        raise ModelError(f"the tokenizer of {source} cannot be loaded: {cause_of(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {source} has no fast version, which masks are made with")
    if tokenizer.pad_token_id is None:
        # Safe though it is a real token too: labels come from where the text is trained on, never from token ids.
        if tokenizer.eos_token is None:
            raise ModelError(f"the tokenizer of {source} has neither a pad nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    source: str, dtype: DType, device: torch.device, *, scores: bool = False, **arguments: Any
) -> PreTrainedModel:
    """A causal language model straight on its device; with `scores`, one that gives a text a score. Raises
    `ModelError`.

    Safetensors are preferred; `.bin` files of old repositories go through torch's weights-only unpickler, which runs
    no code. No request to convert the repository is sent to the hub on the way. A weight that is missing or
    of another shape is an error: transformers would make a random one up and go on.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

    must_name_no_kernel(source, arguments)
    plain = arguments_for(source, arguments)
    must_have_packages(source, plain)
    try:
        kind: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
        load = kind.from_pretrained
        # Threads would lay quantised weights on the card faster than they become plain ones there.
        one_by_one = {"HF_DEACTIVATE_ASYNC_LOAD": "1"} if dequantises(plain) else {}
        with _environment({"DISABLE_SAFETENSORS_CONVERSION": "1", **one_by_one}):
            model, found = load(
                source,
                dtype=getattr(torch, dtype),
                device_map={"": device},
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **{"trust_remote_code": False, **plain, **arguments},
            )
    except pickle.UnpicklingError as error:
        # torch's own message tells how to switch the safe unpickler off: not here.
        raise ModelError(
            f"the model {source} cannot be loaded: its .bin file is damaged, or holds more than weights, which is not "
            "run here. Get a copy with safetensors"
        ) from error
    except Exception as error:  # safetensors, the hub's client and torch each raise kinds of their own
        raise ModelError(f"the model {source} cannot be loaded: {cause_of(error)}") from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{source} is an adapter, whose base no recipe names. Merge it into its base, and load that")
    assert isinstance(model, PreTrainedModel)
    must_be_whole(source, model, found)
    settle_attention(model)
    if "gguf_file" not in arguments:
        make_trainable(model, getattr(torch, dtype), plain=bool(plain))
    return model


def must_be_whole(source: str, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Raise `ModelError` if, by what transformers tells of loading it, a model has not got all of its weights."""
    wrong = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"]), *_misshapen(model)})
    if wrong:
        raise ModelError(
            f"the model {source} cannot be loaded: {len(wrong)} of its weights are not in its files, or of another "
            f"shape, e.g. {wrong[0]}. Get a whole copy"
        )


def settle_attention(model: PreTrainedModel) -> None:
    """Have a model that changes its attention for good at its first short batch (BigBird) begin with that one.

    Otherwise what it computes depends on the batches that it has seen, and a run that goes on is another.
    """
    for module in model.modules():
        change: Any = getattr(module, "set_attention_type", None)
        if change is not None and getattr(module, "attention_type", None) == "block_sparse":
            change("original_full")
            model.config.attention_type = "original_full"


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables of the process' environment for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _misshapen(model: PreTrainedModel) -> Iterable[str]:
    """Quantised weights that were of another shape in the files: transformers looks at the others' alone."""
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and tuple(state.shape) != (module.out_features, module.in_features):
            yield f"{name}.weight"


def build_model(source: str | PreTrainedConfig, dtype: DType, **arguments: Any) -> PreTrainedModel:
    """The model on the meta device, by its configuration, which is all that is read. Raises `ModelError`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

    code = {"trust_remote_code": False, **{k: v for k, v in arguments.items() if k in CODE}}
    try:
        if isinstance(source, str):
            must_name_no_kernel(source, arguments)
            config = AutoConfig.from_pretrained(source, **{**code, **arguments})
        else:
            config = source
        quantization = None if "gguf_file" in arguments else without_quantization(config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), **code)
    except ModelError:
        raise
    except Exception as error:  # the hub's client, JSON and each architecture raise kinds of their own
        raise ModelError(f"the configuration of {source} cannot be loaded: {cause_of(error)}") from error
    assert isinstance(model, PreTrainedModel)
    settle_attention(model)
    if quantization is not None:
        with_shapes(model, quantization)
    model.eval()
    return model


def check_path(path: Path | None) -> Iterable[Problem]:
    """A model directory must be there and hold a config."""
    if path is not None and not path.is_dir():
        yield Problem(key="path", what=f"no such directory: {path}", fix="Give a directory that holds a model")
    elif path is not None and (path / "adapter_config.json").is_file():
        # transformers would load it, and fetch the base that it names.
        yield Problem(key="path", what=f"{path} is an adapter", fix="Merge it into its base, and name that: ft merge")
    elif path is not None and not (path / "config.json").is_file():
        yield Problem(key="path", what=f"no config.json in {path}", fix="Give a directory that holds a model")
    elif path is not None and (odd := _no_file(path)) is not None:
        yield Problem(key="path", what=f"{odd} is no file", fix="Get a whole copy of the model")


def _no_file(directory: Path) -> Path | None:
    """What of a model's directory is a pipe, a device or a socket, which whoever opens it would wait for."""
    return next((place for place in sorted(directory.iterdir()) if place.exists() and not _is_plain(place)), None)


def _is_plain(place: Path) -> bool:
    return place.is_file() or place.is_dir()


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def cause_of(error: BaseException) -> str:
    """The same, in this project's words where it is about code that is not run."""
    return NEEDED if "trust_remote_code" in str(error) else first_line(error)
