"""A frozen linear layer whose products are made of numbers in 8 bits, in both directions.

Inputs and gradients are rounded row by row as they come. The weight is rounded once, with a scale for each output: in
the forward product it is the column's, in the gradient's it belongs to what is summed over, so it is multiplied into
the gradient before that is rounded. Tensor cores want both matrices along what is summed over: the gradient's product
takes the weight's transpose, kept beside it or made anew each time.

Shapes: M tokens, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fitune_plugins.speed.kernels.fp8 import product, to_fp8, transposed

MULTIPLE = 16
"""What both sides of a weight must be a multiple of."""


class Fp8Linear(nn.Linear):
    """A `torch.nn.Linear` by `convert`; so that peft knows it."""

    scale: Tensor
    turned: Tensor | None
    ones: Tensor
    """The scales of the gradient's product, `[1, K]`: the weight's are in the gradient by then."""

    def forward(self, input: Tensor) -> Tensor:
        """`[..., K]` to `[..., N]`."""
        apply: Callable[..., Tensor] = _Product.apply
        return apply(input, self)

    def product(self, rounded: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        """`x W^T + b`, `[M, N]`, of inputs that `to_fp8` has rounded."""
        made = product(*rounded, self.weight, self.scale, dtype)
        return made if self.bias is None else made.add_(self.bias)

    def grad_of_input(self, grad_MN: Tensor) -> Tensor:
        """`dy W`, `[M, K]`."""
        rounded = to_fp8(grad_MN, self.scale[0])
        right = transposed(self.weight) if self.turned is None else self.turned
        return product(*rounded, right, self.ones, grad_MN.dtype)


def convert(linear: nn.Linear, *, turned: bool) -> None:
    """Make a frozen linear one of these, where it stands; its weight's transpose is kept beside it, or not."""
    with torch.no_grad():
        weight, scale = to_fp8(linear.weight.data)
    linear.__class__ = Fp8Linear
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_buffer("scale", scale.view(1, -1), persistent=False)
    linear.register_buffer("turned", transposed(weight) if turned else None, persistent=False)
    ones = torch.ones((1, weight.shape[1]), dtype=torch.float32, device=weight.device)
    linear.register_buffer("ones", ones, persistent=False)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Fp8Linear) -> Tensor:
        ctx.linear = linear
        made = linear.product(to_fp8(x.flatten(0, -2)), x.dtype)
        # No view, for whoever adds an adapter's part in place: autograd refuses that for views that are made here.
        return torch.ops.aten._unsafe_view.default(made, [*x.shape[:-1], made.shape[-1]])  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        flat = ctx.linear.grad_of_input(grads[0].flatten(0, -2))
        return flat.view(*grads[0].shape[:-1], -1), None
