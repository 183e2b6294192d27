"""The Triton kernels themselves, by Triton's interpreter: arithmetic, masks and strides, not bfloat16 or speed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from fitune_plugins.speed import kernels
from support.paths import TESTS


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_give_what_their_reference_gives() -> None:
    path = os.pathsep.join([str(TESTS), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-m", "support.interpreted_kernels"],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counted = dict(line.split() for line in ended.stdout.splitlines())
    assert set(counted) == set(kernels.__all__)
    assert all(int(count) > 10 for count in counted.values())
