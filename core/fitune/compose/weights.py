"""Weights that no model can work with: no numbers, or nothing but zeros. They are looked at where something has failed.

A proof about a model, of its loss say or of its attention, fails with such weights whatever the model does, and so does
a step. To read all of a large model takes seconds, so that nothing is looked at while all is well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fitune.errors import FtError, ModelError

KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types in which a value may be no number; what is quantised is told of by its scales at most."""
NAMED = 3
"""Tensors that are told of by name."""


def unsound_weights(model: nn.Module) -> str:
    """Which weights cannot be right, and what to do, without a full stop; empty where none is found.

    Zeros are told of where a whole matrix of the base has nothing else; an adapter may begin with such matrices, and
    biases, which are a matrix where experts have theirs in one, may stay so.
    """
    held = [(name, _own(p)) for name, p in model.named_parameters() if p.dtype in KINDS and not p.is_meta]
    broken = [name for name, values in held if not bool(torch.isfinite(values).all())]
    if broken:
        return f"{_named(broken)} of the model hold{_s(broken)} values that are no numbers (NaN, or infinite). {ELSE}"
    base = [(name, _own(p)) for name, p in model.named_parameters() if not p.requires_grad] or held
    empty = [name for name, values in base if not name.endswith("bias") and _is_empty(values)]
    if empty:
        return f"{_named(empty)} of the model hold{_s(empty)} nothing but zeros. {ELSE}"
    return ""


ELSE = "Its files are damaged, or were saved so: load another copy of it"


@contextmanager
def weights_to_blame(model: nn.Module) -> Iterator[None]:
    """Where something fails within: if the model's weights cannot be right, say so, as a `ModelError`, in its place."""
    try:
        yield
    except FtError as error:
        unsound = unsound_weights(model)
        if unsound:
            raise ModelError(unsound) from error
        raise


def _own(parameter: nn.Parameter) -> Tensor:
    """Its values; of one that is shared out this process's part, since others may not be asked for theirs."""
    values: Any = parameter.detach()
    part: Tensor = values.to_local() if hasattr(values, "to_local") else values
    return part


def _is_empty(values: Tensor) -> bool:
    return values.dtype in KINDS and not values.is_meta and values.dim() > 1 and not bool(values.any())


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more tensors" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _s(names: Sequence[str]) -> str:
    return "s" if len(names) == 1 else ""
