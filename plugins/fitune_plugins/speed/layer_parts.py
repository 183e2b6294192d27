"""What the pieces of a decoder layer (`pieces.py`) are made of. Shapes: M tokens, H width, I width of the MLP."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fitune_plugins.speed import kernels
from fitune_plugins.speed.linears import NO_FOLD, Fold, Group


@dataclass(slots=True, frozen=True)
class Norm:
    """An RMSNorm (arXiv 1910.07467); its weight is frozen."""

    weight: Tensor
    eps: float
    unit_offset: bool
    """Whether the weight is one less than the factor (Gemma)."""
    round_first: bool
    """Whether the result is rounded to the model's type before it is multiplied (Llama)."""

    def __call__(self, x_MH: Tensor) -> Tensor:
        """Norm of rows."""
        return kernels.norm(x_MH, self.weight, self.eps, self.unit_offset, self.round_first)

    def backward(
        self,
        dh_MH: Tensor,
        x_MH: Tensor,
        *,
        low: Fold = NO_FOLD,
        residual: Tensor | None = None,
        again: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Gradient of `x` from `dh + dlow @ down`, plus the residual's; and the norm's result, where asked for."""
        return kernels.norm_backward(
            dh_MH, *low, x_MH, self.weight, self.eps, self.unit_offset, self.round_first, residual, again
        )


@dataclass(slots=True, eq=False)
class Projections:
    """q, k and v of an attention, with norm and rotary embedding."""

    group: Group
    """q, k, v; or one linear of all three (Phi-3)."""
    norm: Norm | None
    heads: int
    key_heads: int
    head_dim: int
    rotary: bool
    head_norms: tuple[Norm, Norm] | None = None
    """Of each head of q and k (Qwen3, Gemma 3)."""
    whole_norms: tuple[Norm, Norm] | None = None
    """Of all heads of q, and of k, together (OLMo 2)."""

    @property
    def ends(self) -> tuple[int, int, int]:
        """Where q, k and v end among the outputs."""
        q, k = self.heads * self.head_dim, self.key_heads * self.head_dim
        return q, q + k, q + 2 * k

    def norms_of_heads(self) -> tuple[Tensor | None, Tensor | None, float, bool, bool]:
        """As the rotary kernels take them."""
        if self.head_norms is None:
            return None, None, 0.0, False, False
        q, k = self.head_norms
        return q.weight, k.weight, q.eps, q.unit_offset, q.round_first


@dataclass(slots=True, eq=False)
class Output:
    """Attention's output layer, and the residual."""

    group: Group
    norm: Norm | None
    """Of the result, before it is added (Gemma 2 and 3, OLMo 2)."""
    multiplier: float
    """Of the result, before it is added (Granite)."""


@dataclass(slots=True, eq=False)
class Mlp:
    """A gated MLP, and the residual."""

    group: Group
    """gate and up; or one linear of both (Phi-3)."""
    down: Group
    norm: Norm | None
    after: Norm | None
    multiplier: float
    act: str
    recompute: bool = False
    """Whether gate and up are computed again in the backward pass."""

    @property
    def width(self) -> int:
        """I."""
        return self.group.outputs // 2
