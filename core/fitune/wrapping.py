"""A model as the core meets it: perhaps inside the wrapper of an adapter, perhaps without values."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside peft's wrapper, its layers adapted; a model without a wrapper as it is."""
    get = getattr(model, "get_base_model", None)
    inner = model if get is None else get()
    assert isinstance(inner, PreTrainedModel)
    return inner


def has_values(model: nn.Module) -> bool:
    """Whether the model's weights are numbers: in a forecast they have shapes alone, and a question to them fails."""
    return not any(parameter.is_meta for parameter in model.parameters())
