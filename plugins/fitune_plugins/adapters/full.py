"""Adapter `none`: full fine-tuning, every parameter trains."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fitune import Adapter, ModelError, NoOptions, hookimpl, mend_generation_config
from fitune_plugins.loaders.hf import DType, first_line, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _attach(options: NoOptions, model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(True)
    return model


def _save(model: PreTrainedModel, directory: Path) -> None:
    mend_generation_config(model)
    model.save_pretrained(str(directory))


def _load(options: NoOptions, model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    if not any(directory.glob("*.safetensors")):
        raise ModelError(f"{directory} holds no .safetensors file, and no other kind is read. Give another checkpoint")
    dtype = cast(DType, str(model.dtype).removeprefix("torch."))
    trained = load_model(str(directory), dtype, model.device)
    try:
        model.load_state_dict(trained.state_dict(), strict=True, assign=True)
    except RuntimeError as error:  # torch's own message is as long as the model
        raise ModelError(f"{directory} holds another model than the recipe: {first_line(error)}") from error
    model.tie_weights()
    model.requires_grad_(False)
    model.eval()
    return model


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
        load=_load,
        merge=lambda model, dtype: model,
    )
