"""Adapter `ia3`: vectors that scale what layers give, or what they take (Liu et al., arXiv 2205.05638), by peft.

For each adapted layer one number a row of its weight trains, or one a column for layers of `feedforward`: some hundred
thousand in a model of 7B, a tenth of a small LoRA.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from annotated_types import MinLen

from fitune import Adapter, ModelError, Problem, Recipe, added_modules, hookimpl, unwrapped
from fitune_plugins.adapters import peft_files
from fitune_plugins.adapters.lora_imports import without_bitsandbytes
from fitune_plugins.adapters.lora_merge import merge
from fitune_plugins.adapters.lora_peft import shortened
from fitune_plugins.adapters.lora_places import plain_modules
from fitune_plugins.adapters.lora_targets import find_targets

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Ia3Options:
    """Options of the adapter `ia3`."""

    targets: Annotated[tuple[str, ...], MinLen(1)] = ("k_proj", "v_proj", "down_proj")
    """Names of the layers to adapt, or ends of names."""
    feedforward: tuple[str, ...] = ("down_proj",)
    """Those of them whose inputs are scaled, and not what they give."""


def _check(options: Ia3Options) -> Iterable[Problem]:
    """Whether each layer of `feedforward` is among the targets."""
    if other := [name for name in options.feedforward if name not in options.targets]:
        what = f'"feedforward" names "{other[0]}", which is not among "targets"'
        yield Problem(key="feedforward", what=what, fix="Name it there too, by the same name, or leave it out")


def _attach(options: Ia3Options, model: PreTrainedModel) -> PreTrainedModel:
    with without_bitsandbytes():
        adapted = _wrapped(options, model)
    peft_files.match_quantized(adapted)
    return cast("PreTrainedModel", adapted)


def _wrapped(options: Ia3Options, model: PreTrainedModel) -> PeftModel:
    from peft import IA3Config, get_peft_model

    found = find_targets(options.targets, model)
    scaled = find_targets(options.feedforward, model).modules if options.feedforward else ()
    if found.parameters:
        raise ModelError(f"[adapter] targets: {found.parameters[0]} is a tensor of experts, which IA3 cannot scale")
    added, every = added_modules(model), plain_modules(model)
    if both := [name for name in found.modules if name in added]:
        raise ModelError(f'[adapter] targets: "{both[0]}" is new, and trains whole. Leave it out')
    config = IA3Config(
        target_modules=shortened(found.modules, every),
        feedforward_modules=shortened(scaled, every),
        fan_in_fan_out=any(type(every[name]).__name__ == "Conv1D" for name in found.modules),
        modules_to_save=list(added) or None,
        task_type="SEQ_CLS" if "ForSequenceClassification" in type(model).__name__ else "CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers >= 5.20 by a name that it deprecates; nobody's recipe can mend that.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        try:
            adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
        except (ValueError, TypeError) as error:  # a layer that is neither linear nor an embedding
            raise ModelError(f"[adapter] {' '.join(str(error).split())}") from error
    config.modules_to_save = list(added) or None  # peft has put others beside them
    return cast("PeftModel", adapted)


def _told(options: Ia3Options, model: PreTrainedModel) -> Iterable[str]:
    """How many layers are scaled, and where."""
    from peft.tuners.ia3.layer import IA3Layer

    layers: list[Any] = [module for module in unwrapped(model).modules() if isinstance(module, IA3Layer)]
    inputs = sum(layer.is_feedforward for layer in layers)
    yield f"ia3: {len(layers) - inputs} layers scaled behind, {inputs} before"


def _load(options: Ia3Options, model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    adapted = _attach(options, model)
    _fill(options, adapted, directory)
    adapted.requires_grad_(False)
    adapted.eval()
    return adapted


def _fill(options: Ia3Options, adapted: PreTrainedModel, directory: Path) -> None:
    peft_files.fill(adapted, peft_files.read(directory), directory)


@hookimpl
def ft_check(recipe: Recipe) -> Iterable[Problem]:
    """Refuse tokens whose rows it would not train."""
    if isinstance(recipe.adapter.options, Ia3Options) and recipe.model.tokens.any:
        what = 'tokens are added, whose rows in the embeddings "ia3" does not train'
        yield Problem(key="model", what=what, fix='Use "lora" or "none", or add none')


@hookimpl
def ft_adapters() -> Iterable[Adapter[Ia3Options]]:
    """Offer the adapter."""
    yield Adapter(
        name="ia3",
        summary="Vectors that scale keys, values and MLPs (peft's IA3): a tenth of what a small LoRA trains",
        options=Ia3Options,
        attach=_attach,
        save=peft_files.save,
        load=_load,
        merge=merge,
        fill=_fill,
        off=peft_files.off,
        told=_told,
        check=_check,
    )
