"""The rows of a step that went wrong, kept in the run's directory for somebody to look at.

RUN/non-finite/step-120.jsonl    a line for each row: where it came from, its text, its tokens and labels
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune.errors import visible_json
from fitune.plugin.dataflow import IGNORED, Example
from fitune.runs.atomic import write_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HOME = "non-finite"
"""Directory, in the run's, of such rows."""

MOST = 50
"""Most steps whose rows are kept: a run that skips one step in two must not fill the disk with them."""


def keep_rows(
    directory: Path,
    step: int,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    loss: float,
    norm: float,
) -> Path | None:
    """Write the rows of a step into a run's directory; gives the file, or None where that cannot be.

    It raises nothing: what made it necessary is what should be told. Call it in one process alone.
    """
    home = directory / HOME
    try:
        home.mkdir(exist_ok=True)
        file = home / f"step-{step}.jsonl"
        if not file.exists() and sum(1 for _ in home.glob("step-*.jsonl")) >= MOST:
            return None
        lines = (json.dumps(row, ensure_ascii=False) for row in _rows(step, examples, tokenizer, loss, norm))
        write_file(file, "".join(f"{visible_json(line)}\n" for line in lines))
    except Exception:  # a full disk, a tokenizer of a third party that cannot decode
        return None
    return file


def _rows(
    step: int, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, loss: float, norm: float
) -> Iterator[dict[str, Any]]:
    for example in examples:
        tokens, labels = example.input_ids.tolist(), example.labels.tolist()
        trained = [token for token, label in zip(tokens, labels, strict=True) if label != IGNORED]
        yield {
            "step": step,
            "loss": str(loss),  # JSON knows neither infinity nor "not a number"
            "grad_norm": str(norm),
            "file": example.origin.file,
            "row": example.origin.row,
            "tokens": len(tokens),
            "targets": example.targets,
            "lengths": list(example.lengths) or [len(tokens)],
            "text": tokenizer.decode(tokens),
            "trained_text": tokenizer.decode(trained),
            "input_ids": tokens,
            "labels": labels,
        }
