"""Model loader `hf`: any causal language model that transformers loads, from the hub or a directory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune import Lever, ModelLoader, Problem, Recipe, hookimpl
from fitune_plugins.loaders.fingerprint import of_directory, of_hub
from fitune_plugins.loaders.loading import DType, build_model, check_path, load_model, load_tokenizer
from fitune_plugins.loaders.quantized import problems, stored
from fitune_plugins.loaders.remote_code import code_arguments, code_problems
from fitune_plugins.loaders.unpacked import load_plain
from fitune_plugins.loaders.weight_files import on_this_machine

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.quantization_config import QuantizationConfigMixin


@dataclass(frozen=True, slots=True, kw_only=True)
class HfOptions:
    """Options of the loader `hf`."""

    id: str | None = None
    """Name on the hub, e.g. "Qwen/Qwen2.5-1.5B". Give this or `path`."""
    path: Path | None = None
    """Directory with config, weights and tokenizer, used in place of the hub."""
    revision: str = "main"
    """Branch, tag or commit on the hub; the commit that it stands for is recorded with the run."""
    trust_remote_code: bool = False
    """Let the model run Python code of its own repository. The command line must repeat it, each time, with
    `--trust-remote-code`, and `revision` must be a commit."""
    code_revision: str | None = None
    """With `trust_remote_code`, the commit of that code, where it is in another repository."""
    dtype: DType = "bfloat16"
    """Type of the weights, and so of the computation."""


def _check(options: HfOptions) -> Iterable[Problem]:
    if options.id is None and options.path is None:
        yield Problem(key="id", what='neither "id" nor "path" is given', fix='Name a model, e.g. "Qwen/Qwen2.5-1.5B"')
    yield from check_path(options.path)
    yield from problems(options.id, options.path, options.revision)
    yield from code_problems(
        options.id, options.path, options.revision, options.code_revision, options.trust_remote_code
    )


def _hub(options: HfOptions) -> tuple[str, dict[str, Any]]:
    code = code_arguments(options.path, options.revision, options.code_revision, options.trust_remote_code)
    return (str(options.path), code) if options.path else (str(options.id), {"revision": options.revision, **code})


def _tokenizer(options: HfOptions) -> PreTrainedTokenizerBase:
    source, arguments = _hub(options)
    return load_tokenizer(source, **arguments)


def _model(options: HfOptions, device: torch.device) -> PreTrainedModel:
    source, arguments = _hub(options)
    return load_model(source, options.dtype, device, **arguments)


def _plain(options: HfOptions, device: torch.device) -> PreTrainedModel:
    source, arguments = _hub(options)
    return load_plain(source, options.dtype, device, **arguments)


def _quantized(options: HfOptions, device: torch.device, quantization: QuantizationConfigMixin) -> PreTrainedModel:
    source, arguments = _hub(options)
    return load_model(source, options.dtype, device, quantization_config=quantization, **arguments)


def _built(options: HfOptions) -> PreTrainedModel:
    source, arguments = _hub(options)
    return build_model(source, options.dtype, **arguments)


def _fingerprint(options: HfOptions) -> str | None:
    if options.path is not None:
        return of_directory(options.path, code=options.trust_remote_code)
    return of_hub(str(options.id), options.revision)


@hookimpl
def ft_model_loaders() -> Iterable[ModelLoader[HfOptions]]:
    """Offer the loader."""
    yield ModelLoader(
        name="hf",
        summary="Any causal language model of transformers, from the hub or a directory",
        options=HfOptions,
        load_tokenizer=_tokenizer,
        load_model=_model,
        build_model=_built,
        load_quantized=_quantized,
        load_plain=_plain,
        stored=lambda options: stored(options.id, options.path, options.revision, options.dtype),
        fingerprint=_fingerprint,
        files=lambda options: on_this_machine(options.id, options.path, options.revision),
        check=_check,
    )


@hookimpl
def ft_levers(recipe: Recipe) -> Iterable[Lever]:
    """Weights of half the size, for any loader whose table has a `dtype`."""
    if getattr(recipe.model.options, "dtype", None) == "float32":
        yield Lever(name="model in bfloat16", changes=(("model.dtype", "bfloat16"),), exact=False)
