"""Checkpoints whose weights are quantised already: by what, which packages that needs, how they load and are forecast.

What a model's `config.json` says as `quantization_config` goes one of two ways. bitsandbytes' layers, and those of
packages such as GPTQModel, stay quantised, and adapters train on top of them. FP8, MXFP4 and compressed-tensors become
plain weights of the recipe's type as they are read, on every machine alike: their kernels are compiled code of the hub,
or have no gradient, or unpack the weights at the first step.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune import ModelError, Problem, Recipe, StoredQuantization, hookimpl
from fitune_plugins.loaders.bitsandbytes_layers import check_bitsandbytes, compute_in, quantize_shapes
from fitune_plugins.loaders.quantization_methods import Method, Values, key_of, method_of, unpacks
from fitune_plugins.text_files import json_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.utils.quantization_config import QuantizationConfigMixin

KEY = "quantization_config"

TRAINABLE = "auto_trainable"
"""What asks GPTQModel for layers that have a gradient."""


def values_in(config: Values) -> Values | None:
    """What a configuration, as JSON has it, says of the checkpoint's quantisation; None for a plain one."""
    for place in (config, config.get("text_config")):
        values = place.get(KEY) if isinstance(place, Mapping) else None
        if isinstance(values, Mapping) and values:
            return values
    return None


def values_at(id: str | None, path: Path | None, revision: str, *, fetch: bool) -> Values | None:
    """The same of a directory or of the hub, whose file is fetched only if that is said; None where it is not there."""
    file = path / "config.json" if path is not None else None if id is None else _of_hub(id, revision, fetch)
    if file is None:
        return None
    try:
        config = json_of(file)
    except (OSError, ValueError):  # whoever loads it says what is wrong with it
        return None
    return values_in(config) if isinstance(config, dict) else None


def _of_hub(id: str, revision: str, fetch: bool) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(id, "config.json", revision=revision)
    if isinstance(found, str):
        return Path(found)
    return _fetched(id, revision) if fetch else None


@functools.cache
def _fetched(id: str, revision: str) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(id, "config.json", revision=revision))
    except Exception:  # the hub's client raises kinds of its own, and whoever loads the model says what is wrong
        return None


def stored(id: str | None, path: Path | None, revision: str, dtype: str) -> StoredQuantization | None:
    """How the weights of a checkpoint are stored, for `ModelLoader.stored`."""
    values = values_at(id, path, revision, fetch=True)
    if values is None:
        return None
    method = method_of(values)
    what = f"the checkpoint is quantised ({method.name})"
    if method.plain:
        notice = f"{what}: its weights become {dtype} as they are read, and take the memory of that"
        if not any(method.reading):
            notice += "; what unpacking them takes on the way is not in the forecast"
    elif method.rounds_inputs:
        notice = f"{what}: its layers round their inputs to 8 bits, and compute in float16"
    else:
        notice = f"{what}, and stays so: what is trained is an adapter of the quantised model"
    return StoredQuantization(
        name=method.name,
        kept=not method.plain,
        dequantizes=method.plain or method.built or unpacks(values),
        unpacks=unpacks(values),
        missing=", ".join(by for _, by in missing_of(method)),
        rounds_inputs=method.rounds_inputs,
        reading=method.reading[dtype == "float32"],
        notice=notice,
    )


# ------------------------------------------------------------------------------------------------------- with values
def arguments_for(source: str, arguments: Mapping[str, Any]) -> dict[str, QuantizationConfigMixin]:
    """What transformers must be told to load a checkpoint as it is trained on."""
    from transformers import PreTrainedConfig

    if "gguf_file" in arguments or KEY in arguments:
        return {}
    try:
        config, _ = PreTrainedConfig.get_config_dict(source, **arguments)
    except Exception:  # whoever loads it says what is wrong with it
        return {}
    values = values_in(config)
    method = None if values is None else method_of(values)
    if values is None or method is None or not (method.plain or method.packed):
        return {}
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    kind: Any = AUTO_QUANTIZATION_CONFIG_MAPPING[key_of(values)]
    if method.packed:  # by itself, GPTQModel takes its fastest layers, which have no gradient
        own = values.get("backend") in (None, "auto", "autoawq")
        return {KEY: kind.from_dict({**values, "backend": TRAINABLE})} if own else {}
    return {KEY: kind.from_dict({**values, "dequantize": True})}


def must_have_packages(source: str, arguments: Mapping[str, Any]) -> None:
    """Raise `ModelError` if what `arguments_for` gives asks for layers of a package that is not installed."""
    asked = arguments.get(KEY)
    method = None if asked is None else method_of(asked.to_dict())
    missing = [] if method is None else missing_of(method)
    if method is not None and missing:
        raise ModelError(
            f"the model {source} cannot be loaded: it is quantised by {method.name}, and the package {missing[0][0]} "
            f"is not installed. Install it: pip install {missing[0][1]}"
        )


def dequantises(arguments: Mapping[str, Any]) -> bool:
    """Whether transformers is told, by what `arguments_for` gives, to make plain weights of quantised ones."""
    return bool(getattr(arguments.get(KEY), "dequantize", False))


def make_trainable(model: PreTrainedModel, dtype: torch.dtype, *, plain: bool) -> None:
    """Have a model that was read from a quantised checkpoint compute in this type; `plain` if it is dequantised by now.

    Raises `ModelError` for one that adapters cannot train on.
    """
    import logging

    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is None and not plain:
        return
    _cast(model, dtype)
    if quantizer is None:
        return
    name = method_of(quantizer.quantization_config.to_dict()).name
    if not quantizer.is_trainable:
        raise ModelError(f"a checkpoint quantised by {name} cannot be trained on. Load another checkpoint of the model")
    if name.startswith("bitsandbytes"):
        compute_in(model, dtype)
        # It tells, of each layer in each step, that inputs become float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give weights that are not quantised the type: transformers leaves those of a quantised checkpoint as stored."""
    import torch
    from torch import nn

    high = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        high |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        stored = type(parameter) is nn.Parameter and parameter.dtype in (torch.float32, torch.float16, torch.bfloat16)
        if stored and parameter.dtype != dtype and high.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)


# ---------------------------------------------------------------------------------------------------- without values
def without_quantization(config: PreTrainedConfig) -> Values | None:
    """Take what a configuration says of quantisation out of it, and give it."""
    for place in (config, config.get_text_config()):
        values = getattr(place, KEY, None)
        if values:
            delattr(place, KEY)
            return values if isinstance(values, Mapping) else dict(values.to_dict())
    return None


def with_shapes(model: PreTrainedModel, values: Values) -> None:
    """Quantise a model without values as its checkpoint is. Raises `ModelError` where that cannot be forecast."""
    method = method_of(values)
    missing = missing_of(method)
    if missing:
        raise ModelError(
            f"a checkpoint quantised by {method.name} cannot be forecast: its quantiser needs the package "
            f"{missing[0][0]}, which is not installed. Install it: pip install {missing[0][1]}"
        )
    if method.plain:
        return
    if method.packed:
        from fitune_plugins.loaders.packed_shapes import pack_shapes

        pack_shapes(model, values)
        return
    if not method.built:
        raise ModelError(
            f"a checkpoint quantised by {method.name} cannot be forecast: its layers are compiled code, which does not "
            "tell without values what it takes"
        )
    from transformers import BitsAndBytesConfig

    quantize_shapes(model, BitsAndBytesConfig.from_dict(dict(values)))
    compute_in(model, model.dtype)


# ------------------------------------------------------------------------------------------------------------ checks
def missing_of(method: Method) -> list[tuple[str, str]]:
    """The packages that a way to quantise needs and that are not installed, with what pip installs them by."""
    return [(module, by) for module, by in method.packages if not _is_there(module)]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in is not there
        return False


def problems(id: str | None, path: Path | None, revision: str) -> Iterable[Problem]:
    """Packages that a checkpoint needs; of the hub, only one that was fetched before is looked at."""
    values = values_at(id, path, revision, fetch=False)
    if values is None:
        return
    method = method_of(values)
    key = "path" if path is not None else "id"
    for module, by in missing_of(method):
        what = f"the checkpoint is quantised by {method.name}, and the package {module} is not installed"
        fix, to_run = f"Install it: pip install {by}", module == "bitsandbytes"
        yield Problem(key=key, what=what, fix=fix, to_train=unpacks(values), to_run=to_run)
    if "bitsandbytes" in dict(method.packages) and not missing_of(method):
        yield from (replace(one, key=key) for one in check_bitsandbytes(None))


def name_of_stored(recipe: Recipe) -> str | None:
    """What quantised the recipe's checkpoint, as far as that is known before anything is fetched; None for nothing."""
    options = recipe.model.options
    if recipe.model.record.stored is None:
        return None
    id, path, revision = (getattr(options, key, None) for key in ("id", "path", "revision"))
    values = values_at(id, path, revision or "main", fetch=False)
    return None if values is None else method_of(values).name


@hookimpl
def ft_check(recipe: Recipe) -> Iterable[Problem]:
    """Refuse to train weights that are quantised already."""
    name = name_of_stored(recipe) if recipe.adapter.record.name == "none" else None
    if name is not None:
        yield Problem(
            key="adapter.use",
            what=f'"none" trains every weight, but those of the checkpoint are quantised ({name})',
            fix='Name an adapter, e.g. "lora", or load a checkpoint that is not quantised',
        )
