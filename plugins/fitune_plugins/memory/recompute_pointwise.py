"""Memory strategy `recompute-pointwise`: norms and gated activations are computed again in the backward pass.

They cost little time and keep much: of a layer of width H whose MLP is I wide, a norm in bfloat16 keeps a float32 copy
and, for adapters, its result (6 H bytes a token each), a gated MLP the activation and the product (4 I bytes). With
this they keep what goes into them alone: 2 H, and gate and up, 4 I. Products of matrices and attention are computed
once, as ever (Korthikanti et al., "Reducing activation recomputation", arXiv 2205.05198, choose by the same measure).
Changes no number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fitune import Fit, MemoryStrategy, ModelError, NoOptions, Strategy, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from fitune_plugins.memory.recomputed import Recomputation

NAME = "recompute-pointwise"

NORMS = ("RMSNorm", "LayerNorm")
"""Ends of the names of classes of norms."""


def _recomputation() -> Recomputation:
    from fitune_plugins.memory.recomputed import Recomputation

    return Recomputation()


@dataclass(frozen=True, slots=True)
class RecomputePointwise(Strategy):
    """Wraps norms and gated MLPs."""

    options: NoOptions
    recomputation: Recomputation = field(default_factory=_recomputation)

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Wrap them. Raises `ModelError` if there are none."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        from fitune import unwrapped

        layers = {
            module: layer
            for layer in model.modules()
            if isinstance(layer, GradientCheckpointingLayer)
            for module in layer.modules()
        }
        found = 0
        for name, module in model.named_modules():
            make = _wrapper(name, module)
            if make is not None:
                module.__dict__["forward"] = make(module, layers.get(module), self.recomputation)
                found += 1
        if not found:
            raise ModelError(
                f"{NAME}: {type(unwrapped(model)).__name__} has no norm and no gated MLP that are known. Remove the "
                f'[[memory.strategy]] with use = "{NAME}"'
            )
        return model

    def around_step(self) -> contextlib.AbstractContextManager[None]:
        """Have what is saved of them computed again."""
        return self.recomputation.around_step()


def _wrapper(name: str, module: nn.Module) -> Callable[..., Callable[..., Tensor]] | None:
    """What makes a module's new forward function; None if it is left alone."""
    if type(module).__name__.endswith(NORMS):
        return _norm
    if "experts" in name.split(".") or "forward" in module.__dict__:
        return None  # of a few tokens each, and not of the same each time; or another strategy's by now
    for form, make in FORMS:
        if _same(type(module).forward, form):
            return make
    return None


def _checkpointed(layer: Any) -> bool:
    """Whether all of a layer is computed again anyway (`gradient-checkpointing`)."""
    return layer is not None and layer.gradient_checkpointing and layer.training


def _norm(norm: nn.Module, layer: nn.Module | None, recomputation: Recomputation) -> Callable[..., Tensor]:
    forward = norm.forward

    def again(*inputs: Tensor, **named: Any) -> Tensor:
        if named or len(inputs) != 1 or _checkpointed(layer):
            return forward(*inputs, **named)  # type: ignore[no-any-return]
        return recomputation.run(forward, *inputs)

    return again


def _gated(mlp: Any, layer: nn.Module | None, recomputation: Recomputation) -> Callable[..., Tensor]:
    forward = mlp.forward

    def product(gate: Tensor, up: Tensor) -> Tensor:
        return mlp.act_fn(gate) * up  # type: ignore[no-any-return]

    def again(x: Tensor) -> Tensor:
        if _checkpointed(layer):
            return forward(x)  # type: ignore[no-any-return]
        return mlp.down_proj(recomputation.run(product, mlp.gate_proj(x), mlp.up_proj(x)))  # type: ignore[no-any-return]

    return again


def _gated_in_one(mlp: Any, layer: nn.Module | None, recomputation: Recomputation) -> Callable[..., Tensor]:
    forward = mlp.forward

    def product(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return up * mlp.activation_fn(gate)  # type: ignore[no-any-return]

    def again(hidden_states: Tensor) -> Tensor:
        if _checkpointed(layer):
            return forward(hidden_states)  # type: ignore[no-any-return]
        return mlp.down_proj(recomputation.run(product, mlp.gate_up_proj(hidden_states)))  # type: ignore[no-any-return]

    return again


def _of_llama(self: Any, x: Tensor) -> Tensor:
    down_proj: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
    return down_proj


def _of_qwen2(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


def _of_phi3(self: Any, hidden_states: Any) -> Tensor:
    up_states = self.gate_up_proj(hidden_states)

    gate, up_states = up_states.chunk(2, dim=-1)
    up_states = up_states * self.activation_fn(gate)

    return self.down_proj(up_states)  # type: ignore[no-any-return]


FORMS = ((_of_llama, _gated), (_of_qwen2, _gated), (_of_phi3, _gated_in_one))
"""Forward functions of gated MLPs as transformers' models have them, nearly all by copying, and what replaces them."""


def _same(one: Any, other: Any) -> bool:
    """Whether two functions do the same, whatever they call their variables."""
    code, form = getattr(one, "__code__", None), other.__code__
    return code is not None and (code.co_code, code.co_names, code.co_consts) == (
        form.co_code,
        form.co_names,
        form.co_consts,
    )


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[NoOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="Norms and gated activations computed again in the backward pass; products of matrices are not",
        options=NoOptions,
        make=RecomputePointwise,
        exact=True,
        fit=Fit(),
    )
