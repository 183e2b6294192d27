"""Memory strategy `tiled-mlp`: MLPs and norms a tile of tokens at a time, forward and backward.

What an MLP makes is several times as wide as its input, and a norm makes float32 copies: at a hundred thousand tokens
these are what does not fit. Each tile is computed again in the backward pass; in a layer that is checkpointed this
takes the place of computing its MLP again, and costs next to nothing. Arctic Long Sequence Training, arXiv 2506.13996.
Changes no number but by the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from fitune import Fit, MemoryStrategy, ModelError, Strategy, hookimpl

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

NAME = "tiled-mlp"

MLPS = ("MLP", "FeedForward", "FFN")

NORMS = ("RMSNorm", "LayerNorm")
"""How the names of transformers' classes end."""

MIXTURES = ("expert", "router", "moe")
"""Parts of the names in a mixture of experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledMlpOptions:
    """Options of the strategy `tiled-mlp`."""

    tokens: Annotated[int, Ge(1)] = 4096
    """Tokens in a tile: smaller ones save memory, and cost time below what keeps a card busy."""


@dataclass(frozen=True, slots=True)
class TiledMlp(Strategy):
    """Replaces the `forward` of modules."""

    options: TiledMlpOptions

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Replace it. Raises `ModelError` if the model has no MLP that is known to treat tokens one by one."""
        from fitune import unwrapped
        from fitune_plugins.memory.tiles import Tiled

        body = unwrapped(model).base_model
        mlps, norms = _mlps(body), _norms(body)
        if not mlps:
            raise ModelError(
                f"{NAME}: {type(unwrapped(model)).__name__} has no MLP that can be computed in tiles. Remove the "
                f'[[memory.strategy]] with use = "{NAME}"'
            )
        for mlp in {type(mlp): mlp for mlp in mlps}.values():
            _must_take_tokens_alone(mlp, unwrapped(model))
        for module in (*mlps, *norms):
            module.__dict__["forward"] = Tiled(module, self.options.tokens, random=module in mlps)
        return model


def _mlps(body: nn.Module) -> list[nn.Module]:
    """The MLPs of layers, but for mixtures of experts."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in body.modules() if isinstance(m, GradientCheckpointingLayer)]
    children = [child for layer in layers for child in layer.children()]
    return [child for child in children if type(child).__name__.endswith(MLPS) and not _is_mixture(child)]


def _must_take_tokens_alone(mlp: nn.Module, model: PreTrainedModel) -> None:
    """Raise `ModelError` if an MLP gives a token something else by itself than among others."""
    import torch

    from fitune import has_values

    width = model.config.get_text_config().hidden_size
    tokens = torch.linspace(-1, 1, 4 * width, device=model.device).to(model.dtype).view(1, 4, width)
    was_training = mlp.training
    mlp.eval()
    try:
        with torch.no_grad():
            among_others, alone = mlp(tokens)[:, 2:3].float(), mlp(tokens[:, 2:3]).float()
    finally:
        mlp.train(was_training)
    off = (among_others - alone).norm() > 0.05 * alone.norm()
    if has_values(model) and off:
        raise ModelError(
            f"{NAME}: {type(mlp).__name__} does not treat every token by itself. Remove the [[memory.strategy]] with "
            f'use = "{NAME}"'
        )


def _is_mixture(module: nn.Module) -> bool:
    names = " ".join(name for name, _ in (*module.named_modules(), *module.named_parameters())).lower()
    return any(part in names for part in MIXTURES)


def _norms(body: nn.Module) -> list[nn.Module]:
    """Norms that transformers composes of operations, each with results of its own; torch's are one kernel."""
    return [
        module
        for module in body.modules()
        if type(module).__name__.endswith(NORMS) and not type(module).__module__.startswith("torch.")
    ]


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[TiledMlpOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="MLPs and norms in tiles of tokens: nothing that is tokens x intermediate wide stands whole",
        options=TiledMlpOptions,
        make=TiledMlp,
        before=("fast-layers", "recompute-pointwise"),
        exact=True,
        fit=Fit(needs="gradient-checkpointing", halves=("tokens",), words={"tokens": "tiles of"}),
    )
