"""Linear layers that share one input, with their LoRA adapters side by side (`grouping.py` puts them there).

Ranks are small: at r = 4 a row of `x A^T` is 8 bytes, which cuBLAS multiplies by slow, misaligned kernels. So the
adapters of all linears with one input (q, k and v; gate and up) stand side by side, their ranks together padded to a
multiple of 16 with zeros. Shapes: M tokens, K inputs, N outputs of all linears of a group together, P padded rank of
them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fitune_plugins.speed import kernels
from fitune_plugins.speed.fp8_linear import Fp8Linear
from fitune_plugins.speed.kernels.fp8 import to_fp8
from fitune_plugins.speed.kernels.skinny import WIDEST

FOLDED = 16
"""The largest rank that kernels add as they go; larger ones are added by a product of their own."""

Fold: TypeAlias = tuple[Tensor | None, Tensor | None]
"""What a kernel adds as it goes: the product of `[M, r]` and `[r, n]`; nothing where both are None."""

NO_FOLD: Fold = (None, None)


@dataclass(slots=True, eq=False)
class Linear:
    """One linear of a group."""

    module: Any
    """The frozen layer: `torch.nn.Linear`, or bitsandbytes' in 4 bits."""
    rows: slice
    """Its outputs among those of the group."""
    ranks: slice = field(default_factory=lambda: slice(0, 0))
    """Its adapter's rows among the group's; empty without an adapter."""
    dropout: float = 0.0
    adapter: tuple[nn.Parameter, nn.Parameter] | None = None
    """A `[r, K]` and B `[n, r]`."""
    up: Tensor | None = None
    """B transposed, `[P, n]`: zero but in its own ranks; None without an adapter. A matrix for each linear, so that
    each B is dense: its gradient and the optimizer's state then have its strides."""

    @property
    def rank(self) -> int:
        """Of its adapter; 0 without one."""
        return int(self.ranks.stop - self.ranks.start)

    def weight(self) -> Tensor:
        """The weight `[n, K]`, for the time of a product: one in 4 bits is dequantised, and given back behind it."""
        weight: Tensor = self.module.weight
        state = getattr(weight, "quant_state", None)
        if state is None:
            return weight
        from bitsandbytes.functional import dequantize_4bit

        made: Tensor = dequantize_4bit(weight.data, state)
        return made

    def product(self, x_MK: Tensor) -> Tensor:
        """`x W^T + b`, `[M, n]`."""
        if isinstance(self.module, Fp8Linear):
            return self.module.product(to_fp8(x_MK), x_MK.dtype)
        return nn.functional.linear(x_MK, self.weight(), self.module.bias)

    def add_grad_of_input(self, total_MK: Tensor | None, grad_Mn: Tensor) -> Tensor:
        """`dy W`, `[M, K]`, on top of what others have given."""
        if isinstance(self.module, Fp8Linear):
            made = self.module.grad_of_input(grad_Mn)
            return made if total_MK is None else total_MK.add_(made)
        weight = self.weight()
        return grad_Mn @ weight if total_MK is None else total_MK.addmm_(grad_Mn, weight)


@dataclass(slots=True, eq=False)
class Group:
    """Linears with one input."""

    linears: tuple[Linear, ...]
    scaling: float = 1.0
    """What adapters' results are multiplied by."""
    down: Tensor | None = None
    """A of all adapters, `[P, K]`; None where no linear has one."""
    off: bool = False
    """Whether adapters are switched off, just now: without a gradient alone."""
    parameters: tuple[nn.Parameter, ...] = field(default=())
    """A and B of each adapter, in the order of the linears."""

    @property
    def outputs(self) -> int:
        """N."""
        return int(self.linears[-1].rows.stop)

    @property
    def drops(self) -> bool:
        """Whether an adapter's inputs are dropped in training."""
        return any(linear.dropout for linear in self.linears)

    # ------------------------------------------------------------------------------------------------- forward

    def low(self, x_MK: Tensor, masks: Sequence[Tensor | None] = ()) -> Tensor | None:
        """`scaling * x A^T`, `[M, P]`; of inputs that are dropped where there are masks. None without adapters."""
        if self.down is None or self.off:
            return None
        if not any(mask is not None for mask in masks):
            return _product(x_MK, self.down, self.scaling)
        low_MP = x_MK.new_zeros((x_MK.shape[0], self.down.shape[0]))
        for linear, mask in zip(self.linears, masks, strict=True):
            if linear.rank:
                kept = x_MK if mask is None else _dropped(x_MK, mask, linear.dropout)
                low_MP[:, linear.ranks] = kept @ self.down[linear.ranks].t()  # `out=` would hide it from checkpoints
        return low_MP.mul_(self.scaling)

    def products(self, x_MK: Tensor) -> list[Tensor]:
        """Each linear's own product and bias, `[M, n]`, without adapters."""
        if all(isinstance(linear.module, Fp8Linear) for linear in self.linears):
            rounded = to_fp8(x_MK)
            return [linear.module.product(rounded, x_MK.dtype) for linear in self.linears]
        return [linear.product(x_MK) for linear in self.linears]

    def add(self, y_Mn: Tensor, low_MP: Tensor | None, at: int) -> Tensor:
        """Add one linear's adapter onto its product, in place."""
        up = self.linears[at].up
        return y_Mn if low_MP is None or up is None else y_Mn.addmm_(low_MP, up)

    def folded(self, low_MP: Tensor | None, at: int) -> Fold:
        """One linear's part of `low` and its B `[r, n]`, for a kernel that adds their product; (None, None) where there
        is none, or where it is too large for that.
        """
        linear = self.linears[at]
        if low_MP is None or linear.up is None or linear.rank > FOLDED:
            return NO_FOLD
        return low_MP[:, linear.ranks], linear.up[linear.ranks]

    def add_if_large(self, y_Mn: Tensor, low_MP: Tensor | None, at: int) -> Tensor:
        """Add one linear's adapter where `folded` gives nothing of it."""
        return self.add(y_Mn, low_MP, at) if self.linears[at].rank > FOLDED else y_Mn

    def masks(self, x_MK: Tensor, *, training: bool) -> list[Tensor | None]:
        """Which inputs of each adapter are kept, drawn anew: bytes `[M, K]`; None for all of them."""
        drawn: list[Tensor | None] = []
        for linear in self.linears:
            one = None
            if training and linear.rank and linear.dropout:
                one = torch.empty_like(x_MK, dtype=torch.bool).bernoulli_(1 - linear.dropout)
            drawn.append(one)
        return drawn

    # ------------------------------------------------------------------------------------------------- backward

    def grad_of_low(self, grads: Sequence[Tensor]) -> Tensor | None:
        """`scaling * dy B`, `[M, P]`, from the gradients of the linears' results, `[M, n]` each."""
        total: Tensor | None = None
        for linear, grad in zip(self.linears, grads, strict=True):
            if linear.up is None:
                continue
            if total is None:
                total = _product(grad, linear.up, self.scaling)
            elif len(linear.up) <= WIDEST:
                kernels.skinny_(total, grad, linear.up, self.scaling)
            else:
                total.addmm_(grad, linear.up.t(), alpha=self.scaling)
        return total

    def grad_of_input(self, grads: Sequence[Tensor]) -> Tensor:
        """`dy W`, `[M, K]`, without adapters' part."""
        total: Tensor | None = None
        for linear, grad in zip(self.linears, grads, strict=True):
            total = linear.add_grad_of_input(total, grad)
        assert total is not None
        return total

    def folds_down(self, masks: Sequence[Tensor | None] = ()) -> bool:
        """Whether a kernel adds `dlow A` to a gradient as it goes."""
        dropped = any(mask is not None for mask in masks)
        return self.down is not None and not dropped and sum(linear.rank for linear in self.linears) <= FOLDED

    def down_part(self, dlow_MP: Tensor | None) -> Fold:
        """What such a kernel takes: `dlow [M, r]` and A `[r, K]`, without the padding."""
        if dlow_MP is None or self.down is None:
            return NO_FOLD
        rank = max(linear.ranks.stop for linear in self.linears)
        return dlow_MP[:, :rank], self.down[:rank]

    def add_down(self, dx_MK: Tensor, dlow_MP: Tensor | None, masks: Sequence[Tensor | None] = ()) -> Tensor:
        """Add adapters' part to the gradient of the input, in place."""
        if dlow_MP is None or self.down is None:
            return dx_MK
        if not any(mask is not None for mask in masks):
            return dx_MK.addmm_(dlow_MP, self.down)
        for linear, mask in zip(self.linears, masks, strict=True):
            if linear.rank:
                part = dlow_MP[:, linear.ranks] @ self.down[linear.ranks]
                dx_MK += part if mask is None else _dropped(part, mask, linear.dropout)
        return dx_MK

    def grads(
        self,
        x_MK: Tensor,
        low_MP: Tensor | None,
        dlow_MP: Tensor | None,
        grads: Sequence[Tensor],
        masks: Sequence[Tensor | None] = (),
    ) -> list[Tensor]:
        """Gradients of `parameters`."""
        if low_MP is None or dlow_MP is None:
            return []
        dropped = any(mask is not None for mask in masks)
        of_down = None if dropped else dlow_MP.t() @ x_MK
        made: list[Tensor] = []
        for at, linear in enumerate(self.linears):
            if not linear.rank:
                continue
            if of_down is not None:
                made.append(of_down[linear.ranks])
            else:
                mask = masks[at]
                kept = x_MK if mask is None else _dropped(x_MK, mask, linear.dropout)
                made.append(dlow_MP[:, linear.ranks].t() @ kept)
            made.append((low_MP.t() @ grads[at])[linear.ranks].t())
        return made


def _product(x_MK: Tensor, right_PK: Tensor, scaling: float) -> Tensor:
    """`scaling * x @ right^T`."""
    if len(right_PK) <= WIDEST:
        return kernels.skinny(x_MK, right_PK, scaling)
    made = x_MK.new_empty((x_MK.shape[0], len(right_PK)))  # not read: beta is 0
    return made.addmm_(x_MK, right_PK.t(), beta=0, alpha=scaling)


def _dropped(x: Tensor, mask: Tensor, share: float) -> Tensor:
    return x * mask * (1 / (1 - share))
