"""A linear layer with its LoRA adapter. Shapes: N tokens, I inputs, O outputs, R rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def forward(layer: Any, x: Tensor, *args: Any, **named: Any) -> Tensor:
    """What a peft layer's `forward` gives: `[..., I]` to `[..., O]`; by itself where it has no adapter to add."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if args or named or layer.disable_adapters or layer.merged or len(active) != 1:
        return type(layer).forward(layer, x, *args, **named)  # type: ignore[no-any-return]
    name = active[0]
    down, up, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    if x.dtype != down.dtype:
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    base, dropout = layer.base_layer, layer.lora_dropout[name]
    if _is_plain(base) and isinstance(dropout, nn.Identity):
        one: Callable[..., Tensor] = _LoraLinear.apply
        return one(x, base.weight, base.bias, down, up, scaling)
    added: Callable[..., Tensor] = _Added.apply
    return added(base(x), dropout(x), down, up, scaling)


def _is_plain(base: nn.Module) -> bool:
    """Whether a layer is a frozen matrix and nothing else, so that its own `forward` need not be called."""
    return (
        type(base) is nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and "forward" not in base.__dict__
        and not (base._forward_hooks or base._forward_pre_hooks)
    )


class _LoraLinear(torch.autograd.Function):
    """`x W^T + b + s x A^T B^T`, with gradients of x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, down_RI: Tensor, up_OR: Tensor, scaling: float
    ) -> Tensor:
        out = F.linear(x, weight_OI, bias_O)
        low_NR = _add(out, x, down_RI, up_OR, scaling)
        ctx.save_for_backward(x, low_NR, weight_OI, down_RI, up_OR)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, low_NR, weight_OI, down_RI, up_OR = ctx.saved_tensors
        grad_NO = grads[0].flatten(0, -2)
        grad_NR = (grad_NO @ up_OR).mul_(ctx.scaling)
        of_up = (grad_NO.T @ low_NR).mul_(ctx.scaling)
        of_down = grad_NR.T @ x.flatten(0, -2)
        if not ctx.needs_input_grad[0]:
            return None, None, None, of_down, of_up, None
        del x, low_NR
        grad_NI = (grad_NO @ weight_OI).addmm_(grad_NR, down_RI)
        return grad_NI.view(*grads[0].shape[:-1], -1), None, None, of_down, of_up, None


class _Added(torch.autograd.Function):
    """`y + s x A^T B^T`, on `y` itself: a result that nobody else needs."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, down_RI: Tensor, up_OR: Tensor, scaling: float) -> Tensor:
        low_NR = _add(y, x, down_RI, up_OR, scaling)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, low_NR, down_RI, up_OR)
        ctx.scaling = scaling
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, low_NR, down_RI, up_OR = ctx.saved_tensors
        grad_NO = grads[0].flatten(0, -2)
        grad_NR = (grad_NO @ up_OR).mul_(ctx.scaling)
        of_up = (grad_NO.T @ low_NR).mul_(ctx.scaling)
        of_down = grad_NR.T @ x.flatten(0, -2)
        of_x = (grad_NR @ down_RI).view(x.shape) if ctx.needs_input_grad[1] else None
        return grads[0] if ctx.needs_input_grad[0] else None, of_x, of_down, of_up, None


def _add(y: Tensor, x: Tensor, down_RI: Tensor, up_OR: Tensor, scaling: float) -> Tensor:
    """Add the adapter's product to `y [..., O]`; gives `x A^T`."""
    low_NR = x.flatten(0, -2) @ down_RI.T
    y.view(-1, y.shape[-1]).addmm_(low_NR, up_OR.T, alpha=scaling)
    return low_NR
