"""What stands for bitsandbytes where it is not installed: its layers as a forecast sees them, without values.

Types, shapes and the order of operations are those of bitsandbytes 0.50, which computes by operations of its own: here
they have a result without values, and nothing that computes one. A weight of n elements in 4 bits (QLoRA, Dettmers et
al., arXiv 2305.14314) takes n / 2 bytes; a float32 scale for 64 elements, or with double quantisation a byte for 64 and
a float32 for 256 of these; tables of 16 and 256 float32.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fitune_plugins.loaders import bitsandbytes_stand_in_optimizer as optimizer

NAME = "bitsandbytes"

BLOCK, NESTED = 64, 256
"""Elements that share a scale, and scales that do."""

OPERATIONS = {
    "quantize_4bit": "(Tensor A, int blocksize, str quant_type, ScalarType quant_storage) -> (Tensor, Tensor)",
    "dequantize_4bit": (
        "(Tensor A, Tensor absmax, int blocksize, str quant_type, int[] shape, ScalarType dtype) -> Tensor"
    ),
    "quantize_blockwise": "(Tensor A, Tensor code, int blocksize) -> (Tensor, Tensor)",
    "dequantize_blockwise": "(Tensor A, Tensor absmax, Tensor code, int blocksize, ScalarType dtype) -> Tensor",
    "gemm_4bit": (
        "(Tensor A, Tensor B, int[] shapeB, Tensor absmax, int blocksize, str quant_type, Tensor? bias=None, "
        "Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> Tensor"
    ),
}
"""Which a trace knows by these names and arguments, in their order."""


def put() -> None:
    """Let `import bitsandbytes` find what stands for it, which stays: peft and transformers keep what they imported."""
    if hasattr(sys.modules.get(NAME), "STANDS_IN"):
        return
    for name, schema in {**OPERATIONS, **optimizer.OPERATIONS}.items():
        torch.library.define(f"{NAME}::{name}", schema)
        torch.library.register_fake(f"{NAME}::{name}", globals().get(f"_{name}", _in_place))
    package, functional, layers, optim = (_module(name) for name in ("", ".functional", ".nn", ".optim"))
    package.__dict__.update(STANDS_IN=True, functional=functional, nn=layers, optim=optim)
    functional.__dict__.update(dequantize_4bit=dequantize_4bit, name2qmap={})
    layers.__dict__.update({one.__name__: one for one in (Linear4bit, Linear8bitLt, Params4bit, Int8Params)})
    sys.modules[f"{NAME}.nn.modules"] = layers.__dict__["modules"] = layers
    optim.__dict__["adamw"] = sys.modules[f"{NAME}.optim.adamw"] = optimizer
    _tell(package)


def _module(end: str) -> ModuleType:
    made = sys.modules[NAME + end] = ModuleType(NAME + end)
    made.__spec__, made.__path__ = ModuleSpec(made.__name__, None, is_package=True), []
    return made


def _tell(package: ModuleType) -> None:
    """Tell of it those who have looked for bitsandbytes before."""
    from transformers.integrations import bitsandbytes as of_transformers

    of_transformers.__dict__["bnb"] = package
    imports = sys.modules.get("peft.import_utils")
    for name in ("is_bnb_available", "is_bnb_4bit_available"):
        getattr(getattr(imports, name, None), "cache_clear", bool)()


# ----------------------------------------------------------------------------------------------------- operations


def _quantize_4bit(A: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype) -> tuple[Tensor, Tensor]:
    packed = -(A.numel() // -2) // quant_storage.itemsize
    return A.new_empty((packed, 1), dtype=quant_storage), _scales(A, blocksize)


def _quantize_blockwise(A: Tensor, code: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(A, dtype=torch.uint8), _scales(A, blocksize)


def _dequantize_4bit(
    A: Tensor, absmax: Tensor, blocksize: int, quant_type: str, shape: list[int], dtype: torch.dtype
) -> Tensor:
    return A.new_empty(shape, dtype=dtype)


def _dequantize_blockwise(A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(A, dtype=dtype)


def _gemm_4bit(A: Tensor, B: Tensor, shapeB: list[int], *scales: object, **nested: object) -> Tensor:
    return A.new_empty((*A.shape[:-1], shapeB[0]))


def _in_place(*given: object) -> None:
    """What changes its arguments alone."""


def _scales(elements: Tensor, blocksize: int) -> Tensor:
    return elements.new_empty(-(elements.numel() // -blocksize), dtype=torch.float32)


# -------------------------------------------------------------------------------------------------------- weights


@dataclass(slots=False, kw_only=True, eq=False)
class QuantState:
    """What a weight in 4 bits has beside it, by the names that bitsandbytes gives it."""

    absmax: Tensor
    """Scales, `[blocks]`: float32, or a byte each where they are quantised too."""
    code: Tensor
    """What the values of a weight stand for."""
    shape: torch.Size | None
    """Of the weight, `[out, in]`."""
    dtype: torch.dtype
    blocksize: int
    quant_type: str | None = None
    offset: Tensor | None = None
    state2: QuantState | None = None
    """Of the scales, where they are quantised."""


class Params4bit(nn.Parameter):
    """A weight in 4 bits; peft and the counting of parameters know it by its name."""

    quant_state: QuantState | None
    compress_statistics: bool
    quant_type: str
    quant_storage: torch.dtype

    def __new__(cls, data: Tensor, *, double: bool, kind: str, storage: torch.dtype) -> Params4bit:
        """A weight that is not quantised yet."""
        made: Params4bit = torch.Tensor._make_subclass(cls, data, False)
        made.quant_state, made.compress_statistics, made.quant_type, made.quant_storage = None, double, kind, storage
        return made

    def _quantize(self, device: torch.device) -> Params4bit:
        """In the order of bitsandbytes, which decides what the allocator is asked for."""
        weight = self.data.contiguous().to(device)
        packed, absmax = torch.ops.bitsandbytes.quantize_4bit.default(
            weight, BLOCK, self.quant_type, self.quant_storage
        )
        state = QuantState(
            absmax=absmax,
            code=torch.empty(16, device=device),
            shape=weight.shape,
            dtype=weight.dtype,
            blocksize=BLOCK,
            quant_type=self.quant_type,
        )
        if self.compress_statistics:
            state.offset = absmax.mean()
            code = torch.empty(256, device=device)
            state.absmax, scales = torch.ops.bitsandbytes.quantize_blockwise.default(
                absmax - state.offset, code, NESTED
            )
            state.state2 = QuantState(absmax=scales, code=code, shape=None, dtype=torch.float32, blocksize=NESTED)
        self.data, self.quant_state = packed, state
        return self


class Int8Params(nn.Parameter):
    """A weight in 8 bits, of which `bitsandbytes_layers` makes what a card holds."""

    CB: Tensor | None = None
    SCB: Tensor | None = None


def dequantize_4bit(weight: Tensor, state: QuantState) -> Tensor:
    """The plain weight, `[out, in]`."""
    absmax = state.absmax
    if state.state2 is not None:
        inner = state.state2
        absmax = torch.ops.bitsandbytes.dequantize_blockwise.default(
            absmax, inner.absmax, inner.code, inner.blocksize, inner.dtype
        )
        absmax += state.offset
    found: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
        weight, absmax, state.blocksize, state.quant_type, state.shape, state.dtype
    )
    return found


# --------------------------------------------------------------------------------------------------------- layers


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None, state: QuantState) -> Tensor:
    inner, nested = state.absmax, {}
    if state.state2 is not None:
        inner = state.state2.absmax
        nested = {"absmax_8bit": state.absmax, "absmax_code": state.state2.code, "absmax_offset": state.offset}
    found: Tensor = torch.ops.bitsandbytes.gemm_4bit.default(
        inputs, weight, state.shape, inner, state.blocksize, state.quant_type, bias=bias, **nested
    )
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, state: QuantState) -> Tensor:
        ctx.weight, ctx.state = weight, state
        return _product(inputs, weight, bias, state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        return gradient @ dequantize_4bit(ctx.weight, ctx.state).to(gradient.dtype), None, None, None


class Linear4bit(nn.Linear):
    """A linear layer whose weight is in 4 bits."""

    weight: Params4bit
    compute_dtype: torch.dtype

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        compute_dtype: torch.dtype | None = None,
        compress_statistics: bool = True,
        quant_type: str = "fp4",
        quant_storage: torch.dtype = torch.uint8,
    ) -> None:
        """As transformers calls it."""
        super().__init__(input_features, output_features, bias)
        self.weight = Params4bit(self.weight.data, double=compress_statistics, kind=quant_type, storage=quant_storage)

    def forward(self, input: Tensor) -> Tensor:
        """The outputs `[batch, length, out]`, in the type of the inputs `[batch, length, in]`."""
        inputs, state, packed = input.to(self.compute_dtype), self.weight.quant_state, self.weight.view(-1, 1)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        if torch.is_grad_enabled() and inputs.requires_grad:
            found: Tensor = _Product.apply(inputs, packed, bias, state)  # type: ignore[no-untyped-call]
        else:
            assert state is not None
            found = _product(inputs, packed, bias, state)
        return found.to(input.dtype)


@dataclass(slots=True, kw_only=True, eq=False)
class State8bit:
    """What a layer in 8 bits keeps of its settings."""

    threshold: float
    has_fp16_weights: bool


class Linear8bitLt(nn.Linear):
    """A linear layer whose weight is in 8 bits; `bitsandbytes_layers` says how it computes."""

    index = None

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        has_fp16_weights: bool = True,
        threshold: float = 0.0,
    ) -> None:
        """As transformers calls it."""
        super().__init__(input_features, output_features, bias)
        self.state = State8bit(threshold=threshold, has_fp16_weights=has_fp16_weights)
        self.weight = Int8Params(self.weight.data, requires_grad=False)
