"""Optimizers and other ops over lists of tensors, and bitsandbytes, whose memory `kernels.py` measures."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from kernel_attention import BF16, FP16, FP32, Case, Steps
from kernel_calls import Make, call, normal


def optimizer(
    make: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer],
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
) -> Case:
    """The first step of an optimizer, which makes its state, and the second."""

    def run(device: str) -> Steps:
        parameters = [torch.nn.Parameter(torch.randn(shape, device=device, dtype=dtype)) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        made = make(parameters)
        yield "first step", made.step
        yield "second step", made.step

    return run


SMALL: list[tuple[int, ...]] = [(4, 4096)] * 100
BIG: list[tuple[int, ...]] = [(4096, 11008)] * 10


def list_cases() -> dict[str, Case]:
    """Optimizers, clipping and the `_foreach` ops, over many small tensors and few big ones."""
    cases: dict[str, Case] = {}
    for name, shapes in (("100 small", SMALL), ("10 big", BIG)):
        for dtype in (BF16, FP32):
            kind = f"{name} {str(dtype)[6:]}"
            for way in ("fused", "foreach"):
                make = functools.partial(torch.optim.AdamW, lr=1e-4, fused=way == "fused", foreach=way == "foreach")
                cases[f"AdamW {way} {kind}"] = optimizer(make, shapes, dtype)
            lists = normal(*shapes, dtype=dtype)
            cases[f"_foreach_norm {kind}"] = call(lists, lambda *x: torch._foreach_norm(x))
            cases[f"_foreach_mul_ by tensor {kind}"] = call(
                lists, lambda *x: torch._foreach_mul_(x, torch.ones((), device=x[0].device))
            )
            graph = normal(*shapes, dtype=dtype, grad=True)
            cases[f"clip_grad_norm_ {kind}"] = clipped(graph)
        cases[f"_foreach_copy_ {name}"] = call(
            lambda device, shapes=shapes: (  # type: ignore[misc]
                *normal(*shapes[:5])(device),
                *normal(*shapes[:5], dtype=FP32)(device),
            ),
            lambda *x: torch._foreach_copy_(list(x[:5]), list(x[5:])),
        )
    return cases


def clipped(make: Make) -> Case:
    """`clip_grad_norm_`, whose own gradients are the tensors themselves."""

    def run(device: str) -> Steps:
        tensors = make(device)
        for tensor in tensors:
            tensor.grad = tensor.detach()
        yield "forward", lambda: torch.nn.utils.clip_grad_norm_(tensors, 1.0)

    return run


def bitsandbytes_cases() -> dict[str, Case]:
    """Four-bit weights and eight-bit optimizers, where the package is there."""
    try:
        bnb: Any = importlib.import_module("bitsandbytes")
    except ImportError:
        return {}
    cases: dict[str, Case] = {}

    def product(rows: int, nested: bool, dtype: torch.dtype, shape: tuple[int, int]) -> Case:
        def run(device: str) -> Steps:
            weight = torch.randn(shape, device=device, dtype=dtype)
            quantize = functools.partial(bnb.functional.quantize_4bit, compress_statistics=nested, quant_type="nf4")
            packed, state = yield "quantize_4bit", lambda: quantize(weight)
            yield "dequantize_4bit", lambda: bnb.functional.dequantize_4bit(packed, state)
            x = torch.randn(1, rows, shape[1], device=device, dtype=dtype, requires_grad=True)

            def forward() -> Any:
                with torch.enable_grad():
                    return bnb.matmul_4bit(x, packed.t(), quant_state=state)

            yield "forward, no gradient", lambda: bnb.matmul_4bit(x.detach(), packed.t(), quant_state=state)
            out = yield "forward", forward
            slope = torch.randn_like(out)
            yield "backward", lambda: torch.autograd.grad(out, x, slope)

        return run

    for rows in (1, 16, 2048):
        cases[f"4 bit, {rows} rows, nested"] = product(rows, True, BF16, (11008, 4096))
    cases["4 bit, 2048 rows"] = product(2048, False, BF16, (11008, 4096))
    cases["4 bit, 2048 rows, float16"] = product(2048, True, FP16, (4096, 4096))
    for name in ("AdamW8bit", "PagedAdamW8bit"):
        for size, shapes in (("100 small", SMALL), ("10 big", BIG)):
            make = functools.partial(getattr(bnb.optim, name), lr=1e-4)
            cases[f"{name} {size}"] = optimizer(make, shapes, BF16)
    return cases
