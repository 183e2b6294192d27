"""Rows that several processes share, each of which has a part of every one (`Plan.context_parallel`).

How a part is computed is a strategy's. Whether a model's parts give what its rows give is not taken on trust: a model
that carries more than attention from token to token (a convolution, a state) would train on something else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fitune.compose.calling import call_plugin
from fitune.compose.model import Strategies, called
from fitune.compose.together import together
from fitune.errors import ModelError, described
from fitune.plugin.dataflow import Batch
from fitune.plugin.model import known_tokens, unwrapped
from fitune.plugin.strategy import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fitune.plugin.strategy import Loss

TOKENS = 24
"""Of the row that is tried, for each process."""

SAME, SAME_IN_HALF = 1e-3, 0.1
"""By how much of their norm logits of a part may differ from those of the row: by the rounding of float32, or of types
of 16 bits in many layers."""


def part_of(strategies: Strategies) -> Callable[[Batch], Batch]:
    """What gives this process' part of a batch."""

    def part(batch: Batch) -> Batch:
        for use, strategy in strategies:
            batch = call_plugin(use, strategy.part, batch)
        return batch

    return part


def split_rows(strategies: Strategies, plan: Plan, model: PreTrainedModel, device: torch.device) -> None:
    """Where processes share rows, have the model compute parts of them, and prove that it does; last, before a run.

    Every process must call it. Raises `ModelError`, in all of them, for a model whose parts say something else than its
    rows.
    """
    if plan.context_parallel == 1:
        return
    whole: Callable[[Loss], Loss] = partial(called, strategies)
    together().meet()  # behind this, one that has failed would be waited for
    row = _row(model, plan)
    before = _logits_of(model, whole, row.to(device))
    for use, strategy in strategies:
        call_plugin(use, strategy.split_rows, model)
    mine = part_of(strategies)(row)
    said = _difference(model, whole, mine, before, device)
    said = next((one for one in together().texts(said) if one), "")
    if said:
        raise ModelError(
            f"{type(unwrapped(model)).__name__} cannot compute rows in parts: {said}. Remove the [[memory.strategy]] "
            "that splits rows over processes"
        )


def _difference(
    model: nn.Module, whole: Callable[[Loss], Loss], mine: Batch, before: Tensor, device: torch.device
) -> str:
    """What is wrong with this process' part of a row, of which the model gave `before`; empty where nothing is."""
    simulated = dist.get_backend() == "fake"  # in a forecast nobody else is there
    try:
        found = _logits_of(model, whole, mine.to(device))
    except Exception as error:  # whatever a model of any make may raise
        if simulated:
            raise
        return described(error)
    if simulated:
        return ""
    assert mine.begin is not None
    own = slice(mine.begin, min(mine.begin + found.shape[1] - 1, before.shape[1]))
    expected, found = before[:, own], found[:, : own.stop - own.start]
    most = SAME if cast(Any, unwrapped(model)).dtype == torch.float32 else SAME_IN_HALF
    if float((found - expected).norm()) <= most * float(expected.norm()):
        return ""
    return "something in it but attention looks at tokens that other processes have"


def _row(model: nn.Module, plan: Plan) -> Batch:
    """A row whose tokens do not share out evenly, `[1, length]`, on the host."""
    length = TOKENS * plan.context_parallel - 3
    ids = (torch.arange(1, length + 1) * 7)[None] % known_tokens(model)
    return Batch(input_ids=ids, labels=ids.clone(), targets=length - 1, tokens=length)


def _logits_of(model: nn.Module, whole: Callable[[Loss], Loss], batch: Batch) -> Tensor:
    """Of all tokens of a batch, `[1, length, vocabulary]`, float32, without dropout."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return whole(_logits)(model, batch).float()
    finally:
        model.train(training)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    return cast(Tensor, cast(Any, model)(**batch.inputs()).logits)
