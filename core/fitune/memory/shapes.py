"""The rows that a forecast is made for: as long as the recipe allows, or the longest of the prepared data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from fitune.compose.model import planned
from fitune.compose.objective import REFERENCE
from fitune.data.prepare import batch_maker, context_of
from fitune.data.run_data import RunData
from fitune.data.sampler import longest
from fitune.data.tokenizer import tokenizer_of
from fitune.plugin.dataflow import IGNORED, Batch, DataContext, Example, Origin
from fitune.plugin.objective import ROLE, ROLES
from fitune.plugin.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DOCUMENT = 256
"""Tokens of each document of a packed row, where no data say how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Batches on the host, as a run would make them."""

    training: tuple[Batch, ...]
    """Micro-batches of a step: two of them where there are more, for the later ones are all alike."""
    evaluation: Batch | None
    """None where nothing is evaluated."""
    prompt: int = 0
    """Tokens of the longest prompt that answers are generated to; 0 where none are."""
    source: str = "the recipe: rows as long as [train] length allows"
    """Where the shapes come from."""


class _LateTokenizer:
    """Stands for the tokenizer where shapes are all that is asked; loads the real one if more is."""

    pad_token_id = 0
    eos_token_id = 0

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._real: PreTrainedTokenizerBase | None = None

    def __getattr__(self, name: str) -> Any:
        if self._real is None:
            self._real = tokenizer_of(self._recipe)
        return getattr(self._real, name)


def shapes_of_recipe(recipe: Recipe, accumulation: int) -> Shapes:
    """The largest batches that the recipe allows: full rows, of which every token is trained on."""
    context = context_of(recipe, _LateTokenizer(recipe))
    row = _row(recipe, packs=any(use.record.packs for use in recipe.stages))
    held_out = bool(recipe.eval_sources or recipe.evaluation.fraction)
    evaluation = _batch(recipe, context, [_row(recipe)] * recipe.evaluation.micro_batch)
    prompt = max(1, recipe.train.length - recipe.evaluation.max_new_tokens)
    return Shapes(
        training=(_batch(recipe, context, [row] * recipe.train.micro_batch),) * min(accumulation, 2),
        evaluation=evaluation if held_out and recipe.evaluation.loss else None,
        prompt=prompt if held_out and recipe.evaluation.exact_match else 0,
    )


def shapes_of_rows(
    recipe: Recipe, context: DataContext, accumulation: int, rows: Sequence[Example], held_out: Sequence[Example]
) -> Shapes:
    """The largest batches that these rows can make: the longest of them together, on whatever step they would meet."""
    from fitune.compose.evaluate import split_answer

    chosen = longest(rows, recipe.train.micro_batch)
    held = longest(held_out, recipe.evaluation.micro_batch) if held_out else []
    prompts = [len(split_answer(row)[0]) for row in held_out] if recipe.evaluation.exact_match else []
    return Shapes(
        training=(_batch(recipe, context, chosen),) * min(accumulation, 2),
        evaluation=_batch(recipe, context, held) if held and recipe.evaluation.loss else None,
        prompt=max(prompts, default=0),
        source=f"the data: their longest rows, of {len(chosen[0].input_ids)} tokens",
    )


def shapes_of_data(recipe: Recipe, data: RunData) -> Shapes:
    """The largest batches that a recipe makes of a run's data."""
    held_out = data.held_out.rows if data.held_out else ()
    return shapes_of_rows(recipe, data.context, accumulation_of(recipe), data.data.rows, held_out)


def _row(recipe: Recipe, *, packs: bool = False) -> Example:
    import numpy as np

    length, roles = recipe.train.length, ROLES[recipe.objective.record.takes]
    ids = np.zeros(length, dtype=np.int32)
    labels = ids.copy()
    lengths = _documents(length, DOCUMENT if packs else -(-length // max(1, len(roles))))
    if len(lengths) > 1:
        labels[:: lengths[0]] = IGNORED
    extras = {ROLE: tuple(roles[at % len(roles)] for at in range(len(lengths)))} if roles else {}
    return Example(
        input_ids=ids,
        labels=labels,
        origin=Origin(file="forecast", row=1),
        lengths=lengths if packs or roles else (),
        extras=extras,
    )


def _documents(length: int, each: int) -> tuple[int, ...]:
    whole, rest = divmod(length, each)
    return (each,) * whole + ((rest,) if rest else ())


def _batch(recipe: Recipe, context: DataContext, rows: Sequence[Example]) -> Batch:
    """These rows by the recipe's own last stage, with what the objective is to know of each document."""
    if recipe.objective.reference == "prepared":
        rows = [replace(row, extras={**row.extras, REFERENCE: (0.0,) * row.documents}) for row in rows]
    batches: Iterator[Any] = batch_maker(recipe.stages, context)(iter([list(rows)]))
    return cast(Batch, next(batches))


def of_recipe(recipe: Recipe) -> Shapes:
    """The largest batches that the recipe allows."""
    return shapes_of_recipe(recipe, accumulation_of(recipe))


def accumulation_of(recipe: Recipe) -> int:
    """Micro-batches to a step."""
    return planned(recipe, gpu=True)[1].accumulation
