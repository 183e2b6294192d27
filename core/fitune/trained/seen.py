"""What a model makes of rows: the logits of their tokens, or, of one that gives texts a score, the scores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fitune.plugin.dataflow import IGNORED, Example
from fitune.plugin.model import unwrapped
from fitune.plugin.objective import CHOSEN, REJECTED, ROLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEPT = 2**28
"""Bytes of logits that are kept of each model: as many positions of each row, evenly spread, as that takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a model makes of some rows."""

    logits: tuple[Tensor, ...]
    """Of each row `[positions, vocabulary]`, in float32, on the host."""
    loss: float
    """Mean over all target tokens of the rows; of scores that of Bradley and Terry, over pairs."""
    of_texts: bool = False
    """Whether `logits` are scores of whole texts: `[1, texts]` of each row."""


@torch.no_grad()
def see(model: PreTrainedModel, rows: Sequence[Example]) -> Seen:
    """Run a model over rows, one at a time."""
    model.eval()
    if unwrapped(model).get_output_embeddings() is None:
        return see_scores(model, rows)
    vocabulary = model.config.get_text_config().vocab_size
    most = max(1, KEPT // (4 * vocabulary * len(rows)))
    kept: list[Tensor] = []
    total, targets = 0.0, 0
    for row in rows:
        ids = torch.from_numpy(row.input_ids).long()[None].to(model.device)
        logits_SV = cast(Any, model)(input_ids=ids, use_cache=False).logits[0]
        labels_S = torch.from_numpy(row.labels).long()[1:].to(logits_SV.device)
        aims = labels_S != IGNORED
        loss = F.cross_entropy(logits_SV[:-1][aims].float(), labels_S[aims], reduction="sum")
        total, targets = total + loss.double().item(), targets + int(aims.sum())
        picks = torch.linspace(0, len(logits_SV) - 1, min(most, len(logits_SV))).round().long()
        kept.append(logits_SV[picks.to(logits_SV.device)].float().cpu())
    return Seen(logits=tuple(kept), loss=total / targets)


def see_scores(model: PreTrainedModel, rows: Sequence[Example]) -> Seen:
    """Run a model that gives a text a score over the documents of rows, each by itself, as transformers does."""
    score, roles = cast(Any, model), list[float]()
    scores: list[Tensor] = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids).long().to(model.device)
        documents = ids.split(row.lengths or (len(ids),))
        scores += [score(input_ids=document[None], use_cache=False).logits.flatten()[0] for document in documents]
        roles += row.extras.get(ROLE, (0.0,) * row.documents)
    found = torch.stack(scores).float().cpu()
    pairs = [at for at, two in enumerate(itertools.pairwise(roles)) if two == (CHOSEN, REJECTED)]
    margins = found[pairs] - found[[at + 1 for at in pairs]]
    logits = found[None].split([row.documents for row in rows], dim=1)
    return Seen(logits=logits, loss=-F.logsigmoid(margins).double().mean().item(), of_texts=True)
