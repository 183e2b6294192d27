"""What the quickstart learns, and how long it takes, for several seeds: `ft run quickstart`, one after the other.

    python benchmarks/quickstart.py --seeds 42 43 44 --out benchmarks/quickstart.json  (three to five minutes each)

A seed gives the adapter's first weights and the order of rows. Of each run are kept the exact matches of the 120
held-out notes before and after, and the seconds that `run.json` tells. What is in the file of other seeds stays.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    """Run each, and write what was found after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text(encoding="utf-8"))["seeds"]
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as directory:
            found[str(seed)] = measured(seed, Path(directory) / "run")
        print(seed, found[str(seed)], flush=True)
        told = {"command": "python benchmarks/quickstart.py", "seeds": dict(sorted(found.items()))}
        arguments.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def measured(seed: int, run: Path) -> dict[str, Any]:
    """A run with this seed; it must end well."""
    command = [sys.executable, "-m", "fitune", "run", "quickstart", "--set", f"seed={seed}", "--out", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"seed {seed} ended with {done.returncode}: {done.stderr}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    matches = [line["exact_match"] for line in lines if line["event"] == "evaluation"]
    return {
        "exact_match": {"before": round(matches[0], 4), "after": round(matches[-1], 4)},
        "seconds": round(json.loads((run / "run.json").read_text(encoding="utf-8"))["seconds"], 1),
        "date": datetime.date.today().isoformat(),
        "host": {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


if __name__ == "__main__":
    main()
