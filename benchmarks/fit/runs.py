"""Many runs on one card, each in a process of its own: several get ready at once, one is timed at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from measure import MEMORY, Json, started

sys.path.insert(0, str(MEMORY))

PATIENCE = 280
"""Seconds after which a run is given up."""


def write_model(directory: Path, shape: str = "deepseek", positions: int = 262144) -> Path:
    """Write configuration and tokenizer of a shape of `forecast_cases`; the tokenizer is one of single bytes."""
    from forecast_cases import SHAPES

    from fitune.testing import write_tiny_tokenizer

    if not directory.exists():
        write_tiny_tokenizer(directory.with_suffix(".tokenizer"))
        shutil.move(directory.with_suffix(".tokenizer"), directory)
        config = {**SHAPES[shape], "dtype": "bfloat16", "max_position_embeddings": positions}
        config |= {"bos_token_id": None, "eos_token_id": 257, "pad_token_id": 258}
        (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def recipe(
    model: Path,
    strategies: list[Json],
    *,
    length: int,
    steps: int,
    r: int = 4,
    alpha: int = 8,
    targets: str | list[str] = "all-linear",
    loader: str = "shape",
    **train: Any,
) -> Json:
    """A LoRA run on rows of `length` tokens, all of which are trained on."""
    return {
        "name": "fit",
        "model": {"use": loader, "path": str(model), "dtype": "bfloat16"},
        "adapter": {"use": "lora", "r": r, "alpha": alpha, "targets": targets},
        "memory": {"strategy": strategies},
        "data": {"cache": False, "stage": [{"use": "plain-text"}, {"use": "tokenize"}]},
        "train": {"length": length, "steps": steps, "learning_rate": 1e-4, "schedule": "constant", **train},
    }


def rows(tokens: int, number: int) -> list[Json]:
    """Texts of so many tokens each, the last of which ends the text."""
    return [{"text": "".join(chr(97 + (at * at + row) % 26) for at in range(tokens - 1))} for row in range(number)]


def measure_all(recipes: Mapping[str, Json], home: Path, gib: float, *, at_once: int = 3) -> Iterator[tuple[str, Json]]:
    """Make these runs; gives each one's figures, or how it failed, as they come."""
    home.mkdir(parents=True, exist_ok=True)
    waiting = list(recipes)
    files = {name: home / f"{number}.json" for number, name in enumerate(recipes)}
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            name = waiting.pop(0)
            train = recipes[name]["train"]
            strategies = recipes[name]["memory"]["strategy"]
            accumulated = next((s["steps"] for s in strategies if s["use"] == "accumulation"), 1)
            data = rows(train["length"], train.get("micro_batch", 1) * accumulated * 2)
            process = started(recipes[name], data, files[name], gib, home / "lock")
            running[name] = (process, time.perf_counter())
        time.sleep(0.2)
        for name, (process, start) in list(running.items()):
            if process.poll() is None and time.perf_counter() - start < PATIENCE:
                continue
            process.kill()
            process.wait()
            del running[name]
            file = files[name]
            yield name, json.loads(file.read_text()) if file.exists() else {"failed": f"code {process.returncode}"}
