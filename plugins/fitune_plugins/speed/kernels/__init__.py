"""Operations of the fast path: pointwise work of a Llama-like layer and of the loss, a launch each.

Each is an operation of torch in the namespace `fitune`, with three implementations: Triton kernels on CUDA
(`triton_*.py`, imported at their first launch, so that this package needs no triton), plain torch on a CPU, which is
the reference that kernels are held to, and one without values, by which a forecast knows what they take: their results,
and nothing else. None has a gradient of its own: they are called inside of a `torch.autograd.Function`.

Begin with `norm.py`. All compute in float32 (a CPU in float64 where the inputs are), round where transformers rounds in
the forward direction, and once, at the end, in the backward direction. Nothing is added atomically, and sizes of blocks
follow from shapes, so that results are the same to the bit each time.

Shapes: M tokens, H hidden, I intermediate, R ranks of adapters (0 to 16), D a head's width, N target tokens, V
vocabulary. Matrices have a unit stride along their last axis, and any along the first. A low-rank part is
`low [M, R] @ up_t [R, N]`, already scaled; None stands for none.
"""

from fitune_plugins.speed.kernels.cross_entropy import cross_entropy_
from fitune_plugins.speed.kernels.gated import gated, gated_backward
from fitune_plugins.speed.kernels.norm import norm, norm_backward
from fitune_plugins.speed.kernels.residual import onto_residual_
from fitune_plugins.speed.kernels.rope import rope, rope_backward
from fitune_plugins.speed.kernels.skinny import skinny, skinny_

__all__ = [
    "cross_entropy_",
    "gated",
    "gated_backward",
    "norm",
    "norm_backward",
    "onto_residual_",
    "rope",
    "rope_backward",
    "skinny",
    "skinny_",
]
