"""Adapter `none`: full fine-tuning, every parameter trains."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fitune import Adapter, ModelError, NoOptions, added_modules, hookimpl, mend_generation_config
from fitune_plugins.loaders.loading import DType, first_line, load_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def _attach(options: NoOptions, model: PreTrainedModel) -> PreTrainedModel:
    if getattr(model, "is_quantized", False):
        raise ModelError(
            '"none" trains every weight, but those of the checkpoint are quantised. Name an adapter, e.g. "lora", '
            "or load a checkpoint that is not quantised"
        )
    model.requires_grad_(True)
    return model


def _save(model: PreTrainedModel, directory: Path) -> None:
    mend_generation_config(model)
    model.save_pretrained(str(directory))


def _must_be_safe(directory: Path) -> None:
    if not any(directory.glob("*.safetensors")):
        raise ModelError(f"{directory} holds no .safetensors file, and no other kind is read. Give another checkpoint")


def _gives_scores(config: Any) -> bool:
    return any("ForSequenceClassification" in name for name in config.architectures or ())


def _load_whole(options: NoOptions, directory: Path, device: torch.device) -> PreTrainedModel:
    from transformers import AutoConfig

    _must_be_safe(directory)
    try:
        config = AutoConfig.from_pretrained(str(directory), trust_remote_code=False)
    except Exception as error:  # transformers raises kinds of its own
        raise ModelError(f"{directory} cannot be loaded: {first_line(error)}. Give another checkpoint") from error
    dtype = cast(DType, str(config.dtype).removeprefix("torch."))  # that it was trained in
    model = load_model(str(directory), dtype, device, scores=_gives_scores(config))
    model.requires_grad_(False)
    model.eval()
    return model


def _load(options: NoOptions, model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    _fill(options, model, directory)
    model.requires_grad_(False)
    model.eval()
    return model


def _fill(options: NoOptions, model: PreTrainedModel, directory: Path) -> None:
    """Put the weights that were saved in place of the model's own. Raises `ModelError`."""
    _must_be_safe(directory)
    dtype, trains = cast(DType, str(model.dtype).removeprefix("torch.")), [p.requires_grad for p in model.parameters()]
    trained = load_model(str(directory), dtype, model.device, scores=bool(added_modules(model)))
    try:
        model.load_state_dict(trained.state_dict(), strict=True, assign=True)
    except RuntimeError as error:  # torch's own message is as long as the model
        raise ModelError(f"{directory} holds another model than the recipe: {first_line(error)}") from error
    model.tie_weights()
    for parameter, trained_one in zip(model.parameters(), trains, strict=True):
        parameter.requires_grad_(trained_one)


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
        load_whole=_load_whole,
        fill=_fill,
        merge=lambda model, dtype: model,
    )
