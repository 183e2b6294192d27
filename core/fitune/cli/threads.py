"""How torch's threads wait for work on a processor."""

from __future__ import annotations

import os

WAIT = "OMP_WAIT_POLICY"
"""The variable of OpenMP that says so (OpenMP 5.2, 21.7)."""


def let_threads_sleep() -> None:
    """Have threads that wait for work sleep, unless the variable says otherwise: for commands that write text, whose
    steps are many and short. By itself GNU's OpenMP has them look for work in a circle for milliseconds, which took
    nine tenths of the processor's seconds of 16 tokens, and longer where something else runs. It is read as torch is
    imported: call this before.
    """
    os.environ.setdefault(WAIT, "PASSIVE")
