"""What recipes/smollm2_dpo.toml learns: how often held-out pairs are told apart before and after it, for several seeds.

    python benchmarks/preference_quickstart.py --seeds 42 43 44 --out benchmarks/preference_quickstart.json

Two accuracies of the 60 held-out pairs are measured, whose cities and questions no training row has. `reward` is the
objective's own: whether the chosen answer has gained more beside the reference than the rejected one, one half for
equal gains. `likelier` asks the model alone: whether it gives the chosen answer the higher log-probability, as the
objective `cpo` counts it. Each seed orders the rows and begins the adapter in another way; the data are the same. One
that is in the file is measured again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fitune import Objective, run
from fitune.plugin.events import EvalReport
from fitune.plugin.recipe import Use
from fitune.plugin.registry import Registry
from fitune.trained.evaluate import evaluate
from fitune.trained.open import find

RECIPE = Path(__file__).parents[1] / "recipes" / "smollm2_dpo.toml"


def measured(seed: int, directory: Path) -> dict[str, Any]:
    """Train with a seed, where that was not done yet, and evaluate before and after."""
    registry = Registry.open(third_party=False)
    if not (directory / "adapter").exists():
        run(RECIPE, directory, overrides=[f"seed={seed}"], registry=registry)
    trained = find(directory, registry)
    asked = replace(trained, recipe=replace(trained.recipe, objective=_likelier(registry)))
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rewards = [line["accuracy"] for line in lines if line["event"] == "evaluation"]
    return {
        "seed": seed,
        "steps": max(line["step"] for line in lines),
        "reward": {"before": rewards[0], "after": rewards[-1]},
        "likelier": {"before": _accuracy(evaluate(asked, base=True)), "after": _accuracy(evaluate(asked))},
        "run_seconds": round(json.loads((directory / "run.json").read_text(encoding="utf-8"))["seconds"], 1),
        "date": datetime.date.today().isoformat(),
        "machine": {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def _likelier(registry: Registry) -> Use[Objective[Any]]:
    record = registry.find(Objective, "cpo")
    return Use(record=record, options=record.options())


def _accuracy(report: EvalReport) -> float:
    return round(report.metrics["accuracy"], 4)


def _known(file: Path) -> dict[int, dict[str, Any]]:
    if not file.exists():
        return {}
    return {entry["seed"]: entry for entry in json.loads(file.read_text(encoding="utf-8"))["seeds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--runs", type=Path, help="directory of the runs; those that are there are not made again")
    options = parser.parse_args()
    known = _known(options.out)
    with tempfile.TemporaryDirectory() as temporary:
        for seed in options.seeds:
            known[seed] = measured(seed, (options.runs or Path(temporary)) / f"seed-{seed}")
            print(json.dumps(known[seed]), flush=True)
            whole = {
                "command": "python benchmarks/preference_quickstart.py",
                "seeds": [known[s] for s in sorted(known)],
            }
            options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
