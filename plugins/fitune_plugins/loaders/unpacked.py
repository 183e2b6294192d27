"""A checkpoint of GPTQ or AWQ as a plain model, without the package that made it: what a merge begins with."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

from fitune import ModelError
from fitune_plugins.loaders.loading import CODE, DType, build_model, cause_of, must_be_whole
from fitune_plugins.loaders.quantized import without_quantization
from fitune_plugins.loaders.remote_code import must_name_no_kernel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_plain(source: str, dtype: DType, device: torch.device, **arguments: Any) -> PreTrainedModel:
    """The model of a checkpoint in GPTQ or AWQ, its weights plain ones with the numbers that its layers compute with.

    It has the type, or float32 where that cannot hold them: AWQ's compute in float16, whatever the model's type is.
    Reads no quantiser's package. Raises `ModelError`.
    """
    import torch
    from transformers import AutoConfig, GenerationConfig

    from fitune_plugins.loaders.packed_weights import plain_weights

    must_name_no_kernel(source, arguments)
    code = {"trust_remote_code": False, **{k: v for k, v in arguments.items() if k in CODE}}
    try:
        config = AutoConfig.from_pretrained(source, **{**code, **arguments})
        values = without_quantization(config) or {}
        kind: Any = type(build_model(config, dtype, **code))
        own = torch.float32 if values.get("quant_method") == "awq" and dtype == "bfloat16" else getattr(torch, dtype)
        weights = plain_weights(source, values, getattr(torch, dtype), **arguments)
        model, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=own,
            device_map={"": device},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except ModelError:
        raise
    except Exception as error:  # the hub's client, JSON and each architecture raise kinds of their own
        raise ModelError(f"the model {source} cannot be loaded: {cause_of(error)}") from error
    must_be_whole(source, model, found)
    with contextlib.suppress(OSError, ValueError):  # a model need not have such settings
        model.generation_config = GenerationConfig.from_pretrained(source, **arguments)
    model.name_or_path = source
    return cast("PreTrainedModel", model)
