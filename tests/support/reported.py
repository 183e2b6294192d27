"""A run's directory as a long run on a GPU leaves it, without training: for reports."""

from __future__ import annotations

import json
import math
from pathlib import Path

from fitune.plugin.units import GIB

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x1b]0;x\x07&\"'</style>"
"""What a name may be that wants to be more than text."""

SPIKE = 43_210
"""The step, of more than that, with by far the largest loss."""


def write_long_run(directory: Path, steps: int, *, name: str = "long", every: int = 1000) -> Path:
    """Write the files of a run of so many steps, evaluated each `every` steps; gives `directory`."""
    directory.mkdir(parents=True)
    with (directory / "metrics.jsonl").open("w", encoding="utf-8") as out:
        for step in range(1, steps + 1):
            loss = 2.5 * math.exp(-4 * step / steps) + 0.4 + 0.08 * math.sin(step * 12.9898) ** 3
            line = {
                "event": "step",
                "step": step,
                "epoch": step / steps,
                "loss": 9.5 if step == SPIKE else loss,
                "learning_rate": 1e-4 * (1 + math.cos(math.pi * step / steps)),
                "grad_norm": 1 + 0.5 * math.sin(step),
                "tokens": 4096,
                "target_tokens": 1024,
                "tokens_per_second": 9000 + 500 * math.sin(step / 37),
                "seconds": 0.45,
                "gpu_memory_peak": int((14.2 + 0.05 * math.sin(step)) * GIB),
                "gpu_memory_reserved_peak": int(14.9 * GIB),
            }
            out.write(json.dumps(line) + "\n")
            if step % every == 0:
                found = {"event": "evaluation", "step": step, "rows": 120, "target_tokens": 999, "seconds": 9.0}
                share = 1 - math.exp(-5 * step / steps)
                out.write(json.dumps({**found, "loss": loss + 0.1, "exact_match": share}) + "\n")
        said = {"event": "notice", "step": 3, "kind": "spike", "what": f"the loss rose: {HOSTILE}"}
        out.write(json.dumps(said) + "\n")
    _write_others(directory, name)
    return directory


def _write_others(directory: Path, name: str) -> None:
    quoted = json.dumps(name)  # a string of JSON is one of TOML
    recipe = (
        f'name = {quoted}\n[model]\nuse = "hf"\nid = {quoted}\n[adapter]\nuse = "lora"\nr = 8\n[train]\nsteps = 9\n'
    )
    (directory / "recipe.toml").write_text(recipe, encoding="utf-8")
    ledger = [["frozen weights", int(12.6 * GIB)], [f"saved activations {name}", int(1.3 * GIB)], ["logits", GIB // 4]]
    forecast = {"card": "A10G", "allocated": int(14.26 * GIB), "reserved": int(15.0 * GIB), "context": int(0.4 * GIB)}
    measured = {"allocated": int(14.25 * GIB), "reserved": int(14.9 * GIB), "context": int(0.39 * GIB)}
    memory = {"forecast": {**forecast, "ledger": ledger, "error": None}, "measured": measured}
    (directory / "memory.json").write_text(json.dumps(memory), encoding="utf-8")
    answers = [{"prompt": f"Question {name}", "expected": "4", "generated": "4", "cut": ""}]
    before = [{"prompt": f"Question {name}", "expected": "4", "generated": f"I do not know {name}", "cut": ""}]
    kept = {"step": 9, "answers": answers, "before": {"step": 0, "answers": before}}
    (directory / "examples.json").write_text(json.dumps(kept), encoding="utf-8")
    environment = {"fitune": "0.1.0", "packages": {"torch": "2.13.0"}, "command": ["run", name]}
    (directory / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
