"""The release of torch that is there, and what differs between releases."""

from __future__ import annotations

import functools

import torch

Version = tuple[int, int]


@functools.cache
def torch_version() -> Version:
    """Major and minor."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def lt_workspace() -> int:
    """Bytes of cuBLASLt's own workspace a handle (`_getWorkspaceSize`, aten/src/ATen/cuda/CUDABlas.cpp); 0 where it
    shares that of cuBLAS.

    Measured on torch 2.11; that 2.13 is the first to share it is assumed.
    """
    return 2**20 if torch_version() < (2, 13) else 0


def large_workspaces(version: Version) -> tuple[int, ...]:
    """Major compute capabilities whose cuBLAS workspace is of 32 MiB (`getChosenWorkspaceSize`,
    aten/src/ATen/cuda/CublasHandlePool.cpp); that torch 2.13 is the first with more than 9 is assumed.
    """
    return (9,) if version < (2, 13) else (9, 10, 12)
