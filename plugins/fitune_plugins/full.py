"""Adapter `none`: full fine-tuning, every parameter trains."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fitune import Adapter, NoOptions, hookimpl

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


def _attach(options: NoOptions, model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(True)
    return model


def _save(model: PreTrainedModel, directory: Path) -> None:
    _mend_generation_settings(model)
    model.save_pretrained(str(directory))


def _mend_generation_settings(model: PreTrainedModel) -> None:
    """Settings that transformers loads with a warning, it may refuse to save, and all that was trained with them."""
    from transformers import GenerationConfig

    settings = model.generation_config
    if settings is None or _is_valid(settings):
        return
    settings.do_sample = True  # some models give a temperature, but not this, which alone makes it count
    if not _is_valid(settings):
        model.generation_config = GenerationConfig(eos_token_id=settings.eos_token_id)


def _is_valid(settings: GenerationConfig) -> bool:
    try:
        settings.validate(strict=True)
    except ValueError:
        return False
    return True


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
