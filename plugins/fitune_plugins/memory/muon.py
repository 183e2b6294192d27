"""Memory strategy `muon`: matrices by Muon, whose updates are orthogonal; embeddings, heads and vectors by AdamW.

Jordan et al., https://kellerjordan.github.io/posts/muon/; Liu et al., arXiv 2502.16982. A matrix has one moment of
float32 in place of AdamW's two. LoRA's A and B are a matrix each, and experts that are one tensor are AdamW's, or of
LoRA one matrix. Each is made orthogonal in bfloat16, one at a time, which takes a few copies of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Lt

from fitune import MemoryStrategy, OptimizerSettings, hookimpl
from fitune_plugins.memory.optimizers import OfMatrices, of_tokens

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

NAME = "muon"


@dataclass(frozen=True, slots=True, kw_only=True)
class MuonOptions:
    """Options of the strategy `muon`."""

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Decay of the mean of gradients."""
    nesterov: bool = True
    """Whether an update looks ahead by the newest gradient."""
    iterations: Annotated[int, Ge(1), Lt(100)] = 5
    """Of Newton and Schulz, by which an update is made orthogonal."""
    scale: Literal["adamw", "original"] = "adamw"
    """How large an update is: "adamw" as AdamW's, so that its learning rate and weight decay can be kept (arXiv
    2502.16982); "original" by the root of rows over columns, which wants a learning rate of about 0.02."""


class Muon(OfMatrices):
    """Makes the optimizer."""

    options: MuonOptions

    def told(self, model: PreTrainedModel) -> Iterable[str]:
        """Say what is whose."""
        apart, trained = of_tokens(model), [p for p in model.parameters() if p.requires_grad]
        matrices = sum(_is_hidden(parameter, apart) for parameter in trained)
        rest = len(trained) - matrices
        return (f"muon: {matrices} matrices by Muon, {rest} other tensors by AdamW",)

    def make_optimizer(self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
        """Make it. Raises `ModelError` where matrices are shared out."""
        from fitune_plugins.memory.muon_with_adamw import MuonWithAdamW

        apart = set() if self._model is None else of_tokens(self._model)
        of_model = self.of_model(parameters, NAME)
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for master, parameter in zip(parameters, of_model, strict=True):
            (matrices if _is_hidden(parameter, apart) else others).append(master)
        return MuonWithAdamW(
            matrices,
            others,
            settings=settings,
            momentum=self.options.momentum,
            nesterov=self.options.nesterov,
            iterations=self.options.iterations,
            scale="match_rms_adamw" if self.options.scale == "adamw" else "original",
        )


def _is_hidden(parameter: nn.Parameter, apart: set[int]) -> bool:
    """Whether it is a matrix between layers."""
    return parameter.ndim == 2 and id(parameter) not in apart


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[MuonOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="Muon (torch) for matrices, AdamW for embeddings, heads and vectors: 4 bytes a number of state, not 8",
        exact=False,
        makes=("optimizer",),
        options=MuonOptions,
        make=Muon,
    )
