"""First weights of low-rank adapters that take a part of the base's weights away: W = (W - s B A) + s B A.

PiSSA (Meng et al., arXiv 2404.02948) begins with the principal components of each matrix, by the randomised singular
values that peft takes with `pissa_niter_16`; OLoRA (Buyukakyuz, arXiv 2406.01775) with its QR decomposition. What is
taken away is what A and B are once they are rounded to their type, which peft's own functions do before that.

A model's files hold W, so that what is saved is what was learnt beside W: s (B A - B0 A0), a plain adapter of twice the
rank, as peft's own conversion has it. The first weights, A0 and B0, stay with their layer.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fitune import ModelError, Problem, Recipe
from fitune_plugins.adapters.lora_peft import Settings
from fitune_plugins.adapters.peft_files import ADAPTER, fill, save

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Split = Literal["pissa", "olora"]

SPLITS = ("pissa", "olora")
"""What adapters begin with that changes the weights of the base."""

UNSPLIT = {
    "nf4": "has quantised them by then",
    "fsdp": "reads them in one process alone, where each needs the first adapters",
}
"""Strategies beside which they cannot be made, and why."""

ITERATIONS = 16
"""Of the randomised singular value decomposition."""

FIRST = ("first_A", "first_B")
"""Buffers of an adapted layer, which no file holds."""


def first_weights_problems(recipe: Recipe, init: str) -> Iterable[Problem]:
    """First weights that are taken from weights which nobody has by then, by what a recipe says."""
    other = 'Set it to "default", or remove the strategy'
    names = [use.record.name for use in recipe.strategies]
    if init in SPLITS:
        for name in (name for name in names if name in UNSPLIT):
            what = f'"init" = "{init}" takes a part of the weights away, and "{name}" {UNSPLIT[name]}'
            yield Problem(key="adapter.init", what=what, fix=other)
    if init != "loftq":
        return
    if not any("quantization" in use.record.makes for use in recipe.strategies):
        what = '"init" = "loftq" gives back what four bits take of weights, and none are quantised'
        yield Problem(key="adapter.init", what=what, fix='Add [[memory.strategy]] use = "nf4", or set another')
    elif "fsdp" in names:
        what = f'"init" = "loftq" needs the quantised weights, and "fsdp" {UNSPLIT["fsdp"]}'
        yield Problem(key="adapter.init", what=what, fix=other)
    if recipe.objective.reference == "adapter-off":
        what = '"init" = "loftq" begins with an adapter that counts: without it, the model is not what it was'
        yield Problem(key="objective.reference", what=what, fix='Set reference = "prepared"')


def split(adapted: PeftModel, how: Split) -> None:
    """Begin with a part of the base's weights, and take it away from them. Raises `ModelError`.

    On the meta device nothing has a value, and the first weights take the same room.
    """
    import torch

    if getattr(adapted.get_base_model(), "is_quantized", False):
        raise ModelError(
            f'[adapter] init: "{how}" changes the weights of the model, and these are quantised. Set init = "default"'
        )
    with torch.no_grad():
        for name, layer in _layers(adapted):
            try:
                _split(layer, how)
            except RuntimeError as error:  # of a rank that the matrix does not have, or weights that are no numbers
                raise ModelError(f'[adapter] init: {name} has no "{how}": {" ".join(str(error).split())}') from error


def _split(layer: Any, how: Split) -> None:
    import torch

    a, b, scale = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER]
    weight, rank = layer.get_base_layer().weight, layer.r[ADAPTER]
    if not weight.is_meta:
        wide = weight.float().T if layer.fan_in_fan_out else weight.float()
        if rank > min(wide.shape):
            raise ModelError(f"[adapter] r: a matrix of {list(wide.shape)} has no {rank} components. Give fewer")
        if how == "pissa":
            left, values, right = torch.svd_lowrank(wide, rank, niter=ITERATIONS)
            root = torch.sqrt(values / scale)
            a.copy_(root[:, None] * right.T)
            b.copy_(left * root)
        else:
            left, right = torch.linalg.qr(wide)
            a.copy_(right[:rank])
            b.copy_(left[:, :rank])
        rest = wide - scale * (b.float() @ a.float())
        weight.copy_(rest.T if layer.fan_in_fan_out else rest)
    for name, value in zip(FIRST, (a, b), strict=True):
        layer.register_buffer(name, value.detach().clone(), persistent=False)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The adapted layers. Raises `ModelError` where one is no linear layer."""
    from peft.tuners.lora.layer import LoraLayer

    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if ADAPTER not in layer.lora_A or getattr(layer, "parameter_name", None) is not None:
            what = f"{name} is no linear layer, and keeps its weights. Name other targets"
            raise ModelError(f"[adapter] init: {what}")
        yield name, layer


def is_split(model: nn.Module) -> bool:
    """Whether an adapted model has given a part of its weights away."""
    return any(name.endswith(f".{FIRST[0]}") for name, _ in model.named_buffers())


def more_alpha(rslora: bool) -> float:
    """By how much alpha grows with twice the rank, for the scale to stay."""
    return math.sqrt(2) if rslora else 2


def doubled(settings: Settings) -> Settings:
    """Of the plain adapter that is saved: twice the rank, with the same scale."""
    more = more_alpha(settings.use_rslora)
    return replace(
        settings,
        r=2 * settings.r,
        lora_alpha=more * settings.lora_alpha,
        rank_pattern={name: 2 * rank for name, rank in settings.rank_pattern.items()},
        alpha_pattern={name: more * alpha for name, alpha in settings.alpha_pattern.items()},
    )


def save_difference(model: PreTrainedModel, directory: Path) -> None:
    """Write what was learnt beside the base's own weights, as a plain adapter of twice the rank."""
    import torch

    adapted = cast(Any, model)
    state: dict[str, Tensor] = {name: value for name, value in adapted.state_dict().items() if "first_" not in name}
    for name, layer in _layers(adapted):
        a, b = (f"{name}.lora_{which}.{ADAPTER}.weight" for which in "AB")
        first_a, first_b = (getattr(layer, first) for first in FIRST)
        state[a] = torch.cat([state[a].cpu(), first_a.cpu()])
        state[b] = torch.cat([state[b].cpu(), -first_b.cpu()], dim=1)
    own = adapted.peft_config[ADAPTER]
    adapted.peft_config[ADAPTER] = _twice(own)
    try:
        save(model, directory, state_dict=state)
    finally:
        adapted.peft_config[ADAPTER] = own


def _twice(config: Any) -> Any:
    """peft's config of that adapter."""
    found, more = copy.deepcopy(config), more_alpha(config.use_rslora)
    found.r, found.lora_alpha = 2 * config.r, more * config.lora_alpha
    found.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    found.alpha_pattern = {name: more * alpha for name, alpha in config.alpha_pattern.items()}
    return found


def fill_split(adapted: PreTrainedModel, weights: Mapping[str, Tensor], directory: Path) -> None:
    """Go on from what `save_difference` wrote: the base gives away what that run's did. Raises `ModelError`."""
    import torch

    taken, firsts = dict(weights), {}
    for name, layer in _layers(adapted):
        for at, which in enumerate("AB"):
            key, rank = f"{name}.lora_{which}.weight", layer.r[ADAPTER]
            if key in taken and taken[key].shape[at] == 2 * rank:
                taken[key], firsts[key] = (half.contiguous() for half in taken[key].split(rank, dim=at))
    fill(adapted, taken, directory)
    with torch.no_grad():
        for name, layer in _layers(adapted):
            saved = (firsts[f"{name}.lora_A.weight"], -firsts[f"{name}.lora_B.weight"])
            _begin_from(layer, *saved)


def _begin_from(layer: Any, first_a: Tensor, first_b: Tensor) -> None:
    """Have a layer's base without these first weights, in place of without its own; another machine's may differ."""
    import torch

    weight, scale = layer.get_base_layer().weight, layer.scaling[ADAPTER]
    own = [getattr(layer, name) for name in FIRST]
    saved = [value.to(one) for one, value in zip(own, (first_a, first_b), strict=True)]
    if all(torch.equal(one, value) for one, value in zip(own, saved, strict=True)):
        return
    more = scale * (own[1].float() @ own[0].float() - saved[1].float() @ saved[0].float())
    weight.copy_(weight.float() + (more.T if layer.fan_in_fan_out else more))
    for one, value in zip(own, saved, strict=True):
        one.copy_(value)


@contextlib.contextmanager
def as_at_first(model: PreTrainedModel) -> Iterator[None]:
    """Compute with the first weights, which are the base: what trains is put back, where it stands, to the bit."""
    import torch

    pairs: list[tuple[Tensor, Tensor]] = []
    for _, layer in _layers(model):
        trained = (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
        pairs += [(one.data, getattr(layer, first)) for one, first in zip(trained, FIRST, strict=True)]
    with torch.no_grad():
        before = [one.clone() for one, _ in pairs]
        for one, first in pairs:
            one.copy_(first)
    try:
        yield
    finally:
        with torch.no_grad():
            for (one, _), kept in zip(pairs, before, strict=True):
                one.copy_(kept)
