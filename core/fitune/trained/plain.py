"""A model that was read from a quantised checkpoint, as a plain one: with the numbers that it computes with."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from fitune.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from fitune.plugin.recipe import Recipe
    from fitune.plugin.strategy import Plan


def unpacks(plan: Plan) -> bool:
    """Whether it is the loader that gives the checkpoint's quantised weights as plain ones."""
    return plan.stored is not None and plan.stored.kept and plan.stored.unpacks


def unpacked_or_base(recipe: Recipe, plan: Plan, device: torch.device) -> PreTrainedModel:
    """The base as a plain model where its loader gives it so, or else as it is trained on. Raises `ModelError`."""
    from fitune.compose.calling import call_plugin
    from fitune.compose.model import base_model

    load = recipe.model.record.load_plain
    if not unpacks(plan) or load is None:
        return base_model(recipe, plan, device)
    return call_plugin(recipe.model, load, recipe.model.options, device)


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """A quantised model with the numbers, and in the type, that it computes with. Raises `ModelError`."""
    log = logging.getLogger("transformers.integrations.bitsandbytes")
    before = log.level
    log.setLevel(logging.ERROR)  # it tells of the type, which is the right one
    try:
        return cast("PreTrainedModel", cast(Any, model).dequantize(model.dtype))
    except (NotImplementedError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ModelError(f"{type(model).__name__} cannot be dequantised, which a merge needs: {what}") from error
    finally:
        log.setLevel(before)


def forget_quantizer(model: PreTrainedModel) -> None:
    """Have a plain model written under the names of a plain one: transformers would undo what reading it took, and
    quantised weights cannot be written that way.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    told = cast(Any, model)
    taken: list[Any] = list(getattr(model, "_weight_conversions", None) or ())
    quantizing = [one for one in taken if _quantizes(one)]
    if not quantizing:
        return
    targets = {target for one in quantizing for target in one.target_patterns}
    kept = [one for one in taken if not _quantizes(one)]
    plain = [one for one in get_model_conversion_mapping(told) if getattr(one, "operations", None)]
    told._weight_conversions = [*kept, *(one for one in plain if targets & set(one.target_patterns))] or None


def _quantizes(conversion: Any) -> bool:
    return any(getattr(one, "hf_quantizer", None) is not None for one in getattr(conversion, "operations", ()))
