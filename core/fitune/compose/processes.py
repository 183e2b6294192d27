"""Which of the processes that a launcher started this is, known before torch or accelerate is imported."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Whether this is the first of the launched processes, or the only one."""
    return process_index() == 0


def process_index() -> int:
    """Which of the launched processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))
