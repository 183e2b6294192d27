"""Tokens that a recipe adds: the model's embeddings and output head get rows for them (`[model] add_tokens`).

A new row begins with the mean of the rows of all tokens that were there: the probabilities of the others hardly change
(Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021). The mean is made on the host, in
float64 and a few rows at a time: it takes no memory of a card, and is the same for every card.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fitune.data.tokenizer import Vocabulary, vocabulary_of
from fitune.errors import ModelError
from fitune.plugin.model import NEW_TOKENS, known_tokens
from fitune.plugin.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLD = "_fitune_told_tokens"
"""The attribute of a model that holds what is told of its new tokens."""

ALIGNED = 64
"""Rows that a table has a multiple of, as far as the model's own has."""

AT_ONCE = 1024
"""Rows whose sum is made at a time."""


def with_tokens(recipe: Recipe, model: PreTrainedModel) -> PreTrainedModel:
    """The base model, with rows for the tokens that the recipe adds. Raises `ModelError` where it can have none."""
    if not recipe.model.tokens.any:
        return model
    found = vocabulary_of(recipe)
    rows = known_tokens(model)
    if found.new:
        _must_suit(model, rows)
        means = [_mean(table, min(found.before, rows)) for table in tables(model)]
        _grow(model, 1 + max(found.new))
        for table, mean in zip(tables(model), means, strict=True):
            table.data[[*found.new, *range(max(rows, 1 + found.new[-1]), len(table))]] = mean.to(table)
    setattr(model, NEW_TOKENS, found.new)
    setattr(model, TOLD, tuple(_told(found, rows, known_tokens(model))))
    return model


def tables(model: PreTrainedModel) -> list[Tensor]:
    """The weights of a plain model that have a row for each token: of the embeddings, and of the head where it has its
    own. `[vocabulary, hidden]` each.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    found = [cast(Any, module).weight for module in (embeddings, head) if module is not None]
    return found[:1] if len(found) == 2 and found[0] is found[1] else found


def outgrown(before: Sequence[Tensor], model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Of the `tables` that a model had, as they were, those that are larger now, each with what took its place."""
    return [(old, new) for old, new in zip(before, tables(model), strict=True) if old.shape != new.shape]


def told_of_tokens(model: PreTrainedModel) -> tuple[str, ...]:
    """What a person is told of a model's new tokens."""
    found: tuple[str, ...] = getattr(model, TOLD, ())
    return found


def _must_suit(model: PreTrainedModel, rows: int) -> None:
    for table in tables(model):
        if not table.is_floating_point() or table.ndim != 2 or table.shape[0] != rows:
            raise ModelError(
                f"[model] add_tokens: {type(model).__name__} can have no more tokens: its embeddings or its output "
                "head are quantised, or have no row for each token. Load a checkpoint that is not quantised, or leave "
                "the key out"
            )


def _grow(model: PreTrainedModel, rows: int) -> None:
    """Have at least so many rows, and a number that is divided by what the old one was: products of a head with an odd
    number of rows are slow. Random numbers that are drawn for them count for nothing, and are drawn again.
    """
    before = known_tokens(model)
    if rows <= before:
        return
    cards = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        model.resize_token_embeddings(rows, pad_to_multiple_of=math.gcd(before, ALIGNED), mean_resizing=False)


def _mean(table: Tensor, rows: int) -> Tensor:
    """Of the first rows: `[hidden]`, float64, on the host. Of a table without values, one without values."""
    if table.is_meta:
        return torch.empty(table.shape[1], dtype=torch.float64, device="meta")
    total = torch.zeros(table.shape[1], dtype=torch.float64)
    for start in range(0, rows, AT_ONCE):
        total += table.data[start : min(start + AT_ONCE, rows)].cpu().double().sum(0)
    return total / max(1, rows)


def _told(found: Vocabulary, before: int, rows: int) -> Iterator[str]:
    if found.new:
        ids = str(found.new[0]) if len(found.new) == 1 else f"{found.new[0]} to {found.new[-1]}"
        larger = f"embeddings and head grow from {before:,} to {rows:,} rows"
        yield f"tokens: {len(found.new)} added ({ids}): {larger if rows > before else 'the model has rows to spare'}"
    for token in found.known:
        yield f"tokens: {token!r} is known to the tokenizer already, and stays what it was"
