"""Memory strategy `fused-rms-norm`: RMSNorm layers as torch's one kernel (`torch.nn.functional.rms_norm`).

transformers writes RMSNorm (Zhang and Sennrich, arXiv 1910.07467) as six operations, which keep the hidden states in
float32 for the backward pass. The kernel keeps its input and one number a row, computes in float32 too, and reads and
writes its data once. Results differ by rounding: transformers rounds to the model's type before it multiplies by the
weight, the kernel after. A layer of another formula (Gemma's, whose weight is one less) is left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fitune import Fit, MemoryStrategy, ModelError, NoOptions, Strategy, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

NAME = "fused-rms-norm"

EPS = ("variance_epsilon", "eps")
"""What models call the term under the root."""

ROWS = 8
"""Rows that the proof takes."""


@dataclass(frozen=True, slots=True)
class FusedRmsNorm(Strategy):
    """Replaces what RMSNorm layers compute."""

    options: NoOptions

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Replace it. Raises `ModelError` if there is none of the known formula, or another strategy came first."""
        found = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
        known: dict[type[nn.Module], bool] = {}
        for module in found:
            if "forward" in module.__dict__:
                raise ModelError(f"{NAME}: a [[memory.strategy]] before it has changed the norms. Let it stand first")
            kind = type(module)
            if kind not in known:
                known[kind] = is_plain(module)
            eps = _eps(module)
            if known[kind] and eps is not None:
                module.__dict__["forward"] = partial(rms_norm, module, eps)
        if not any(known.values()):
            kinds = f": {', '.join(sorted(kind.__name__ for kind in known))} computes another" if known else ""
            raise ModelError(f"{NAME}: {type(model).__name__} has no RMSNorm of the known formula{kinds}")
        return model


def rms_norm(module: Any, eps: float, hidden: Tensor) -> Tensor:
    """Hidden states `[..., H]` over their root mean square, times the weight `[H]`."""
    from torch.nn import functional

    if hidden.dtype != module.weight.dtype:  # the kernel takes one type
        return type(module).forward(module, hidden)  # type: ignore[no-any-return]
    return functional.rms_norm(hidden, (hidden.shape[-1],), module.weight, eps)


def is_plain(module: Any) -> bool:
    """Whether a layer computes `weight * x / sqrt(mean(x^2) + eps)`; seen on random numbers, in float32 on the host.

    It may be without values itself.
    """
    import torch
    from torch import nn

    eps, weight = _eps(module), getattr(module, "weight", None)
    if eps is None or weight is None or weight.dim() != 1 or len(list(module.parameters())) != 1:
        return False
    generator = torch.Generator().manual_seed(0)
    probe = copy.copy(module)
    values = torch.randn(weight.shape, generator=generator)
    probe.__dict__["_parameters"] = {"weight": nn.Parameter(values, requires_grad=False)}
    scale = torch.logspace(-4, 2, ROWS)[:, None]  # small rows show how eps is used
    hidden = torch.randn((ROWS, len(values)), generator=generator) * scale
    with torch.no_grad():
        try:
            found = type(module).forward(probe, hidden)
        except Exception:  # a layer of the name that takes other arguments
            return False
        wanted = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps) * values
    return bool(torch.is_tensor(found) and found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-4))


def _eps(module: Any) -> float | None:
    return next((float(getattr(module, name)) for name in EPS if hasattr(module, name)), None)


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[NoOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="RMSNorm layers as one kernel: nothing kept in float32, faster; differs by rounding",
        options=NoOptions,
        make=FusedRmsNorm,
        before=("tiled-mlp", "recompute-pointwise"),
        exact=True,
        fit=Fit(free=True),
    )
