"""What `targets` of the adapter `lora` means in a model: its layers one by one, and what a user is told of them.

A list has names, or ends of names, as peft takes them, and presets; a text that is no preset is a regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fitune import ModelError, nearest
from fitune_plugins.adapters.lora_places import (
    ATTENTION,
    MLP,
    Place,
    chain,
    is_router,
    layer_of,
    layers,
    places,
    plain_modules,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

PRESETS: dict[str, Callable[[Place], bool]] = {
    "all-linear": lambda place: True,
    "attention": lambda place: place.block in ATTENTION,
    "mlp": lambda place: place.block == MLP,
}

FUSED: dict[str, tuple[frozenset[str], ...]] = {
    "gate_up_proj": (frozenset({"gate_proj", "up_proj"}), frozenset({"w1", "w3"})),
    "down_proj": (frozenset({"w2"}),),
}
"""What experts that are one tensor are called where they are a layer each, in older versions of transformers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What is adapted, by full names."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Known:
    """What a model has; to look for it takes a while, so that it is looked for once."""

    places: Sequence[Place]
    modules: Mapping[str, nn.Module]
    """All of them, by their names."""

    @property
    def names(self) -> set[str]:
        """What may be adapted, by the ends of their names."""
        return {place.name.rpartition(".")[2] for place in self.places}


def find_targets(asked: str | Sequence[str], model: PreTrainedModel) -> Targets:
    """The layers that a recipe's `targets` name. Raises `ModelError` for a name, or a pattern, that none has."""
    known = _Known(places(model), plain_modules(model))
    if isinstance(asked, str) and asked not in PRESETS:
        return _of_pattern(asked, known)
    modules: dict[str, None] = {}
    parameters: dict[str, None] = {}
    names = (asked,) if isinstance(asked, str) else asked
    for name in names:
        found = _of_preset(name, known) if name in PRESETS else _of_name(name, names, known)
        modules |= dict.fromkeys(found.modules)
        parameters |= dict.fromkeys(found.parameters)
    return Targets(modules=tuple(modules), parameters=tuple(parameters))


def of_layers(found: Targets, numbers: Sequence[int] | None, model: PreTrainedModel) -> Targets:
    """Those of the decoder layers with these numbers, from the end where they are below 0; all, where there are none.

    Raises `ModelError` for a number that no layer has, and where none is left.
    """
    if numbers is None:
        return found
    decoder = layers(model)
    if wrong := next((n for n in numbers if not -len(decoder) <= n < len(decoder)), None):
        raise ModelError(f"[adapter] layers: there is no layer {wrong}. The model has {len(decoder)}, from 0 on")
    wanted = {decoder[number] for number in numbers}
    left = Targets(
        modules=tuple(name for name in found.modules if layer_of(name) in wanted),
        parameters=tuple(name for name in found.parameters if layer_of(name) in wanted),
    )
    if not left.modules and not left.parameters:
        raise ModelError(f"[adapter] layers: none of {list(numbers)} has a layer that targets names. Give others")
    return left


def _of_preset(name: str, known: _Known) -> Targets:
    found = [place for place in known.places if PRESETS[name](place) and not place.left_out]
    if not found:
        what = f'[adapter] targets: the model has no layer that "{name}" means'
        raise ModelError(f"{what}. {nearest(name, known.names)}")
    return _split(found)


def _of_name(name: str, names: Sequence[str], known: _Known) -> Targets:
    """What has this name, or the end of it; experts that are one tensor by the names of their parts too."""
    of_tensors = [p for p in known.places if p.parameter and not p.left_out and _means(name, names, p.name)]
    modules = [one for one in known.modules if _ends(one, name)]
    if not modules and not of_tensors:
        halves = next((half for pair in FUSED.values() for half in pair if name in half and len(half) > 1), None)
        if halves and any(place.name.endswith("gate_up_proj") for place in known.places if place.parameter):
            both = " and ".join(f'"{half}"' for half in sorted(halves))
            raise ModelError(f"[adapter] targets: {both} of this model's experts are one tensor. Name both, or neither")
        raise ModelError(f'[adapter] targets: the model has no layer "{name}". {nearest(name, known.names)}')
    held = {p.name.rpartition(".")[2] for p in known.places if any(p.name.startswith(f"{one}.") for one in modules)}
    if held:
        parts = ", ".join(f'"{one}"' for one in sorted(held))
        raise ModelError(f'[adapter] targets: "{name}" is no layer, but holds several. Name those: {parts}')
    return _with_routers([*modules, *(place.name for place in of_tensors)], known)


def _of_pattern(pattern: str, known: _Known) -> Targets:
    """What has a name that the whole pattern matches, as peft reads it."""
    try:
        matches = re.compile(pattern).fullmatch
    except re.error as error:
        raise ModelError(f'[adapter] targets: "{pattern}" is no regular expression: {error}') from error

    def is_meant(tensor: Place) -> bool:
        holder, _, own = tensor.name.rpartition(".")
        parts = [half for half in FUSED.get(own, ()) if all(matches(f"{holder}.{name}") for name in half)]
        return bool(matches(tensor.name) or parts)

    found = [name for name in known.modules if name and matches(name)]
    found += [p.name for p in known.places if p.parameter and not p.left_out and is_meant(p)]
    if not found:
        what = f'[adapter] targets: no layer of the model is called as "{pattern}" says, from end to end'
        raise ModelError(f"{what}. {nearest(pattern, [*PRESETS, *known.names])}")
    return _with_routers(found, known)


def _with_routers(found: Sequence[str], known: _Known) -> Targets:
    """Modules and parameters apart; of a router, whose result is no product of its weight alone, the parameter."""
    every = known.modules
    modules, parameters = [], [name for name in found if name not in every]
    for name in (name for name in found if name in every):
        weight = getattr(every[name], "weight", None)
        is_own = type(every[name]).__module__.startswith("transformers.models.")
        if is_own and weight is not None and is_router(chain(name, every)):
            parameters.append(f"{name}.weight")
        else:
            modules.append(name)
    return Targets(modules=tuple(modules), parameters=tuple(parameters))


def _split(found: Iterable[Place]) -> Targets:
    every = list(found)
    return Targets(
        modules=tuple(place.name for place in every if not place.parameter),
        parameters=tuple(place.name for place in every if place.parameter),
    )


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _means(name: str, names: Sequence[str], full: str) -> bool:
    """Whether a layer, or a tensor of experts, is meant by a name, or by this and others of the list together."""
    if _ends(full, name) or _ends(full.removesuffix(".weight"), name):
        return True
    return any(name in half and half <= {*names} for half in FUSED.get(full.rpartition(".")[2], ()))


# ------------------------------------------------------------------------------------------------------- what is told
def told(asked: str | Sequence[str], adapted: set[str], model: PreTrainedModel) -> Iterator[str]:
    """What has an adapter, by its full names, beside what was asked: a line, and one for all that is left out."""
    names = (asked,) if isinstance(asked, str) else asked
    every = places(model)
    if isinstance(asked, str) and asked not in PRESETS:
        touched = {place.kind for place in every if place.name in adapted}
        meant = [place for place in every if place.kind in touched]
        yield f"lora: {_by_kind(adapted, meant) or f'{len(adapted)} layers outside of the decoder'}"
        return
    meant = [p for p in every if any(PRESETS[n](p) if n in PRESETS else _means(n, names, p.name) for n in names)]
    if any(name in PRESETS for name in names):
        yield f"lora: {_by_kind(adapted, meant)}"
    else:
        yield f"lora: {_by_name(names, adapted, every, layers(model))}"
    out = _left_out([place for place in meant if place.name not in adapted])
    if out:
        yield f"lora: left out, as no adapter works there: {out}"
    idle = _left_out([place for place in meant if place.name in adapted and place.left_out])
    if idle:
        yield f"lora: {idle}: these may take their weight past the adapter, which then learns nothing"


def _by_kind(adapted: set[str], meant: Sequence[Place]) -> str:
    """In how many of the layers that have it each kind is adapted."""
    shown = []
    for kind in dict.fromkeys(place.kind for place in meant):
        of_kind = [place for place in meant if place.kind == kind]
        have = {place.layer for place in of_kind if place.name in adapted}
        shown.append(f"{kind} in {len(have)} of {len({place.layer for place in of_kind})} layers")
    return ", ".join(shown)


def _by_name(names: Sequence[str], adapted: set[str], every: Sequence[Place], decoder: Sequence[str]) -> str:
    """In how many layers each name was found; and what those without any have in its place."""
    shown, covered = [], set()
    for name in names:
        have = {layer_of(one) for one in adapted if _means(name, names, one)} & {*decoder}
        covered |= have
        shown.append(f"{name} in {len(have)} of {len(decoder)} layers" if have else name)
    bare = [layer for layer in decoder if layer not in covered]
    if not covered or not bare:
        return ", ".join(shown)
    known = {place.name.rpartition(".")[2] for place in every if place.layer in covered}
    own = dict.fromkeys(place.name.rpartition(".")[2] for place in every if place.layer in {*bare})
    other = [name for name in own if name not in known] or list(own)
    return f"{', '.join(shown)}; none in {len(bare)} layers, which have {', '.join(other)}"


def _left_out(out: Sequence[Place]) -> str:
    """E.g. "out_proj of the state-space mixers of 24 layers"."""
    kinds: dict[str, tuple[dict[str, None], set[str]]] = {}
    for place in out:
        names, found = kinds.setdefault(place.kind, ({}, set()))
        names[place.name.rpartition(".")[2]] = None
        found.add(place.layer)
    return ", ".join(
        f"{', '.join(names)} of the {kind} of {len(found)} layers" for kind, (names, found) in kinds.items()
    )
