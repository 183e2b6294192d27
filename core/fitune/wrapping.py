"""The transformers model inside the wrapper that an adapter may have put around it."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside peft's wrapper, its layers adapted; a model without a wrapper as it is."""
    get = getattr(model, "get_base_model", None)
    inner = model if get is None else get()
    assert isinstance(inner, PreTrainedModel)
    return inner
