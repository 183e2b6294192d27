"""A model of fewer layers, whose trace takes a fraction of the time: a search extrapolates from it."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from fitune.errors import ModelError


def shorten(model: PreTrainedModel, layers: int) -> None:
    """Leave the first layers of a model that was just built. Raises `ModelError` where they cannot be told."""
    config: Any = model.config.get_text_config()
    total = config.num_hidden_layers
    stacks = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == total
    ]
    if not stacks or layers > total:
        raise ModelError(f"{type(model).__name__} has no list of {total} layers that could be shortened")
    for parent, name, child in stacks:
        setattr(parent, name, nn.ModuleList(list(child)[:layers]))
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == total:
            setattr(config, key, value[:layers])
    config.num_hidden_layers = layers
