"""Processes that share a model out, and do or do not find it in files of which each reads its own rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fitune.compose import reading
from fitune.plugin import mapped
from fitune_plugins.memory import fsdp_filling
from support.blows import join

_mapped_in_all: Any = fsdp_filling._mapped_in_all


def join_blind(board: memoryview, rank: int, processes: int, port: int) -> None:
    """Be one that has no number in place of every row which it is not to read."""
    join(board, rank, processes, port)
    fsdp_filling._mapped_in_all = _blinded


def join_unmapped(board: memoryview, rank: int, processes: int, port: int) -> None:
    """Be one on a system that does not say what lies in files."""
    join(board, rank, processes, port)
    mapped.MAPS = Path("/nowhere")


def join_with_other_files(board: memoryview, rank: int, processes: int, port: int) -> None:
    """Be one of which the last finds other weights."""
    join(board, rank, processes, port)
    if rank == processes - 1:
        reading._mark = lambda recipe: "sha256:other"


def join_without_files(board: memoryview, rank: int, processes: int, port: int) -> None:
    """Be one of which the last cannot load what it finds."""
    join(board, rank, processes, port)
    if rank == processes - 1:
        reading._found_in_files = lambda recipe, plan: None


def _blinded(model: nn.Module) -> Any:
    found = _mapped_in_all(model)
    assert len(found) >= 20, "of the weights of two layers"
    for tensor in found.values():
        own = fsdp_filling._rows(len(tensor))[dist.get_rank()]
        tensor.data[: own.start] = torch.nan
        tensor.data[own.stop :] = torch.nan
    return found
