"""The recipe of runs that are killed, cut short and damaged: it draws all the random numbers that a run may draw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fitune.testing import write_recipe, write_tiny_data
from support.objectives import write_pairs

STEPS = 14
"""More than two epochs of six."""


def write_fault_recipe(
    directory: Path, steps: int = STEPS, *, sharded: bool = False, objective: Mapping[str, object] | None = None
) -> Path:
    """Write the recipe that is killed: all that draws random numbers, checkpoints by steps and of the best; of a model
    that trains whole and lies in parts, if it is `sharded`; with pairs for an `objective` that takes them.
    """
    adapter = {"use": "none"} if sharded else {"use": "lora", "dropout": 0.3}
    strategies = [{"use": "accumulation", "steps": 2}, *([{"use": "fsdp"}] if sharded else [])]
    path = write_recipe(
        directory,
        {
            "deterministic": True,
            "adapter": adapter,
            "memory": {"strategy": strategies},
            "eval": {"every": 3, "source": [{"use": "jsonl", "path": "held_out.jsonl"}]},
            "train": {"steps": steps, "warmup_steps": 2, "micro_batch": 1},
            "checkpoint": {"steps": 2, "keep": 2},
            **({} if objective is None else {"objective": objective}),
        },
    )
    write = write_tiny_data if objective is None else write_pairs
    write(path.parent / "held_out.jsonl", rows=3)
    if objective is not None:
        write_pairs(path.parent / "data.jsonl", rows=6)
    return path
