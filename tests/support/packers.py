"""GPTQ and AWQ by their formats' own definitions: weights are rounded to codes, and packed number by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from support.quantized import WEIGHTS, say

GROUP = 16
"""Inputs that share a scale and a zero."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which output stands in the lowest bits of a word of AWQ, which in the next, and so on (AutoAWQ, format gemm)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A weight that is quantised: what a checkpoint holds of it, and what that stands for."""

    parts: dict[str, Tensor]
    weight: Tensor
    """`[outputs, inputs]`, in float16: scale * (code - zero), rounded once."""


def gptq(
    weight: Tensor, *, bits: int = 4, symmetric: bool = True, version: int = 1, shuffled: bool = False, lowest: int = 1
) -> Packed:
    """By GPTQ: words along the inputs; version 1 stores each zero less one. `shuffled` deals the inputs out to the
    groups as desc_act does. Zeros are `lowest` at least: version 1 has no room for a zero of none.
    """
    group_of = torch.arange(weight.shape[1]) // GROUP
    if shuffled:
        group_of = group_of[torch.randperm(len(group_of), generator=torch.Generator().manual_seed(1))]
    codes, scales, zeros = _rounded(weight, group_of, bits, symmetric=symmetric, lowest=lowest)
    parts = {
        "qweight": _words(codes.t().tolist(), bits).t().contiguous(),
        "qzeros": _words((zeros - int(version == 1)).tolist(), bits),
        "scales": scales,
        "g_idx": group_of.int(),
    }
    return Packed(parts=parts, weight=_product(codes, scales, zeros, group_of))


def awq(weight: Tensor) -> Packed:
    """By AWQ, format gemm, 4 bits: words along the outputs, in an order of their own; zeros are not symmetric."""
    group_of = torch.arange(weight.shape[1]) // GROUP
    codes, scales, zeros = _rounded(weight, group_of, 4, symmetric=False, lowest=0)
    parts = {"qweight": _words(_shuffled(codes), 4), "qzeros": _words(_shuffled(zeros), 4), "scales": scales}
    return Packed(parts=parts, weight=_product(codes, scales, zeros, group_of))


def _rounded(
    weight: Tensor, group_of: Tensor, bits: int, *, symmetric: bool, lowest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes `[inputs, outputs]`, scales in float16 and zeros `[groups, outputs]`."""
    weight_IO, most = weight.double().t(), 2**bits - 1
    groups = [weight_IO[group_of == number] for number in range(int(group_of.max()) + 1)]
    if symmetric:
        scales = torch.stack([2 * group.abs().amax(0) / most for group in groups]).half()
        zeros = torch.full(scales.shape, 2 ** (bits - 1))
    else:
        lows, highs = (torch.stack([pick(group) for group in groups]) for pick in (_low, _high))
        scales = ((highs - lows) / most).half()
        zeros = (-lows / scales).round().clamp(lowest, most).long()
    codes = (weight_IO / scales[group_of].double() + zeros[group_of]).round().clamp(0, most).long()
    return codes, scales, zeros


def _low(group: Tensor) -> Tensor:
    return group.amin(0)


def _high(group: Tensor) -> Tensor:
    return group.amax(0)


def _product(codes: Tensor, scales: Tensor, zeros: Tensor, group_of: Tensor) -> Tensor:
    return (scales[group_of].double() * (codes - zeros[group_of])).half().t().contiguous()


def _shuffled(numbers: Tensor) -> list[list[int]]:
    return [[row[8 * word + at] for word in range(len(row) // 8) for at in AWQ_ORDER] for row in numbers.tolist()]


def _words(rows: Sequence[Sequence[int]], bits: int) -> Tensor:
    """Each row as one long number, the first code in its lowest bits, cut into 32-bit words."""
    found = []
    for row in rows:
        long = sum(code << bits * place for place, code in enumerate(row))
        words = [long >> 32 * number & 0xFFFFFFFF for number in range(-(-len(row) * bits // 32))]
        found.append([word - 2**32 if word >= 2**31 else word for word in words])
    return torch.tensor(found, dtype=torch.int32)


def pack_checkpoint(model: Path, method: str, **how: Any) -> None:
    """Make a checkpoint one of GPTQ ("gptq") or AWQ ("awq"): the linear layers of its decoder layers are packed."""
    stored: dict[str, Tensor] = {}
    for name, weight in load_file(model / WEIGHTS).items():
        if "_proj.weight" in name:
            packed = awq(weight) if method == "awq" else gptq(weight, **how)
            stored |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in packed.parts.items()}
        else:
            stored[name] = weight
    save_file(stored, model / WEIGHTS, metadata={"format": "pt"})
    values: dict[str, object] = {"quant_method": method, "bits": how.get("bits", 4), "group_size": GROUP}
    if method == "awq":
        say(model, **values, version="gemm", zero_point=True)
    else:
        form = "gptq" if how.get("version", 1) == 1 else "gptq_v2"
        more = {"sym": how.get("symmetric", True), "desc_act": how.get("shuffled", False)}
        say(model, **values, **more, checkpoint_format=form)


def dequantize_checkpoint(model: Path, method: str, **how: Any) -> None:
    """Make its weights what is left of them once they are packed so, in the type that they have."""
    stored = load_file(model / WEIGHTS)
    for name in [name for name in stored if "_proj.weight" in name]:
        packed = awq(stored[name]) if method == "awq" else gptq(stored[name], **how)
        stored[name] = packed.weight.to(stored[name].dtype)
    save_file(stored, model / WEIGHTS, metadata={"format": "pt"})
