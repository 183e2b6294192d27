"""Adapter `output-scales`: a factor for each output of linear layers, after IA3 (arXiv 2205.05638)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune import Adapter, ModelError, Problem, hookimpl, unwrapped

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

FILE = "output_scales.safetensors"
SCALE, OFF, HOOK = "output_scale", "output_scale_is_off", "output_scale_hook"
"""Attributes of a layer: its factors less one, whether they are left out for a while, and what multiplies by them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputScalesOptions:
    """Options of the adapter `output-scales`."""

    targets: tuple[str, ...] = ("k_proj", "v_proj", "up_proj")
    """Last parts of the names of linear layers, e.g. "k_proj"."""


def attach(options: OutputScalesOptions, model: PreTrainedModel) -> PreTrainedModel:
    """Freeze the model, and multiply outputs by factors that begin with 1. Raises `ModelError` where there are none."""
    import torch
    from torch import nn

    model.requires_grad_(False)
    layers = [
        layer
        for name, layer in unwrapped(model).named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in options.targets
    ]
    if not layers:
        raise ModelError(
            f"output-scales: {type(model).__name__} has no linear layer called {' or '.join(options.targets)}. Name "
            "others in [adapter] targets"
        )
    for layer in layers:
        # In float32, whatever the weights are: so few numbers cost nothing, and small updates are kept.
        added = torch.zeros(layer.out_features, dtype=torch.float32, device=layer.weight.device)
        layer.register_parameter(SCALE, nn.Parameter(added))
        setattr(layer, OFF, False)
        setattr(layer, HOOK, layer.register_forward_hook(_scaled))
    return model


def save(model: PreTrainedModel, directory: Path) -> None:
    """Write the factors, each under its layer's name."""
    from safetensors.torch import save_file

    save_file({name: scale.detach().cpu().contiguous() for name, _, scale in _scales(model)}, directory / FILE)


def fill(options: OutputScalesOptions, model: PreTrainedModel, directory: Path) -> None:
    """Put what was saved where an attached model trains. Raises `ModelError` where anything is missing."""
    import torch
    from safetensors.torch import load_file

    if not (directory / FILE).is_file():
        raise ModelError(f"{directory} holds no {FILE}")
    saved = load_file(directory / FILE)
    missing = [name for name, _, scale in _scales(model) if name not in saved or saved[name].shape != scale.shape]
    if missing:
        raise ModelError(
            f"{directory / FILE} has no factors for {missing[0]}. It is of another model, or other targets"
        )
    with torch.no_grad():
        for name, _, scale in _scales(model):
            scale.copy_(saved[name])


def load(options: OutputScalesOptions, model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """Give a base what was saved, frozen."""
    model = attach(options, model)
    fill(options, model, directory)
    model.requires_grad_(False)
    return model


def merge(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Multiply weights and biases by the factors in float32, cast once, and leave nothing of the adapter."""
    import torch

    with torch.no_grad():
        for _, layer, scale in list(_scales(model)):
            factor = 1 + scale
            layer.weight.data = (layer.weight.float() * factor[:, None]).to(dtype)
            if layer.bias is not None:
                layer.bias.data = (layer.bias.float() * factor).to(dtype)
            getattr(layer, HOOK).remove()
            for attribute in (SCALE, OFF, HOOK):
                delattr(layer, attribute)
    return model


@contextmanager
def off(model: PreTrainedModel) -> Iterator[None]:
    """Have an attached model be its base for a while."""
    layers = [layer for _, layer, _ in _scales(model)]
    for layer in layers:
        setattr(layer, OFF, True)
    try:
        yield
    finally:
        for layer in layers:
            setattr(layer, OFF, False)


def told(options: OutputScalesOptions, model: PreTrainedModel) -> Iterable[str]:
    """Say how many layers it found."""
    yield f"output-scales: factors for the outputs of {len(list(_scales(model)))} linear layers"


def check(options: OutputScalesOptions) -> Iterable[Problem]:
    """Look whether any layer is named."""
    if not options.targets:
        yield Problem(key="targets", what='"targets" names no layer', fix='E.g. targets = ["k_proj", "v_proj"]')


def _scaled(layer: nn.Module, given: object, output: Tensor) -> Tensor:
    """A forward hook: the output times its factors, in the output's type."""
    if getattr(layer, OFF):
        return output
    scale: Tensor = getattr(layer, SCALE)
    return output * (1 + scale).to(output.dtype)


def _scales(model: PreTrainedModel) -> Iterator[tuple[str, Any, Tensor]]:
    """Each layer that has factors, with its name and them."""
    for name, layer in unwrapped(model).named_modules():
        scale = getattr(layer, SCALE, None)
        if scale is not None:
            yield name, layer, scale


@hookimpl
def ft_adapters() -> Iterable[Adapter[OutputScalesOptions]]:
    """Offer the adapter."""
    yield Adapter(
        name="output-scales",
        summary="A factor for each output of some linear layers (IA3's way): a few thousand numbers train",
        options=OutputScalesOptions,
        attach=attach,
        save=save,
        load=load,
        fill=fill,
        merge=merge,
        off=off,
        told=told,
        check=check,
    )
