"""Log-probabilities of the model as it is before training, computed once and kept with the prepared data.

They are an entry of the same cache as the rows: a row without a token for each row, with the extra `reference`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from fitune._version import __version__
from fitune.compose.calling import call_plugin
from fitune.compose.objective import REFERENCE, scores_of
from fitune.data.cache import Rows, build_or_open
from fitune.data.cache_key import version_of
from fitune.data.prepare import Prepared, Watch, batches
from fitune.errors import RunError
from fitune.plugin.code import code_behind
from fitune.plugin.dataflow import Batch, Example, Stage
from fitune.plugin.digest import digest_of_weights
from fitune.plugin.options import to_table
from fitune.plugin.recipe import Recipe
from fitune.plugin.strategy import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fitune.data.cache_writer import Writer

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
"""Packages whose version may change what a model says."""


class WithReference(Sequence[Example]):
    """Rows, each with the log-probabilities of its documents before training."""

    def __init__(self, rows: Sequence[Example], reference: Sequence[Example]) -> None:
        self.rows, self.reference = rows, reference

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @overload
    def __getitem__(self, row: int) -> Example: ...
    @overload
    def __getitem__(self, row: slice) -> list[Example]: ...
    def __getitem__(self, row: int | slice) -> Example | list[Example]:
        """A row."""
        if isinstance(row, slice):
            return [self[n] for n in range(*row.indices(len(self)))]
        example = self.rows[row]
        return replace(example, extras={**example.extras, **self.reference[row].extras})


def scored_rows(
    recipe: Recipe,
    plan: Plan,
    make_batches: Stage,
    device: torch.device,
    model: Callable[[], PreTrainedModel],
    start: Path | None,
    watch: Watch,
    prepared: Prepared,
) -> Sequence[Example]:
    """Prepared rows; where the recipe's reference is prepared, with the log-probabilities that the model gives them.

    It must be as it is before training, and is asked for only where they are not in the cache; `start` is where what
    its adapter goes on from was saved.
    """
    rows = prepared.rows
    if recipe.objective.reference != "prepared":
        return rows
    if plan.sharded:
        raise RunError(
            '[objective] reference = "prepared" is computed by one process, which a model that is shared out over '
            'several does not allow. Train an adapter with reference = "adapter-off", or without "fsdp"'
        )

    def build(writer: Writer) -> Mapping[str, Any]:
        flow = {"rows": 0}
        with watch("reference log-probabilities", flow):
            found = _computed(recipe, plan, rows, make_batches, device, model(), flow)
            writer.write(_carriers(rows, found))
        return {}

    key = _key(recipe, prepared, device, start) if prepared.lasting else None
    reference: Rows = build_or_open(key, build, watch.tell)[0]
    return WithReference(rows, reference)


def _computed(
    recipe: Recipe,
    plan: Plan,
    rows: Sequence[Example],
    make_batches: Stage,
    device: torch.device,
    model: PreTrainedModel,
    flow: dict[str, int],
) -> list[tuple[float, ...]]:
    """Of each row, those of its documents; rows of like lengths are computed together."""
    by_length = np.argsort([len(row.input_ids) for row in rows], kind="stable")[::-1]
    size = recipe.train.micro_batch
    picks = [by_length[at : at + size] for at in range(0, len(rows), size)]
    scores = scores_of(plan)
    found: list[tuple[float, ...]] = [()] * len(rows)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for pick, batch in zip(picks, batches(rows, picks, make_batches), strict=True):
                values = scores.log_probs(model, batch.to(device)).tolist()
                for row, own in zip(pick, _of_rows(batch, values), strict=True):
                    found[int(row)] = own[: rows[int(row)].documents]
                flow["rows"] += len(pick)
    finally:
        model.train(training)
    return found


def _of_rows(batch: Batch, values: Sequence[float]) -> Iterator[tuple[float, ...]]:
    """The values of a batch's documents, row by row, those of padding among them."""
    if batch.positions is None:
        yield from ((value,) for value in values)
        return
    at = tokens = begun = 0
    for at, length in enumerate(batch.lengths, start=1):
        tokens += length
        if tokens == batch.input_ids.shape[1]:
            yield tuple(values[begun:at])
            begun, tokens = at, 0


def _carriers(rows: Sequence[Example], found: Sequence[tuple[float, ...]]) -> Iterator[Example]:
    nothing = np.zeros(0, dtype=np.int32)
    for row, values in zip(rows, found, strict=True):
        yield Example(
            input_ids=nothing, labels=nothing, origin=row.origin, lengths=row.lengths, extras={REFERENCE: values}
        )


def _key(recipe: Recipe, prepared: Prepared, device: torch.device, start: Path | None) -> str | None:
    """A digest of all that they depend on; None where the base cannot be told."""
    look = recipe.model.record.fingerprint
    base = None if look is None else call_plugin(recipe.model, look, recipe.model.options)
    if base is None:
        return None
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = [
        [REFERENCE, __version__, [version_of(name) for name in LIBRARIES], card],
        [prepared.digest, recipe.train.micro_batch, recipe.general.seed, recipe.general.deterministic],
        [base, recipe.model.record.name, to_table(recipe.model.options)],
        [
            recipe.adapter.record.name,
            to_table(recipe.adapter.options),
            None if start is None else digest_of_weights(start),
        ],
        [[use.record.name, to_table(use.options)] for use in recipe.strategies],
        code_behind(
            recipe.model.record.load_model,
            recipe.adapter.record.attach,
            *(use.record.make for use in recipe.strategies),
        ),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
