"""Runs the fast path's Triton kernels under Triton's interpreter, beside their reference. For a process of its own.

`TRITON_INTERPRET` must be 1 before triton is imported. The interpreter rounds to bfloat16 towards zero, where cards
round to the nearest: it shows float16 and float32.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from fitune_plugins.speed import kernels
from support.kernel_cases import CASES, called, copied, relative

WHERE = {
    "onto_residual_": "residual",
    "skinny_": "skinny",
    "gated_backward": "gated",
    "norm_backward": "norm",
    "cross_entropy_": "cross_entropy",
}
"""Modules of launchers, where they are not named as the operation."""


def launcher(operation: str) -> Callable[..., Any]:
    """What launches an operation's kernel."""
    module = importlib.import_module(f"fitune_plugins.speed.kernels.triton_{WHERE.get(operation, operation)}")
    return getattr(module, operation)  # type: ignore[no-any-return]


def main() -> int:
    """Print how many results were alike for each operation; an error of more than rounding is told, and gives 1."""
    torch.set_num_threads(1)
    alike, wrong = Counter[str](), []
    for case in CASES:
        launch, reference = launcher(case.operation), getattr(kernels, case.operation)
        for dtype, near in ((torch.float32, 2e-6), (torch.float16, 2e-4)):
            inputs = case.inputs(dtype)
            for found, wanted in zip(called(launch, copied(inputs)), called(reference, copied(inputs)), strict=True):
                error = relative(found, wanted)
                same = (found.shape, found.dtype, found.stride()) == (wanted.shape, wanted.dtype, wanted.stride())
                if same and error < near:
                    alike[case.operation] += 1
                else:
                    wrong.append(f"{case} {dtype}: {error:.3g} {tuple(found.shape)} {tuple(wanted.shape)}")
    print(*(f"{operation} {count}" for operation, count in sorted(alike.items())), *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
