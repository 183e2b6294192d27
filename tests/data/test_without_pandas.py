"""Data are prepared without pandas, whose import takes seconds."""

from __future__ import annotations

import subprocess
import sys


def test_lists_of_tokens_are_made_without_pandas() -> None:
    script = (
        "import sys, numpy as np; from fitune.data.cache_writer import _lists;"
        "made = _lists([np.arange(3, dtype=np.int32), np.zeros(0, dtype=np.int32), np.arange(2, dtype=np.int64)]);"
        "assert made.to_pylist() == [[0, 1, 2], [], [0, 1]], made; assert 'pandas' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
