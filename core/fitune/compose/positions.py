"""Positions that a model knows: a table of them ends, and what lies behind its end is an error deep within a kernel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fitune.compose.model import built
from fitune.data.prepare import Prepared, batch_maker
from fitune.errors import DataError, FtError
from fitune.plugin.dataflow import IGNORED, DataContext, Example, Origin
from fitune.plugin.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TABLE = re.compile(r"(.*\.)?(wpe|\w*pos(ition)?s?_?(emb\w*|enc\w*)|embed_positions)(\.weight)?")
"""Names of embeddings and buffers with a row for each position."""

OFFSETS = 8
"""Most rows of a table that stand for no position."""


def built_or_none(recipe: Recipe) -> PreTrainedModel | None:
    """A recipe's model without weights; None where its loader cannot build it."""
    try:
        return built(recipe)
    except FtError:  # whoever loads it says why
        return None


def table_of(model: PreTrainedModel) -> int | None:
    """How many positions a model has a row for, learned or fixed; None where they are computed, as rotary ones are."""
    most = known_by(model)
    if most is None:
        return None
    for name, module in model.named_modules():
        own: dict[str, Any] = {
            **dict(module.named_parameters(recurse=False)),
            **dict(module.named_buffers(recurse=False)),
        }
        for key, tensor in own.items():
            path = f"{name}.{key}" if name else key
            if TABLE.fullmatch(path) and tensor.ndim == 2 and 0 <= len(tensor) - most <= OFFSETS:
                padding = getattr(module, "padding_idx", None)  # RoBERTa's positions begin behind it
                unused = int(getattr(module, "offset", 0) or (0 if padding is None else padding + 1))
                return len(tensor) - unused
    made = getattr(model.config, "attn_config", None)
    return most if getattr(made, "alibi", False) else None  # MPT makes its biases for so many


def known_by(model: PreTrainedModel) -> int | None:
    """Positions that a model was made for, as its configuration has it; None where it does not say."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    return most if isinstance(most, int) and most > 0 else None


def made_for(model: PreTrainedModel) -> int | None:
    """The same, with what scales rotary positions beyond it."""
    most, config = known_by(model), model.config.get_text_config()
    scaled = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if most is None or not isinstance(scaled, Mapping):
        return most
    factor, original = scaled.get("factor"), scaled.get("original_max_position_embeddings", most)
    return int(max(most, original * factor)) if isinstance(factor, int | float) else most


def longest_row(recipe: Recipe, model: PreTrainedModel) -> int:
    """The most tokens that a row may have, padding included: of a run that fits to its model."""
    table = table_of(model)
    return recipe.train.length if table is None else min(recipe.train.length, table)


def needed(recipe: Recipe, context: DataContext, data: Prepared, *, packed: bool) -> int:
    """Positions that batches of these rows take, with their padding; packed documents begin anew."""
    if packed:
        return data.longest
    ids = np.zeros(data.longest, dtype=np.int32)
    labels = np.full(data.longest, IGNORED, dtype=np.int32)
    row = Example(input_ids=ids, labels=labels, origin=Origin(file="", row=1))
    (batch,) = batch_maker(recipe.stages, context)(iter([[row]]))
    return int(batch.input_ids.shape[1])


def position_notices(
    recipe: Recipe, context: DataContext, model: PreTrainedModel, data: Prepared | None, held_out: Prepared | None
) -> tuple[str, ...]:
    """What is to be told of rows that are longer than the model was made for. Raises `DataError` where it cannot take
    them at all, since it has a table of positions.
    """
    table, most, length = table_of(model), made_for(model), recipe.train.length
    if most is None or length <= (most if table is None else table):  # no row is longer
        return ()
    packed = any(use.record.packs for use in recipe.stages)
    of_data = [] if data is None else [needed(recipe, context, data, packed=packed)]
    longest = max(of_data + ([] if held_out is None else [needed(recipe, context, held_out, packed=False)]), default=0)
    if table is not None and longest > table:
        raise DataError(
            f"rows take up to {longest} positions ([train] length = {length}), but the model has a table of {table}. "
            f"Set [train] length = {table}, and cut rows that are longer by a [[data.stage]]"
        )
    if table is not None or longest <= most:
        return ()
    return (
        f"rows take up to {longest} positions ([train] length = {length}), and the model was made for {most} "
        "(max_position_embeddings): what lies behind them is new to it",
    )
