"""Adapter `none`: full fine-tuning, every parameter trains."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fitune import Adapter, NoOptions, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _attach(options: NoOptions, model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(True)
    return model


def _save(model: PreTrainedModel, directory: Path) -> None:
    model.save_pretrained(str(directory))


@hookimpl
def ft_adapters() -> Iterable[Adapter[NoOptions]]:
    """Offer the adapter."""
    yield Adapter(
        name="none",
        summary="Full fine-tuning: every parameter trains",
        options=NoOptions,
        attach=_attach,
        save=_save,
        directory="model",
    )
