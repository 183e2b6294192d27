"""What the tests of objectives share: pairs and judged answers, a model with an adapter, an objective's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fitune import IGNORED, Adapter, Batch, Example, Objective, Origin
from fitune.compose.loss import plain_log_probs, plain_loss
from fitune.compose.objective import ObjectiveLoss, RunScores
from fitune_plugins.memory.chunked_log_probs import chunked_log_probs
from support.packed import REGISTRY, SHAPE, batch_of
from support.tiny import with_lora

LOG_PROBS: dict[str, Callable[[nn.Module, Batch], Tensor]] = {
    "plain": plain_log_probs,
    "chunked": partial(chunked_log_probs, chunk=7),
}
SIZES = ((4, 5, 3), (2, 7, 6), (6, 2, 4))
"""Tokens of each prompt, of its chosen and of its rejected answer."""


def rows(
    roles: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]] = SIZES, vocabulary: int = 50
) -> list[Example]:
    """A row of two documents for each of these sizes, with these roles: a prompt with one answer, and with another."""
    random = torch.Generator().manual_seed(2)
    found = []
    for number, ((prompt, *answers), own) in enumerate(zip(sizes, roles, strict=True), start=1):
        asked = torch.randint(1, vocabulary, (prompt,), generator=random)
        documents = [torch.cat([asked, torch.randint(1, vocabulary, (n,), generator=random)]) for n in answers]
        ids = torch.cat(documents).numpy().astype(np.int32)
        labels = np.concatenate([[IGNORED] * prompt + document[prompt:].tolist() for document in documents])
        found.append(
            Example(
                input_ids=ids,
                labels=labels.astype(np.int32),
                origin=Origin(file="made", row=number),
                lengths=tuple(map(len, documents)),
                extras={"role": tuple(own)},
            )
        )
    return found


def pairs() -> list[Example]:
    """Pairs, the chosen answer first."""
    return rows([(1.0, -1.0)] * len(SIZES))


def judged() -> list[Example]:
    """Answers that are said to be good or bad, each with its prompt and another answer behind it."""
    return rows([(1.0, 2.0), (-1.0, 2.0), (1.0, 2.0)])


def together(examples: Sequence[Example], length: int = 24) -> Batch:
    """All rows in one batch, with padding."""
    return batch_of(examples, length)


def apart(examples: Sequence[Example]) -> Iterator[Batch]:
    """Each row in a batch of its own, without padding."""
    for example in examples:
        yield batch_of([example], len(example.input_ids))


def policy(dropout: float = 0.0, seed: int = 0) -> PreTrainedModel:
    """A model with an adapter that makes a difference."""
    torch.manual_seed(seed)
    base: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))
    return cast(PreTrainedModel, with_lora(base, "q_proj", "v_proj", "up_proj", dropout=dropout).train())


def objective(name: str, log_probs: str = "plain", **options: Any) -> ObjectiveLoss:
    """An objective at work, its reference by the adapter that is off."""
    record = REGISTRY.find(Objective, name)
    off = REGISTRY.find(Adapter, "lora").off
    scores = RunScores(plain_loss, LOG_PROBS[log_probs], off)
    return ObjectiveLoss(record.make(record.options(**options)), scores, torch.device("cpu"))


def gradients(model: nn.Module) -> list[Tensor]:
    """Those of what trains, taken away."""
    found = [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]
    model.zero_grad()
    return found
