"""The Triton kernels of `fp8`, by Triton's interpreter: scales, masks and strides.

It rounds otherwise than cards do, and forgets to carry: what is rounded up to a power of two becomes half of it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from fitune_plugins.speed.kernels import fp8, triton_fp8

random = torch.Generator().manual_seed(0)
for rows, depth in ((6, 48), (3, 5000), (1, 16)):
    whole = torch.randn(rows, depth + 16, generator=random) * torch.logspace(-20, 3, rows)[:, None]
    x = whole[:, :depth]  # with a stride of its own
    x[0] = 0
    if rows > 2:
        x[1, 7] = torch.nan
        x[2, 3] = torch.inf
    for columns in (None, torch.rand(depth, generator=random)):
        (found, scale), (wanted, scales) = triton_fp8.to_fp8(x, columns), fp8.to_fp8(x, columns)
        assert torch.equal(scale.nan_to_num(nan=-1), scales.nan_to_num(nan=-1)), (scale, scales)
        assert scale.isnan().flatten().tolist() == x.isnan().any(1).tolist()
        finite = x.isfinite().all(1)
        one, other = found[finite].float(), wanted[finite].float()
        near = (one - other).abs() <= other.abs() / 8 + 2**-9
        carried = (other.frexp().mantissa.abs() == 0.5) & (one == other / 2)
        assert (near | carried).all() and near.float().mean() > 0.95
        assert found.shape == wanted.shape and found.is_contiguous()
turned = fp8.to_fp8(torch.randn(130, 300, generator=random))[0]
assert torch.equal(triton_fp8.transposed(turned).view(torch.uint8), fp8.transposed(turned).view(torch.uint8))
print("alike")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_give_what_their_reference_gives() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.split() == ["alike"]
