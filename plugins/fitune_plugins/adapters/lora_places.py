"""Where a low-rank adapter can stand in a model: its linear layers, and the experts that are one tensor each.

What a layer is follows from the model itself, not from a list of families: the first number in a name is that of a
decoder layer, and names and classes say whether it belongs to attention, an MLP, a router or experts. The model may
be on meta, and may have its adapter by now.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

EXPERTS, SHARED = "routed experts", "shared experts"

MAMBA = "state-space mixers"

ATTENTION = ("attention", "linear attention")

MLP = "MLPs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One linear layer, or one tensor of experts."""

    name: str
    """Of the module; of the parameter, where that is what is adapted."""
    kind: str
    """What it is a part of, e.g. "attention", "routed experts"."""
    block: str
    """The same, but for experts what these are a part of."""
    layer: str
    """Name of the decoder layer, e.g. "model.layers.3"; empty outside of them."""
    parameter: bool = False
    """Whether it is a parameter of a module that is no linear layer."""
    left_out: bool = False
    """Whether peft cannot adapt it, or its adapter would be passed by."""


def places(model: PreTrainedModel) -> list[Place]:
    """Those of the decoder, but for the head and for routers, in the model's own order."""
    modules = plain_modules(model)
    inside, head = _decoder(model, modules), model.get_output_embeddings()
    found: list[Place] = []
    for name, module in modules.items():
        if not f"{name}.".startswith(inside) or module is head or _base(head) is module:
            continue
        way = chain(name, modules)
        if is_router(way):
            continue
        if is_linear(module):
            found.append(_place(way, left_out=_is_bypassed(way) or _is_grouped(module)))
        elif _holds_experts(way):
            found += _tensors(way)
    return found


Chain = Sequence[tuple[str, "nn.Module"]]
"""The modules on the way to one, from the outermost on, each with its full name; the last is the one itself."""


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules by the names that they have without an adapter."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        parts = name.split(".")
        if not any(part.startswith("lora_") for part in parts):
            found[".".join(part for part in parts if part != "base_layer")] = module
    return found


def layers(model: PreTrainedModel) -> list[str]:
    """Names of the decoder's layers: of its lists of modules, those of the longest."""
    modules = plain_modules(model)
    inside = _decoder(model, modules)
    names = {layer_of(name): None for name in modules if f"{name}.".startswith(inside)}
    lists: dict[str, list[str]] = {}
    for name in names:
        lists.setdefault(name.rpartition(".")[0], []).append(name)
    lists.pop("", None)
    return max(lists.values(), key=len, default=[])


def layer_of(name: str) -> str:
    """The decoder layer that a module stands in, by its name; empty outside of them."""
    found = re.match(r"(?:[^.]*[^.\d][^.]*\.)+?\d+(?=\.|$)", name)
    return found[0] if found else ""


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix, quantised or not, that peft knows how to wrap."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, (nn.Linear, Conv1D)):
        return getattr(module, "weight", None) is None or module.weight.ndim <= 2
    sized = hasattr(module, "in_features") and hasattr(module, "out_features")
    return sized and "Linear" in type(module).__name__


def is_router(way: Chain) -> bool:
    """Whether a module chooses among experts, or stands in one that does."""
    for number, (name, module) in enumerate(way):
        own = name.rpartition(".")[2]
        if "router" in own.lower() or type(module).__name__.endswith(("Router", "Gating")):
            return True
        siblings = way[number - 1][1].named_children() if number else ()
        if own in ("gate", "gating") and any("expert" in sibling for sibling, _ in siblings):
            return True
    return False


def chain(name: str, modules: Mapping[str, nn.Module]) -> Chain:
    """The way to one of a model's `plain_modules`."""
    parts = name.split(".")
    names = [".".join(parts[: number + 1]) for number in range(len(parts))]
    return [(one, _base(modules[one])) for one in names]


def _base(module: Any) -> nn.Module:
    """What an adapter wraps."""
    get = getattr(module, "get_base_layer", None)
    inner: nn.Module = module if get is None else get()
    return inner


def _decoder(model: PreTrainedModel, modules: Mapping[str, nn.Module]) -> str:
    """How the names of all that takes part in writing text begin: towers that see and hear are not asked for."""
    decoder: Any = model.get_decoder()
    names = {id(_base(module)): name for name, module in modules.items()}
    name = names.get(id(decoder), "")
    has_layers = name and any(layer_of(f"{name}.{inner}") for inner, _ in decoder.named_modules())
    return f"{name}." if has_layers else ""


def _tensors(way: Chain) -> Iterator[Place]:
    """The experts that a module holds in tensors of its own: `[experts, inputs, outputs]`, or turned."""
    name, module = way[-1]
    for own, parameter in module.named_parameters(recurse=False):
        if own.endswith("bias") or own.endswith("scales") or parameter.ndim < 2:
            continue
        fits = parameter.ndim == 3 and parameter.is_floating_point()
        yield replace(_place(way, left_out=not fits), name=f"{name}.{own}", parameter=True)


def _holds_experts(way: Chain) -> bool:
    return "expert" in type(way[-1][1]).__name__.lower()


def _place(way: Chain, *, left_out: bool) -> Place:
    name = way[-1][0]
    layer = layer_of(name)
    rest = [(one[len(layer) + 1 :], module) for one, module in way if layer and len(one) > len(layer)]
    block = _block(*rest[0]) if rest else re.sub(r"\.\d+", "", name)
    kind = block
    for one, module in rest:
        own = one.rpartition(".")[2].lower()
        if own.startswith(("shared_expert", "shared_mlp")):
            kind = SHARED
        elif own == "experts" or _holds_experts([(one, module)]):
            kind = EXPERTS
    return Place(name=name, kind=kind, block=block, layer=layer, left_out=left_out)


def _block(name: str, module: nn.Module) -> str:
    """What a child of a layer is, by its name and, where that says nothing, its class."""
    for text in (name.lower(), type(module).__name__.lower()):
        if "mamba" in text or "ssm" in text:
            return MAMBA
        if "linear_attn" in text or "deltanet" in text:
            return ATTENTION[1]
        if "attn" in text or "attention" in text:
            return ATTENTION[0]
        if re.search(r"mlp|feed_?forward|ffn|moe(block)?$|^fc\d|^dense_", text):
            return MLP
    return name


def _is_grouped(module: Any) -> bool:
    """Whether one matrix holds several, each for a part of the input."""
    return getattr(module, "n_groups", 1) != 1


def _is_bypassed(way: Chain) -> bool:
    """Whether it is a layer of a Mamba mixer, whose code or kernels take the weight and pass an adapter by."""
    if way[-1][0].rpartition(".")[2] not in ("out_proj", "dt_proj"):
        return False
    return any("mamba" in f"{one.rpartition('.')[2]} {type(module).__name__}".lower() for one, module in way[1:-1])
