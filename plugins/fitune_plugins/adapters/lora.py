"""Adapter `lora`: low-rank adapters (Hu et al., arXiv 2106.09685) by peft."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from annotated_types import Ge, Gt, Le, Lt, MinLen

from fitune import Adapter, Lever, ModelError, Problem, Recipe, hookimpl, nearest, sentences, unwrapped
from fitune_plugins.adapters import peft_files
from fitune_plugins.adapters.lora_init import (
    SPLITS,
    as_at_first,
    doubled,
    fill_split,
    first_weights_problems,
    is_split,
    save_difference,
    split,
)
from fitune_plugins.adapters.lora_merge import merge
from fitune_plugins.adapters.lora_peft import Settings, wrap
from fitune_plugins.adapters.lora_targets import PRESETS, find_targets, of_layers, told
from fitune_plugins.adapters.lora_whole import find_whole, row_names, whole_names
from fitune_plugins.text_files import json_of

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

RANDOM = ("gaussian", "orthogonal")
"""What peft makes of its own, beside its default."""

CONFIG = "adapter_config.json"

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
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "loftq"] = "default"
    """What the adapters begin with. "default" is random A and B of zeros; "gaussian" and "orthogonal" are random too,
    and add nothing at first. "pissa" begins with the principal components of the weights (arXiv 2404.02948), "olora"
    with their QR decomposition (arXiv 2406.01775): the base keeps the rest, the first A and B stay on the card beside
    those that train, and what is saved is a plain adapter of twice the rank. Not for quantised weights, nor experts.
    "loftq" is for those of `nf4`: it begins with the components of what four bits have taken (arXiv 2310.08659)."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules that train whole and are saved with the adapter, or ends of names, e.g. `["embed_tokens",
    "lm_head"]`; where these two are one, either means both."""
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
        init_lora_weights=options.init if options.init in RANDOM else True,
    )


def _check(options: LoraOptions) -> Iterable[Problem]:
    """Whether one name was meant, or a misspelled preset: a regular expression of letters alone matches no layer; and
    whether what the adapters begin with can be made.
    """
    targets = options.targets
    if options.layers is not None and len({*options.layers}) < max(1, len(options.layers)):
        fix = "Name each layer once, or leave the key out for all"
        yield Problem(key="layers", what=f'"layers" is {list(options.layers)}', fix=fix)
    if isinstance(targets, str) and targets not in PRESETS and re.fullmatch(r"[\w-]+", targets):
        fix = sentences(nearest(targets, PRESETS), f'A layer of that name is named in a list: ["{targets}"]')
        yield Problem(key="targets", what=f'"targets" is "{targets}", which is no word for several layers', fix=fix)
    if options.init in SPLITS and options.dora:
        what = f'"init" = "{options.init}" takes a part of the weights away, whose lengths "dora" trains'
        yield Problem(key="init", what=what, fix="Keep one of them")
    if options.init == "loftq" and options.dora:
        what = '"init" = "loftq" changes where weights point, whose lengths "dora" has noted before'
        yield Problem(key="init", what=what, fix="Keep one of them")
    odd = [rank for rank in (options.r, *(one.r for one in options.ranks)) if rank % 2]
    if options.init == "orthogonal" and odd:
        yield Problem(key="init", what=f'"init" = "orthogonal" needs even ranks, and one is {odd[0]}', fix="Change it")


def saved_settings(options: LoraOptions) -> Settings:
    """What the adapter that a run saves has."""
    settings = settings_of(options)
    return doubled(settings) if options.init in SPLITS else settings


def _attach(options: LoraOptions, model: PreTrainedModel) -> PreTrainedModel:
    adapted = _wrapped(options, settings_of(options), model)
    if options.init == "pissa" or options.init == "olora":
        split(cast("PeftModel", adapted), options.init)
    if options.init == "loftq":
        from fitune_plugins.adapters.lora_loftq import give_back

        give_back(cast("PeftModel", adapted))
    return adapted


def _wrapped(options: LoraOptions, settings: Settings, model: PreTrainedModel) -> PreTrainedModel:
    targets = of_layers(find_targets(options.targets, model), options.layers, model)
    float32 = options.dtype == "float32"
    adapted = wrap(model, targets, settings, float32=float32, whole=find_whole(options.modules_to_save, model))
    if not float32:
        peft_files.match_quantized(adapted)
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
    yield from told(options.targets, adapted, inner)
    if whole := whole_names(inner):
        yield f"lora: trains whole: {', '.join(whole)}"
    if rows := row_names(inner):
        yield f"lora: trains the rows of new tokens: {', '.join(rows)}"
    if options.init in SPLITS:
        twice = saved_settings(options).r
        yield f'lora: "{options.init}" begins with a part of the base; what is saved is a plain adapter of rank {twice}'


def _save(model: PreTrainedModel, directory: Path) -> None:
    if is_split(model):
        save_difference(model, directory)
    else:
        peft_files.save(model, directory)


def _load(options: LoraOptions, model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    adapted = _wrapped(options, saved_settings(options), model)
    peft_files.fill(adapted, _read(options, adapted, directory), directory)
    adapted.requires_grad_(False)
    adapted.eval()
    return adapted


def _fill(options: LoraOptions, adapted: PreTrainedModel, directory: Path) -> None:
    """Put what was saved into an adapter that is on its model. Raises `ModelError`."""
    fill = fill_split if is_split(adapted) else peft_files.fill
    fill(adapted, _read(options, adapted, directory), directory)


def _read(options: LoraOptions, adapted: PreTrainedModel, directory: Path) -> dict[str, Tensor]:
    from fitune_plugins.adapters.lora_tokens import must_be_these

    weights = peft_files.read(directory)
    saved = _must_be_of(options, directory)
    must_be_these(adapted, saved, directory / CONFIG)
    return weights


@contextlib.contextmanager
def _off(model: PreTrainedModel) -> Iterator[None]:
    splits = is_split(model)
    with peft_files.off(model, layers=not splits), as_at_first(model) if splits else contextlib.nullcontext():
        yield


def _must_be_of(options: LoraOptions, directory: Path) -> Mapping[str, Any]:
    """What an adapter's file says; the settings that no tensor tells must be those that were trained with. Raises
    `ModelError`.
    """
    file = directory / CONFIG
    asked, usual = saved_settings(options).written(), Settings(r=0, lora_alpha=0).written()
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
    return cast("Mapping[str, Any]", saved)


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
def ft_check(recipe: Recipe) -> Iterable[Problem]:
    """Refuse first weights that are taken from weights which nobody has by then."""
    options = recipe.adapter.options
    if isinstance(options, LoraOptions):
        yield from first_weights_problems(recipe, options.init)


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
