"""A causal language model sees no later token: told by its attention itself, or proven before a run.

Models that can be encoders too (BERT's relations, XLM) look at the whole row unless their configuration says otherwise.
Trained so, one reads each token that it is to write, and its loss says nothing. Where a model's attention does not say
of itself that it is causal, a few tokens go through it, and the gradient of the first outputs with respect to the
embeddings of later tokens must be zero, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fitune.compose.attention import logits_of, same_random, watched_embeddings, weighed
from fitune.compose.encoders import SAYS, refusal
from fitune.errors import ModelError
from fitune.plugin.dataflow import Batch
from fitune.plugin.model import has_values, known_tokens, unwrapped

if TYPE_CHECKING:
    from fitune.plugin.strategy import Loss

TOKENS = 6
"""Of the row that is tried."""

FIRST = 3
"""Tokens whose outputs may depend on none of those behind them."""


def must_be_causal(model: nn.Module, whole: Callable[[Loss], Loss] | None = None) -> None:
    """Raise `ModelError` if the model, as it will be trained, sees tokens that come later in a row.

    `whole` gives what calls the model, where weights are shared out over processes. Gradients and the state of random
    numbers are left as they were. A model that does not run on so few tokens is left to its first step.
    """
    inner = unwrapped(model)
    if _says_so(inner) or not has_values(inner):
        return
    ids = torch.arange(1, TOKENS + 1, device=inner.device)[None] % known_tokens(inner)
    batch = Batch(input_ids=ids, labels=ids, targets=TOKENS, tokens=TOKENS)
    forward = logits_of if whole is None else whole(logits_of)
    with watched_embeddings(inner) as seen, torch.enable_grad(), same_random(inner.device):
        try:
            outputs = forward(model, batch)[0, :FIRST]
            gradient = torch.autograd.grad(weighed(outputs), seen[0])[0]
        except Exception:  # whatever a model of any make may raise
            return
    later = gradient[:, FIRST:]
    if (later.isfinite() & (later != 0)).any():
        raise ModelError(refusal(type(inner).__name__, _against(inner)))


def _says_so(inner: PreTrainedModel) -> bool:
    """Whether each attention of the model says of itself that it is causal, and the configuration nothing else."""
    said = [module.is_causal for module in inner.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    return bool(said) and all(said) and not _against(inner)


def _against(inner: PreTrainedModel) -> list[str]:
    """The keys of the configuration that say that it is not causal."""
    config: Any = inner.config.get_text_config()
    return [key for key, causal in SAYS.items() if getattr(config, key, causal) is not causal]
