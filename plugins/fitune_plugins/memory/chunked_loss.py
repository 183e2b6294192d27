"""Memory strategy `chunked-loss`: the output head and the loss a few hundred tokens at a time, no full logits tensor.

Only tokens that are trained on pass the head. The gradient of a chunk is taken in the forward pass, so that nothing
of it is kept (the idea of Liger Kernel's fused linear cross-entropy, arXiv 2410.10989). Changes no number but by
the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from fitune import Fit, MemoryStrategy, Plan, Strategy, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "chunked-loss"

SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "mup_width_multiplier")
"""What configurations call a factor of the logits (Cohere, Granite, Falcon-H1, Phi-3-small)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedLossOptions:
    """Options of the strategy `chunked-loss`."""

    tokens: Annotated[int, Ge(1)] = 512
    """Tokens in a chunk: a chunk costs about 10 bytes x vocabulary for each (0.5 GiB at 512 and 102,400)."""


@dataclass(frozen=True, slots=True)
class ChunkedLoss(Strategy):
    """Replaces the plan's loss."""

    options: ChunkedLossOptions

    def plan(self, plan: Plan) -> Plan:
        """Replace it."""
        from fitune_plugins.memory.chunked_cross_entropy import chunked_loss

        return replace(plan, loss=partial(chunked_loss, chunk=self.options.tokens))

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Prove on a few tokens that this model's logits are what its output head gives. Raises `ModelError`."""
        from fitune_plugins.memory.chunked_cross_entropy import must_match

        must_match(model)
        return model


def _suits(config: PreTrainedConfig) -> bool:
    """Whether the model's logits are what its output head gives, as far as its configuration tells."""
    text = config.get_text_config()
    return all(getattr(text, name, None) in (None, 1, 1.0) for name in SCALES)


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[ChunkedLossOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="Output head and loss in chunks of tokens: no full logits tensor, same loss",
        options=ChunkedLossOptions,
        make=ChunkedLoss,
        exact=True,
        fit=Fit(
            free=True,
            settings=({}, {"tokens": 128}),
            halves=("tokens",),
            words={"tokens": "chunks of"},
            suits=_suits,
        ),
    )
