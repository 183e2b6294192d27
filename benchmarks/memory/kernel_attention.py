"""Attention whose memory `kernels.py` measures: as torch chooses the kernel, and each kernel by name.

Shapes: B rows, S tokens, H heads, K heads of keys and values, D head size, T tokens of all documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from typing import Any

import torch
import torch.nn.functional as F

Steps = Generator[tuple[str, Callable[[], Any]], Any, None]
"""Calls to measure, each with its label; the generator is sent what the call returned."""

Case = Callable[[str], Steps]
"""`(device) -> steps`. Tensors made between two steps are not counted to either."""

aten = torch.ops.aten
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One problem. `mask` is "" for none, "bool" or "float" for a causal one of [B, 1, S, S]."""

    B: int = 1
    S: int = 2048
    H: int = 32
    K: int = 32
    D: int = 128
    dtype: torch.dtype = BF16
    dropout: float = 0.0
    causal: bool = True
    mask: str = ""

    def __str__(self) -> str:
        words = [str(self.dtype)[6:], f"B{self.B} S{self.S} H{self.H} K{self.K} D{self.D}"]
        words += [f"dropout {self.dropout}"] * bool(self.dropout) + [f"{self.mask} mask"] * bool(self.mask)
        return " ".join([*words, *["not causal"] * (not self.causal and not self.mask)])

    def tensors(self, device: str) -> list[torch.Tensor]:
        """Query, key and value as a transformers model passes them: [B, H, S, D], contiguous as [B, S, H, D]."""
        return [
            torch.randn(self.B, self.S, heads, self.D, device=device, dtype=self.dtype).transpose(1, 2)
            for heads in (self.H, self.K, self.K)
        ]

    def bias(self, device: str) -> torch.Tensor | None:
        """The mask, as asked for."""
        if not self.mask:
            return None
        seen = torch.ones(self.S, self.S, dtype=torch.bool, device=device).tril().expand(self.B, 1, -1, -1).contiguous()
        if self.mask == "bool":
            return seen
        return torch.zeros(seen.shape, dtype=self.dtype, device=device).masked_fill_(~seen, float("-inf"))

    @property
    def is_causal(self) -> bool:
        """What the kernel is told: a mask excludes the flag."""
        return self.causal and not self.mask


def chosen(problem: Attention, *, grad: bool = True) -> Case:
    """`F.scaled_dot_product_attention`, forward and backward; what the graph keeps counts as live."""

    def run(device: str) -> Steps:
        q, k, v = (tensor.requires_grad_(grad) for tensor in problem.tensors(device))
        mask = problem.bias(device)

        def forward() -> Any:
            with torch.set_grad_enabled(grad):
                return F.scaled_dot_product_attention(
                    q, k, v, mask, problem.dropout, problem.is_causal, enable_gqa=problem.K != problem.H
                )

        out = yield "forward", forward
        if grad:
            slope = torch.randn_like(out)
            yield "backward", lambda: torch.autograd.grad(out, (q, k, v), slope)

    return run


def flash(problem: Attention) -> Case:
    """The flash kernel and its backward."""

    def run(device: str) -> Steps:
        q, k, v = problem.tensors(device)
        p, causal = problem.dropout, problem.is_causal
        out = yield "forward", lambda: aten._scaled_dot_product_flash_attention(q, k, v, p, causal)
        saved = (out[0], out[1], out[2], out[3], out[4], out[5], p, causal, out[6], out[7])
        slope = torch.randn_like(out[0])
        yield (
            "backward",
            lambda: aten._scaled_dot_product_flash_attention_backward(slope, q, k, v, *saved),
        )

    return run


def efficient(problem: Attention, *, bias_grad: bool = False) -> Case:
    """The memory-efficient kernel and its backward."""

    def run(device: str) -> Steps:
        q, k, v = problem.tensors(device)
        p, causal, bias = problem.dropout, problem.is_causal, problem.bias(device)
        if bias is not None:
            bias = bias.expand(problem.B, problem.H, problem.S, problem.S)
        out = yield "forward", lambda: aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, p, causal)
        wanted = [True, True, True, bias_grad]
        slope = torch.randn_like(out[0])
        yield (
            "backward",
            lambda: aten._scaled_dot_product_efficient_attention_backward(
                slope, q, k, v, bias, out[0], out[1], out[2], out[3], p, wanted, causal
            ),
        )

    return run


def cudnn(problem: Attention) -> Case:
    """cuDNN's kernel and its backward."""

    def run(device: str) -> Steps:
        q, k, v = problem.tensors(device)
        p, causal, bias = problem.dropout, problem.is_causal, problem.bias(device)
        out = yield "forward", lambda: aten._scaled_dot_product_cudnn_attention(q, k, v, bias, True, p, causal)
        slope = torch.randn_like(out[0])
        yield (
            "backward",
            lambda: aten._scaled_dot_product_cudnn_attention_backward(
                slope, q, k, v, out[0], out[1], out[6], out[7], bias, out[2], out[3], out[4], out[5], p, causal
            ),
        )

    return run


def packed(problem: Attention, documents: int, window: int | None = None, *, direct: bool = False) -> Case:
    """Attention by the ends of documents of S tokens each, as packed rows use it; `direct` calls aten."""

    def run(device: str) -> Steps:
        whole = dataclasses.replace(problem, B=1, S=problem.S * documents)
        q, k, v = (tensor[0].transpose(0, 1).detach().requires_grad_(not direct) for tensor in whole.tensors(device))
        ends = torch.arange(documents + 1, device=device, dtype=torch.int32) * problem.S
        sizes = (ends, ends, problem.S, problem.S, 0.0, True)
        if direct:
            sides: dict[str, Any] = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
            out = yield "forward", lambda: aten._flash_attention_forward(q, k, v, *sizes, False, **sides)
            grad = torch.randn_like(out[0])
            yield (
                "backward",
                lambda: aten._flash_attention_backward(grad, q, k, v, out[0], out[1], *sizes, out[2], out[3], **sides),
            )
            return
        from fitune.compose.varlen import KERNEL

        def forward() -> Any:
            with torch.enable_grad():
                return KERNEL(q, k, v, ends, problem.S, scale=problem.D**-0.5, window=window)

        out = yield "forward", forward
        slope = torch.randn_like(out)
        yield "backward", lambda: torch.autograd.grad(out, (q, k, v), slope)

    return run


def attention_cases() -> dict[str, Case]:
    """Every case, by name."""
    heads = [Attention(D=64), Attention(), Attention(D=256, H=16, K=16), Attention(K=8), Attention(B=2, S=1000, K=8)]
    odd = [Attention(D=80), Attention(D=96), Attention(D=100), Attention(D=192, H=16, K=16), Attention(S=2047)]
    dropped = [Attention(dropout=0.1), Attention(dropout=0.1, D=64), Attention(dropout=0.1, D=256, H=16, K=16)]
    masked = [
        Attention(mask="bool"),
        Attention(mask="bool", S=2047),
        Attention(mask="bool", K=8),
        Attention(mask="bool", D=64, B=2),
        Attention(mask="bool", B=2, S=1001, K=8),
        Attention(mask="float"),
        Attention(mask="float", S=2047),
        Attention(mask="float", dtype=FP16),
        Attention(mask="bool", dropout=0.1),
    ]
    full = [Attention(dtype=FP16), Attention(causal=False), Attention(H=8, K=8, dtype=FP32)]
    full += [Attention(H=8, K=8, dtype=FP32, mask="bool"), Attention(H=8, K=2, dtype=FP32), Attention(S=4096)]
    float_masks = [problem for problem in masked if problem.mask == "float"]
    equal = [problem for problem in [*heads, *odd, *dropped, *full] if problem.H == problem.K]
    half = [problem for problem in [*heads, *odd, *dropped, *full] if problem.dtype != FP32]
    cases = {f"sdpa {problem}": chosen(problem) for problem in [*heads, *odd, *dropped, *masked, *full]}
    cases |= {f"sdpa, no gradient {p}": chosen(p, grad=False) for p in [Attention(), Attention(mask="bool")]}
    cases |= {f"flash {problem}": flash(problem) for problem in half}
    cases |= {f"efficient {problem}": efficient(problem) for problem in [*equal, *float_masks]}
    cases[f"efficient, bias gradient {float_masks[0]}"] = efficient(float_masks[0], bias_grad=True)
    # Called with heads of 100, which sdpa would not give it, cuDNN's kernel ended the process.
    cases |= {f"cudnn {problem}": cudnn(problem) for problem in [*half, *float_masks] if problem.D % 8 == 0}
    small = [Attention(S=512), Attention(S=512, K=8), Attention(S=500, K=8, D=64), Attention(S=2048, D=256, H=16, K=16)]
    for problem in small:
        cases[f"varlen, 4 documents {problem}"] = packed(problem, 4)
        cases[f"aten varlen, 4 documents {problem}"] = packed(problem, 4, direct=True)
    cases[f"varlen, 1 document {small[0]}"] = packed(small[0], 1)
    cases[f"varlen, 4 documents, window 128 {small[1]}"] = packed(small[1], 4, 128)
    cases[f"aten varlen, 4 documents, window 128 {small[1]}"] = packed(small[1], 4, 128, direct=True)
    return cases
