"""Adapter `lora`: low-rank adapters (Hu et al., arXiv 2106.09685) by peft."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from annotated_types import Ge, Gt, Le, Lt, MinLen

from fitune import Adapter, Lever, ModelError, Problem, Recipe, hookimpl, nearest, sentences, unwrapped
from fitune_plugins.adapters.lora_merge import merge
from fitune_plugins.adapters.lora_peft import wrap
from fitune_plugins.adapters.lora_targets import PRESETS, find_targets, told

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"

Preset = Literal["all-linear", "attention", "mlp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """Options of the adapter `lora`."""

    r: Annotated[int, Ge(1), Le(2**16)] = 4
    """Rank of the adapters."""
    alpha: Annotated[float, Gt(0)] = 8
    """The adapters' output is scaled by alpha / r. Costs no memory."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the adapters' inputs that is dropped in training; above 0 it costs memory in every layer."""
    targets: Annotated[tuple[str, ...], MinLen(1)] | Preset | Annotated[str, MinLen(1)] = ("q_proj", "v_proj")
    """Names of the layers to adapt, or ends of names, as peft takes them; or "all-linear" for every linear layer of the
    decoder, experts among them, but for the output head and routers; "attention" or "mlp" for those of one kind; any
    other text is a regular expression that whole names match. What was adapted is told where a run starts."""
    dtype: Literal["base", "float32"] = "base"
    """What adapters compute in. "base" is the model's own type, with a float32 copy in the optimizer (see
    `[train] master_weights`); "float32" costs more activations: 1.4 GiB (q, v) to 6 GiB (all linear) on a 7B model
    at 2048 tokens."""


def _check(options: LoraOptions) -> Iterable[Problem]:
    """Whether one name was meant, or a misspelled preset: a regular expression of letters alone matches no layer."""
    targets = options.targets
    if isinstance(targets, str) and targets not in PRESETS and re.fullmatch(r"[\w-]+", targets):
        fix = sentences(nearest(targets, PRESETS), f'A layer of that name is named in a list: ["{targets}"]')
        yield Problem(key="targets", what=f'"targets" is "{targets}", which is no word for several layers', fix=fix)


def _attach(options: LoraOptions, model: PreTrainedModel) -> PreTrainedModel:
    targets = find_targets(options.targets, model)
    float32 = options.dtype == "float32"
    adapted = wrap(model, targets, r=options.r, alpha=options.alpha, dropout=options.dropout, float32=float32)
    if not float32:
        _match_quantized(adapted)
    return cast("PreTrainedModel", adapted)


def _told(options: LoraOptions, model: PreTrainedModel) -> Iterable[str]:
    """What has an adapter, beside what was asked."""
    from peft.tuners.lora.layer import LoraLayer

    inner = unwrapped(model)
    adapted = set()
    for name, module in inner.named_modules():
        if isinstance(module, LoraLayer):
            own = name.replace(".base_layer", "")
            parameter = getattr(module, "parameter_name", None)
            adapted.add(own if parameter is None else f"{own}.{parameter}")
    return told(options.targets, adapted, inner)


def _match_quantized(model: PeftModel) -> None:
    """Give the adapters of quantised layers the model's own type: peft, which finds integers there, left float32."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    dtype = cast("PreTrainedModel", model.get_base_model()).dtype
    for layer in model.modules():
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else None
        weight = getattr(base, "weight", None)
        # Experts, say, are one parameter without a layer; layers of GPTQ and AWQ have no weight, or no tensor for one.
        if not hasattr(base, "qweight") and (weight is None or weight.is_floating_point()):
            continue
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def _save(model: PreTrainedModel, directory: Path) -> None:
    # "auto" would ask the hub whether the embeddings were resized, and would write an adapted head's frozen weight
    # too. fitune never resizes them, and the base model has that weight.
    cast("PeftModel", model).save_pretrained(str(directory), save_embedding_layers=False)


def _load(options: LoraOptions, model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    adapted = _attach(options, model)
    _fill(options, adapted, directory)
    adapted.requires_grad_(False)
    adapted.eval()
    return adapted


def _fill(options: LoraOptions, adapted: PreTrainedModel, directory: Path) -> None:
    """Put what was saved into an adapter that is on its model. Raises `ModelError`."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    weights = _read(directory)
    _must_be_of(options, directory)
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    wrong = sorted(
        {*wanted.keys() ^ weights.keys()}
        | {name for name in wanted.keys() & weights.keys() if wanted[name].shape != weights[name].shape}
    )
    if wrong:
        raise ModelError(
            f"{directory / WEIGHTS} is not of this recipe's [adapter] on this model: {len(wrong)} tensors are missing, "
            f"of another shape, or known to one of them alone, e.g. {wrong[0]}"
        )
    set_peft_model_state_dict(adapted, weights)


@contextlib.contextmanager
def _off(model: PreTrainedModel) -> Iterator[None]:
    """Compute without adapters. peft's own context also changes what trains, of each parameter, twice."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer) and not layer.disable_adapters]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _read(directory: Path) -> dict[str, Tensor]:
    """The tensors that were saved. Raises `ModelError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = directory / WEIGHTS
    if not file.is_file():
        other = ", and a .bin file, which may run code, is not read" if any(directory.glob("*.bin")) else ""
        raise ModelError(f"{directory} holds no {WEIGHTS}{other}. Give another checkpoint")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        what = " ".join(str(error).split())
        raise ModelError(f"{file} is damaged, or cannot be read: {what}. Give another checkpoint") from error


def _must_be_of(options: LoraOptions, directory: Path) -> None:
    """The settings that no tensor tells must be those that were trained with. Raises `ModelError`."""
    file = directory / "adapter_config.json"
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        found = {"r": saved["r"], "alpha": saved["lora_alpha"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is damaged, or cannot be read. Give another checkpoint") from error
    for name, value in found.items():
        if value != getattr(options, name):
            raise ModelError(
                f"{file}: the adapter was trained with {name} = {value}, but the recipe's [adapter] says "
                f"{getattr(options, name)}. Give it the same"
            )


@hookimpl
def ft_adapters() -> Iterable[Adapter[LoraOptions]]:
    """Offer the adapter."""
    yield Adapter(
        name="lora",
        summary="Low-rank adapters (peft): trains well under 1 % of the parameters",
        options=LoraOptions,
        attach=_attach,
        save=_save,
        load=_load,
        merge=merge,
        fill=_fill,
        off=_off,
        told=_told,
        check=_check,
    )


@hookimpl
def ft_levers(recipe: Recipe) -> Iterable[Lever]:
    """Rank and alpha, which people try first and which save next to nothing; and the adapters' type, which may."""
    options = recipe.adapter.options
    if not isinstance(options, LoraOptions):
        return
    if options.r > 1:
        change = ("adapter.r", options.r // 2)
        yield Lever(name=f"LoRA r {options.r} to {options.r // 2}", changes=(change,), exact=False)
    alpha = options.alpha / 2
    yield Lever(name=f"LoRA alpha {options.alpha:g} to {alpha:g}", changes=(("adapter.alpha", alpha),), exact=False)
    if options.dropout:
        yield Lever(name="LoRA without dropout", changes=(("adapter.dropout", 0.0),), exact=False)
    if options.dtype == "float32":
        remark = "float32 copies stay in the optimizer"
        yield Lever(name="LoRA in the model's type", changes=(("adapter.dtype", "base"),), exact=False, remark=remark)
