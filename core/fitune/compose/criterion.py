"""An objective held to its contract (`fitune.Criterion`): what it gives that is wrong is an error that names it.

What fails within the model, or in what the run lends to it, is not the objective's, and comes as it is.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fitune.errors import FtError, PluginError
from fitune.plugin.contract import cause, wrong_gift
from fitune.plugin.dataflow import Batch, Example
from fitune.plugin.objective import Criterion, Measure, Outcome, Scores

LENDER = "fitune.compose.objective"
"""The module of what a run lends to its objective."""


def must_be_criterion(criterion: object, name: str) -> Criterion:
    """What an objective's `make` gave. Raises `PluginError`."""
    if not isinstance(criterion, Criterion):
        raise wrong_gift(f"{_of(name)}: make", criterion, "a fitune.Criterion")
    return criterion


def outcome_of(criterion: Criterion, name: str, model: nn.Module, batch: Batch, scores: Scores) -> Outcome:
    """What it makes of a batch; asks nothing of the device. Raises `PluginError`."""
    try:
        outcome: object = criterion.loss(model, batch, scores)
    except (FtError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if _is_lent(error):
            raise
        raise PluginError(f"{_of(name)} failed: {cause(error)}") from error
    if not isinstance(outcome, Outcome):
        raise wrong_gift(f"{_of(name)}: its loss", outcome, "a fitune.Outcome")
    if (wrong := _wrong_scalar(outcome.loss)) is not None:
        raise PluginError(f"{_of(name)}: the loss of its Outcome is {wrong}, not the sum over units, one number")
    if torch.is_grad_enabled() and not outcome.loss.requires_grad:
        raise PluginError(f"{_of(name)}: its loss has no gradient: it does not depend on what trains")
    _must_be_measures(outcome.measures, criterion, name)
    return outcome


def units_of(criterion: Criterion, name: str, examples: Sequence[Example]) -> int:
    """The units of these examples together. Raises `PluginError` if there are none."""
    try:
        total = sum(map(criterion.units, examples))
    except FtError:
        raise
    except Exception as error:
        raise PluginError(f"{_of(name)} cannot count units: {cause(error)}") from error
    if not total > 0:
        raise PluginError(f"{_of(name)} finds {total} units in {len(examples)} rows, by which nothing can be divided")
    return total


def _must_be_measures(measures: Mapping[str, Measure], criterion: Criterion, name: str) -> None:
    if others := sorted(measures.keys() - set(criterion.measures)):
        raise PluginError(f"{_of(name)} measures {', '.join(others)}, which its Criterion.measures do not name")
    for key, pair in measures.items():
        both = isinstance(pair, tuple) and len(pair) == 2
        wrong = [_wrong_scalar(one) for one in pair] if both else [f"a {type(pair).__name__}"]
        if any(wrong):
            what = next(one for one in wrong if one)
            raise PluginError(f'{_of(name)}: its measure "{key}" is {what}, not a sum and a count, one number each')


def _wrong_scalar(value: object) -> str | None:
    """What a value is that should be one number on the device; None if it is."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return None if value.ndim == 0 else f"a tensor of the shape {list(value.shape)}"


def _is_lent(error: BaseException) -> bool:
    """Whether it comes from what the run lends."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == LENDER for frame, _ in frames)


def _of(name: str) -> str:
    return f'objective "{name}"'
