"""`ft merge`: what was trained becomes a plain model of transformers, on disk whole or not at all, and proven equal.

The adapter is merged into the weights that it was trained on: those of an NF4 base are what is left of them in four
bits. The result is written beside its place, read again as anybody would, compared on real rows, and only then named.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fitune.compose.calling import call_plugin
from fitune.compose.devices import free_memory
from fitune.compose.dialogue import dialogue_of, end_as_trained
from fitune.data.prepare import UNWATCHED, Watch, context_of, held_out_data, training_data
from fitune.errors import FtError, ModelError, RunError, cause
from fitune.plugin.dataflow import Example
from fitune.plugin.model import mend_generation_config
from fitune.plugin.units import gib
from fitune.runs.atomic import begin, publish, write_file
from fitune.runs.card import write_card
from fitune.trained.evaluate import on_file
from fitune.trained.form import Form, Merged, Plain
from fitune.trained.open import Opened, Trained, open_base, tokenizer_for, with_trained
from fitune.trained.parity import Parity, compare
from fitune.trained.plain import forget_quantizer
from fitune.trained.seen import see

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fitune.plugin.strategy import StoredQuantization

FIGURES = "parity.json"

REFUSED = "merge-refused.json"
"""File, in the run's directory, with the figures of a merge that was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """What is asked for."""

    to: Path
    dtype: torch.dtype
    limit: float | None = None
    """Of the relative difference and of the share, in place of those of the types."""
    rows: int = 16
    """Most rows that the models are compared on."""
    file: bool = False
    """Whether the recipe's sources are a file that was named for the comparison."""
    shard_size: str = "5GB"
    form: Form | None = None
    """What is written; a plain model of transformers where None."""


def merge(trained: Trained, asked: Merge, watch: Watch = UNWATCHED) -> Parity:
    """Merge, compare and write. Raises `RunError` if the models differ by more than rounding explains."""
    if trained.recipe.adapter.record.merge is None:
        name = trained.recipe.adapter.record.name
        raise ModelError(f'the adapter "{name}" cannot be merged: its plugin gives no "merge" (fitune.Adapter)')
    stored = must_dequantize(trained)
    form = form_of(asked)
    form.must_take(trained)
    must_be_free(asked.to, form.option)
    rows, source = rows_of(trained, asked, watch)
    missing = stored is not None and bool(stored.missing)
    opened = open_base(trained, plain=missing)
    base = see(opened.model, rows)
    trained_dtype = opened.model.dtype
    asked = replace(asked, dtype=form.dtype(trained_dtype))
    opened = with_trained(opened)
    adapter = see(opened.model, rows)
    rounded = stored is not None and stored.rounds_inputs
    halved = stored is not None and stored.unpacks and not missing
    if opened.plan.quantized and not missing:
        device = opened.device
        del opened
        free_memory(device)
        opened = with_trained(open_base(trained, plain=True))
    own, cast = opened.model.dtype, None
    if asked.dtype == torch.float32 and (trained_dtype != torch.float32 or rounded or halved):
        opened.model.float()
        own, cast = torch.float32, see(opened.model, rows)
    partial = _begin(asked.to, form.option)
    try:
        write_merged(opened, partial, asked, own, rows)
        device = opened.device
        del opened
        free_memory(device)
        found = compare(
            base,
            adapter,
            form.see(partial, rows, device, trained_dtype),
            source=source,
            trained=trained_dtype,
            rounded=rounded,
            dtype=asked.dtype,
            limit=asked.limit,
            cast=cast,
            halved=halved,
            unrun=_unrun(stored),
        )
        found = form.judged(found) if asked.limit is None else found
        if found.wrong is not None:
            raise RunError(_refusal(found, trained, asked))
        (partial / FIGURES).write_text(json.dumps(found.values(), indent=2) + "\n", encoding="utf-8")
        write_card(trained.directory, partial, name=asked.to.name, parity=found.lines, file=form.file)
        publish(partial, asked.to)
    except OSError as error:
        raise RunError(f"{asked.to} could not be written: {cause(error)}. Nothing is left there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found


def must_dequantize(trained: Trained) -> StoredQuantization | None:
    """How the base's checkpoint is quantised. Raises `ModelError` if that cannot be undone here."""
    use = trained.recipe.model
    look = use.record.stored
    stored = None if look is None else call_plugin(use, look, use.options)
    if stored is not None and not stored.dequantizes:
        raise ModelError(
            f"the base is a checkpoint quantised by {stored.name}, which cannot be dequantised here, so nothing is "
            f"merged. Use the adapter beside it: {trained.weights}; or train on a checkpoint that is not quantised"
        )
    return stored


def _unrun(stored: StoredQuantization | None) -> str:
    """What of the base did not run as it was trained on, and why; empty if all did."""
    if stored is None or not stored.missing:
        return ""
    return f"layers of {stored.name}, for which {stored.missing} is not installed: their weights, dequantised, are"


def must_be_free(directory: Path, option: str = "--to") -> None:
    """Raise `RunError` if there is something already, where the `option` says."""
    try:
        taken = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    except OSError as error:
        raise RunError(f"{option} {directory} cannot be read: {error.strerror}. Give another") from error
    if taken:
        raise RunError(
            f"{option} {directory} is there already, and not empty: nothing in it is overwritten. Give another"
        )


def form_of(asked: Merge) -> Form:
    """What is written."""
    return asked.form or Plain(merged_in=asked.dtype, shard_size=asked.shard_size)


def rows_of(trained: Trained, asked: Merge, watch: Watch) -> tuple[list[Example], str]:
    """Rows to compare on, and what they are: held-out ones if there are any. Raises the errors of `fitune.errors`."""
    recipe = trained.recipe
    context = context_of(recipe, tokenizer_for(trained))
    if asked.file:
        recipe = on_file(recipe)
    found, source = held_out_data(recipe, context, watch), "the file" if asked.file else "held-out data"
    if found is None:
        apart = tuple(use for use in recipe.stages if not use.record.packs)
        found, source = training_data(replace(recipe, stages=apart), context, watch), "training data"
    return list(islice(iter(found.rows), asked.rows)), source


def _begin(to: Path, option: str) -> Path:
    try:
        return begin(to)
    except OSError as error:
        raise RunError(f"{option} {to} cannot be made: {cause(error)}. Give another") from error


def write_merged(opened: Opened, directory: Path, asked: Merge, own: torch.dtype, rows: Sequence[Example] = ()) -> None:
    """Merge in place, and write the model with its tokenizer; `own` is the type of the base that was trained on.

    Raises `OSError`, `ModelError` or `RunError`.
    """
    recipe = opened.trained.recipe
    use = recipe.adapter
    assert use.record.merge is not None
    model = call_plugin(use, use.record.merge, opened.model, asked.dtype)
    _cast(model, own, asked.dtype)
    _must_have_room(model, directory, form_of(asked).option)
    dialogue = dialogue_of(recipe, opened.context)
    mend_generation_config(model)
    forget_quantizer(model)
    end_as_trained(model, opened.tokenizer, dialogue)
    try:
        merged = Merged(model=model, tokenizer=opened.tokenizer, dialogue=dialogue, rows=rows)
        form_of(asked).write(merged, directory)
    except (OSError, FtError):
        raise
    except Exception as error:  # safetensors has errors of its own for a full disk
        raise RunError(f"{asked.to} could not be written: {cause(error)}. Nothing is left there") from error


def _cast(model: PreTrainedModel, own: torch.dtype, dtype: torch.dtype) -> None:
    """Cast the weights of the model's own type; those that it keeps in another stay. Raises `ModelError`."""
    for name, parameter in model.named_parameters():
        if parameter.dtype == own:
            parameter.data = parameter.data.to(dtype)
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            over = f" in {str(dtype).removeprefix('torch.')}" if dtype == torch.float16 else ""
            fix = "Merge to bfloat16 or float32" if over else "Give another checkpoint"
            raise ModelError(f"the merged weight {name} holds what is no number{over}. {fix}")


def _must_have_room(model: PreTrainedModel, directory: Path, option: str) -> None:
    needed = sum(parameter.nbytes for parameter in model.parameters())
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise RunError(
            f"{directory.parent}: {gib(free)} are free, and the merged model takes {gib(needed)}. "
            f"Free some, or give another {option}"
        )


def _refusal(found: Parity, trained: Trained, asked: Merge) -> str:
    """Why a merge is refused; its figures are left with the run."""
    file = trained.directory / REFUSED
    place = ""
    with contextlib.suppress(OSError):
        write_file(file, json.dumps(found.values(), indent=2) + "\n")
        place = f"All figures: {file}. "
    return (
        f"the merged model is not what was trained: {found.wrong} (loss {found.loss_adapter:.4f} with adapter, "
        f"{found.loss_merged:.4f} merged). {place}Nothing is left at {asked.to}. " + form_of(asked).hint
    )
