"""Adapter `sample`: trains a vector that is added to the last layer norm's weight, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from fitune import Adapter, ModelError, hookimpl

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

FILE, KEY = "sample.safetensors", "added"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """Options of the adapter `sample`."""

    start: Annotated[float, Ge(0)] = 0.0
    """Every number of the vector before training."""


def attach(options: SampleOptions, model: PreTrainedModel) -> PreTrainedModel:
    """Freeze the model, and add the vector."""
    import torch
    from torch import nn
    from torch.nn.utils import parametrize

    class Added(nn.Module):
        def __init__(self, size: int, like: Tensor) -> None:
            super().__init__()
            self.added = nn.Parameter(torch.full((size,), options.start, dtype=like.dtype, device=like.device))
            self.off = False

        def forward(self, weight: Tensor) -> Tensor:
            return weight if self.off else weight + self.added

    model.requires_grad_(False)
    norm = _norm(model)
    parametrize.register_parametrization(norm, "weight", Added(norm.weight.numel(), norm.weight))
    norm.parametrizations.weight.original.requires_grad_(False)
    return model


def save(model: PreTrainedModel, directory: Path) -> None:
    """Write the vector."""
    from safetensors.torch import save_file

    save_file({KEY: _added(model).added.detach().cpu().contiguous()}, directory / FILE)


def fill(options: SampleOptions, model: PreTrainedModel, directory: Path) -> None:
    """Put what was saved where an attached model trains."""
    import torch
    from safetensors.torch import load_file

    if not (directory / FILE).is_file():
        raise ModelError(f"{directory} holds no {FILE}")
    with torch.no_grad():
        _added(model).added.copy_(load_file(directory / FILE)[KEY])


def load(options: SampleOptions, model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """Give a base what was saved, frozen."""
    model = attach(options, model)
    fill(options, model, directory)
    model.requires_grad_(False)
    return model


def merge(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Make it part of the weight, and cast once."""
    from torch.nn.utils import parametrize

    norm = _norm(model)
    norm.float()
    parametrize.remove_parametrizations(norm, "weight", leave_parametrized=True)
    norm.weight.requires_grad_(False)
    norm.to(dtype)
    return model


@contextmanager
def off(model: PreTrainedModel) -> Iterator[None]:
    """Have an attached model be its base for a while."""
    added = _added(model)
    added.off = True
    try:
        yield
    finally:
        added.off = False


def _norm(model: PreTrainedModel) -> Any:
    """The norm behind the last layer. Raises `ModelError`."""
    norm = getattr(model.base_model, "norm", None)
    if norm is None:
        raise ModelError(f"sample: {type(model).__name__} has no norm behind its last layer that is known")
    return norm


def _added(model: PreTrainedModel) -> Any:
    return _norm(model).parametrizations.weight[0]


@hookimpl
def ft_adapters() -> Iterable[Adapter[SampleOptions]]:
    """Offer the adapter."""
    yield Adapter(
        name="sample",
        summary="Trains a vector that is added to the last norm's weight",
        options=SampleOptions,
        attach=attach,
        save=save,
        load=load,
        fill=fill,
        merge=merge,
        off=off,
    )
