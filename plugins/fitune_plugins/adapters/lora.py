"""Adapter `lora`: low-rank adapters (Hu et al., arXiv 2106.09685) by peft."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from annotated_types import Ge, Gt, Le, Lt, MinLen

from fitune import Adapter, Lever, ModelError, Problem, Recipe, hookimpl, nearest, sentences, unwrapped
from fitune_plugins.adapters.lora_merge import merge
from fitune_plugins.adapters.lora_peft import Settings, wrap
from fitune_plugins.adapters.lora_targets import PRESETS, find_targets, of_layers, told
from fitune_plugins.text_files import json_of

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"

WRITTEN = {
    "r": "r",
    "lora_alpha": "alpha",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "rank_pattern": "ranks",
    "alpha_pattern": "ranks' alpha",
}
"""Settings that a saved adapter's file tells, as peft calls them and as a recipe does."""

Preset = Literal["all-linear", "attention", "mlp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """Another rank for some of the adapted layers."""

    targets: str
    """The name of these layers, or the end of it, e.g. "down_proj" or "layers.0.mlp.down_proj"."""
    r: Annotated[int, Ge(1), Le(2**16)]
    """Rank of their adapters."""
    alpha: Annotated[float, Gt(0)] | None = None
    """Their alpha; that of all others where it is not given."""


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
    layers: tuple[int, ...] | None = None
    """Numbers of the decoder layers that are adapted, from 0; from the end with -1 and below. Without it, all are."""
    ranks: tuple[Rank, ...] = ()
    """Other ranks for some of the layers, as `[[adapter.ranks]]`, each with `targets`, `r` and, if wanted, `alpha`; the
    last that names a layer counts."""
    rslora: bool = False
    """Scale the adapters' output by alpha / sqrt(r) in place of alpha / r (arXiv 2312.03732), so that adapters of a
    high rank learn as fast as those of a low one."""
    dora: bool = False
    """Train how large the rows of adapted weights are beside where they point (arXiv 2402.09353): one more number a
    row, and more memory and time in each adapted layer. Not for experts."""
    dtype: Literal["base", "float32"] = "base"
    """What adapters compute in. "base" is the model's own type, with a float32 copy in the optimizer (see
    `[train] master_weights`); "float32" costs more activations: 1.4 GiB (q, v) to 6 GiB (all linear) on a 7B model
    at 2048 tokens."""


def settings_of(options: LoraOptions) -> Settings:
    """What peft is told."""
    return Settings(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        use_dora=options.dora,
        rank_pattern={one.targets: one.r for one in options.ranks},
        alpha_pattern={one.targets: one.alpha for one in options.ranks if one.alpha is not None},
    )


def _check(options: LoraOptions) -> Iterable[Problem]:
    """Whether one name was meant, or a misspelled preset: a regular expression of letters alone matches no layer."""
    targets = options.targets
    if options.layers is not None and len({*options.layers}) < max(1, len(options.layers)):
        fix = "Name each layer once, or leave the key out for all"
        yield Problem(key="layers", what=f'"layers" is {list(options.layers)}', fix=fix)
    if isinstance(targets, str) and targets not in PRESETS and re.fullmatch(r"[\w-]+", targets):
        fix = sentences(nearest(targets, PRESETS), f'A layer of that name is named in a list: ["{targets}"]')
        yield Problem(key="targets", what=f'"targets" is "{targets}", which is no word for several layers', fix=fix)


def _attach(options: LoraOptions, model: PreTrainedModel) -> PreTrainedModel:
    targets = of_layers(find_targets(options.targets, model), options.layers, model)
    float32 = options.dtype == "float32"
    adapted = wrap(model, targets, settings_of(options), float32=float32)
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
    adapted: Any = model
    adapted.create_or_update_model_card = lambda output_dir: None  # of blanks, in every checkpoint; runs have their own
    try:
        adapted.save_pretrained(str(directory), save_embedding_layers=False)
    finally:
        del adapted.create_or_update_model_card


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
    asked, usual = settings_of(options).written(), Settings(r=0, lora_alpha=0).written()
    try:
        saved = json_of(file)
        found = {name: saved.get(name, usual[name]) for name in WRITTEN}
        found |= {name: saved[name] for name in ("r", "lora_alpha")}  # which any adapter's file has
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is damaged, or cannot be read. Give another checkpoint") from error
    for name, value in found.items():
        if value != asked[name]:
            raise ModelError(
                f"{file}: the adapter was trained with {WRITTEN[name]} = {value}, but the recipe's [adapter] says "
                f"{asked[name]}. Give it the same"
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
