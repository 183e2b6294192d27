"""Memory strategy `chunked-loss`: the output head and the loss a few hundred tokens at a time, no full logits tensor.

Only tokens that are trained on pass the head. The gradient of a chunk is taken in the forward pass, so that nothing
of it is kept (the idea of Liger Kernel's fused linear cross-entropy, arXiv 2410.10989). On a GPU, with a head that is a
frozen matrix, one kernel makes loss and gradient of the logits where they stand. Changes no number but by the order of
sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from fitune import Batch, Fit, MemoryStrategy, Plan, Strategy, hookimpl, unwrapped

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "chunked-loss"

FUSED, PLAIN = 2048, 512
"""Tokens in a chunk where nothing is said: with one kernel for the loss, and without."""

SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "mup_width_multiplier")
"""What configurations call a factor of the logits (Cohere, Granite, Falcon-H1, Phi-3-small)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedLossOptions:
    """Options of the strategy `chunked-loss`."""

    tokens: Annotated[int, Ge(1)] | None = None
    """Tokens in a chunk. Each costs 2 bytes x vocabulary where one kernel makes the loss (a GPU, a frozen head), and
    2048 are the default there (0.4 GiB at a vocabulary of 102,400); elsewhere about 10 bytes x vocabulary, and 512."""


@dataclass(frozen=True, slots=True)
class ChunkedLoss(Strategy):
    """Replaces the plan's loss, and its log-probabilities."""

    options: ChunkedLossOptions

    def plan(self, plan: Plan) -> Plan:
        """Replace it."""
        loss, log_probs = (partial(one, tokens=self.options.tokens, gpu=plan.gpu) for one in (_loss, _log_probs))
        return replace(plan, loss=loss, log_probs=log_probs, more_targets=True)

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Prove on a few tokens that this model's logits are what its output head gives. Raises `ModelError`."""
        from fitune_plugins.memory.chunked_cross_entropy import must_match

        must_match(model)
        return model


def _loss(model: nn.Module, batch: Batch, *, tokens: int | None, gpu: bool) -> Tensor:
    """Sum of the cross-entropy over a batch's target tokens, as float32."""
    if gpu:
        from fitune_plugins.memory.fused_cross_entropy import fused_loss, suits

        if suits(unwrapped(model).get_output_embeddings()):
            return fused_loss(model, batch, chunk=tokens or FUSED)
    from fitune_plugins.memory.chunked_cross_entropy import chunked_loss

    return chunked_loss(model, batch, chunk=tokens or PLAIN)


def _log_probs(model: nn.Module, batch: Batch, *, tokens: int | None, gpu: bool) -> Tensor:
    """The log-probability of each target token, as float32, 0 elsewhere: `[batch, length]`."""
    if gpu:
        from fitune_plugins.memory.fused_cross_entropy import fused_log_probs, suits

        if suits(unwrapped(model).get_output_embeddings()):
            return fused_log_probs(model, batch, chunk=tokens or FUSED)
    from fitune_plugins.memory.chunked_log_probs import chunked_log_probs

    return chunked_log_probs(model, batch, chunk=tokens or PLAIN)


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
        makes=("loss",),
        fit=Fit(
            free=True,
            settings=({}, {"tokens": 128}),
            halves=("tokens",),
            words={"tokens": "chunks of"},
            suits=_suits,
            unsuited="the model's logits are not what its output head gives",
        ),
    )
