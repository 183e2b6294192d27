"""On a GPU: a run that goes on is equal to the bit too, if its kernels are deterministic."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitune.testing import write_recipe, write_tiny_data
from support.resuming import curve, go, stop, weights
from support.states import assert_same

pytestmark = pytest.mark.gpu

CASES = {
    "bfloat16": ['model.dtype="bfloat16"'],
    "float16": ['model.dtype="float16"', "adapter.dropout=0.0"],
    "packed": ['data.stage=[{use="chat"}, {use="tokenize"}, {use="truncate"}, {use="pack"}, {use="pad"}]'],
    "full, 8 bits, paged": ['adapter={use="none"}', 'memory.strategy=[{use="adamw-8bit", paged=true}]'],
    "adafactor": ['adapter={use="none"}', 'memory.strategy=[{use="adafactor"}]'],
    "lion in bfloat16": ['adapter={use="none"}', 'memory.strategy=[{use="lion", state="bfloat16"}]'],
    "muon": ['adapter={use="none"}', 'memory.strategy=[{use="muon"}]'],
    "schedule-free": ['memory.strategy=[{use="schedule-free"}]', 'train.schedule="constant"'],
    "step in backward": [
        'adapter={use="none"}',
        'memory.strategy=[{use="step-in-backward"}]',
        "train.max_grad_norm=0",
    ],
    "pissa": ['adapter.init="pissa"', 'model.dtype="bfloat16"'],
    "a whole head": ['adapter.modules_to_save=["lm_head"]', 'model.dtype="bfloat16"'],
    "ia3": ['adapter={use="ia3"}'],
    "on the host": ['memory.strategy=[{use="host-embeddings"}, {use="gradient-checkpointing"}]'],
}


@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_to_the_same_end(tmp_path: Path, case: str) -> None:
    recipe = write_recipe(
        tmp_path / "recipe",
        {
            "deterministic": True,
            "adapter": {"use": "lora", "dropout": 0.3},
            "eval": {"every": 3, "source": [{"use": "jsonl", "path": "held_out.jsonl"}]},
            "train": {"steps": 8},
        },
    )
    write_tiny_data(recipe.parent / "held_out.jsonl", rows=3)
    go(recipe, *CASES[case], out=tmp_path / "plain")
    stop(recipe, tmp_path / "run", 4, *CASES[case])
    go(tmp_path / "run")
    timed = ("gpu_memory_peak", "gpu_memory_reserved_peak")
    one, other = ([{k: v for k, v in line.items() if k not in timed} for line in curve(tmp_path / name)]
                  for name in ("run", "plain"))  # fmt: skip
    assert one == other
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "plain"))
