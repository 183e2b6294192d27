"""Which linear layers of torch and peft can be a group (`linears.py`), and how their adapters come to be side by side.

All ranks of a group together are padded to a multiple of 16 with zeros. peft's own parameters become views of the
matrices, so that nothing is copied: what an optimizer writes, or a checkpoint loads, is there. Strategies behind this
one may put parameters elsewhere: `rejoin`, before each use, finds that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fitune_plugins.speed.fp8_linear import Fp8Linear
from fitune_plugins.speed.linears import Group, Linear

PAD = 16
"""Columns that a low-rank matrix's are a multiple of: 32 bytes in bfloat16, what cuBLAS calls aligned."""


class CannotGroup(Exception):
    """Linears that cannot be computed here; says why, as the end of a sentence."""


def group(modules: Sequence[nn.Module]) -> Group:
    """The group of these layers, plain or with a LoRA adapter of peft. Raises `CannotGroup`; changes nothing yet:
    `Group` is made ready by `join`.
    """
    linears: list[Linear] = []
    scalings: set[float] = set()
    outputs = ranks = 0
    for one in modules:
        module: Any = one
        base = _base(module)
        linear = Linear(base, slice(outputs, outputs + base.out_features), slice(ranks, ranks))
        if base is not module:
            adapter = _adapter(module)
            scalings.add(float(module.scaling[adapter]))
            down, up = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            linear.adapter, linear.ranks = (down, up), slice(ranks, ranks + down.shape[0])
            linear.dropout = float(getattr(module.lora_dropout[adapter], "p", 0.0))
        outputs, ranks = linear.rows.stop, linear.ranks.stop
        linears.append(linear)
    if len(scalings) > 1:
        raise CannotGroup("adapters with one input are scaled differently")
    return Group(tuple(linears), scalings.pop() if scalings else 1.0)


def join(one: Group) -> None:
    """Put a group's adapters side by side; peft's parameters become views of the two matrices."""
    adapted = [linear for linear in one.linears if linear.adapter is not None]
    if not adapted:
        return
    first = _parameters(adapted[0])[0]
    padded = -(-adapted[-1].ranks.stop // PAD) * PAD
    one.down = torch.zeros((padded, first.shape[1]), dtype=first.dtype, device=first.device)
    for linear in adapted:
        down, up = _parameters(linear)
        linear.up = torch.zeros((padded, up.shape[0]), dtype=first.dtype, device=first.device)
        for parameter, view in ((down, one.down[linear.ranks]), (up, linear.up[linear.ranks].t())):
            view.copy_(parameter.data)
            parameter.data = view
    one.parameters = tuple(parameter for linear in adapted for parameter in _parameters(linear))


def rejoin(one: Group) -> None:
    """Join a group again where somebody has since put its parameters elsewhere, as `fsdp` does: each on its device, by
    itself. Looks at the first adapter alone, for all are put there together.
    """
    adapted = next((linear for linear in one.linears if linear.adapter is not None), None)
    if adapted is None or one.down is None or adapted.up is None:
        return
    down, up = _parameters(adapted)
    if not (_lies_in(down, one.down) and _lies_in(up, adapted.up)):
        join(one)


def _lies_in(parameter: torch.Tensor, matrix: torch.Tensor) -> bool:
    if parameter.device != matrix.device:
        return False
    return parameter.untyped_storage().data_ptr() == matrix.untyped_storage().data_ptr()


def _parameters(linear: Linear) -> tuple[nn.Parameter, nn.Parameter]:
    assert linear.adapter is not None
    return linear.adapter


def _base(module: Any) -> Any:
    """The frozen layer inside of a layer. Raises `CannotGroup`."""
    base = module.base_layer if hasattr(module, "base_layer") else module
    name = type(base).__name__
    if type(base) not in (nn.Linear, Fp8Linear) and name != "Linear4bit":
        raise CannotGroup(f"{name} is no linear layer that is known here")
    if base is not module and type(module).__name__ not in ("Linear", "Linear4bit"):
        raise CannotGroup(f"the adapter {type(module).__name__} is none that is known here")
    if any(parameter.requires_grad for parameter in base.parameters()):
        raise CannotGroup("layers of the base train too")
    if "forward" in module.__dict__ or ("forward" in base.__dict__ and name != "Linear4bit"):
        raise CannotGroup("another strategy has changed what its layers compute")
    return base


def _adapter(module: Any) -> str:
    """The name of a layer's one adapter. Raises `CannotGroup`."""
    names = list(module.lora_A)
    if len(names) != 1 or list(module.active_adapters) != names or module.merged:
        raise CannotGroup("it has not just one adapter")
    name = str(names[0])
    if module.lora_variant or module.lora_bias[name] or getattr(module, "fan_in_fan_out", False):
        raise CannotGroup("its adapter is of another kind than plain LoRA")
    base = module.get_base_layer()
    known = base.weight.is_floating_point() and not isinstance(base, Fp8Linear)
    computes = base.weight.dtype if known else getattr(base, "compute_dtype", module.lora_A[name].weight.dtype)
    if module.lora_A[name].weight.dtype != computes:
        raise CannotGroup(f"its adapters compute in {str(module.lora_A[name].weight.dtype)[6:]}")
    return name
