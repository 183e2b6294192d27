"""The weights of adapters, put into those of the layers that they adapt: of LoRA W + scaling * B A, in float32.

peft's own merge computes in the type of the weights: in bfloat16, much of what was learnt is below the last digit of
what it is added to. Here each layer is merged in float32, by peft, and cast once; one layer at a time is that large.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

from fitune import ModelError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel


def merge(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model inside peft's wrapper, its adapters merged; adapted layers get the type. Raises `ModelError`."""
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, TrainableTokensLayer):
            continue  # its rows are put where they belong, which is exact in any type
        if isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer"):
            _untie(model, module.get_base_layer())
            _merge_layer(name, cast("nn.Module", module), dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        # The layers are done: this takes the wrappers away, and puts modules that were trained whole into their places.
        return cast("PreTrainedModel", cast("PeftModel", model).merge_and_unload(safe_merge=True))


def _merge_layer(name: str, layer: nn.Module, dtype: torch.dtype) -> None:
    tuned = cast(Any, layer)
    layer.float()
    try:
        tuned.merge(safe_merge=True)
    except (ValueError, RuntimeError) as error:  # numbers that are none, a bias that has no place
        raise ModelError(f"the adapter of {name} cannot be merged: {' '.join(str(error).split())}") from error
    for parameter in tuned.get_base_layer().parameters():
        parameter.data = parameter.data.to(dtype)


def _untie(model: PreTrainedModel, layer: nn.Module) -> None:
    """Give an adapted layer a weight of its own, where it has another's (tied embeddings): that one is not adapted."""
    from torch import nn

    inner = cast("PreTrainedModel", cast("PeftModel", model).get_base_model())
    for key, weight in list(layer.named_parameters(recurse=False)):
        users = [one for one in inner.modules() if any(p is weight for p in one.parameters(recurse=False))]
        if len(users) > 1:
            setattr(layer, key, nn.Parameter(weight.detach().clone(), requires_grad=False))
            inner.config.tie_word_embeddings = False
            inner.config.get_text_config().tie_word_embeddings = False
