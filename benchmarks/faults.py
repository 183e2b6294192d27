"""A small run that is killed at random moments, saves included, and goes on: does it end as the undisturbed one?

    python benchmarks/faults.py --kills 400 --out benchmarks/faults.json

What is killed and what must be equal stands in `tests/support/fault_suite.py`. It ends with an error where
anything is not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from datetime import date
from pathlib import Path

from fitune.runs.provenance import versions

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.fault_suite import Suite
from support.forked import Forks


def main() -> None:
    """Run the suite and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        forks = Forks(Path(home) / "forks")
        try:
            figures = Suite(forks, Path(home) / "suite", kills=arguments.kills, seed=arguments.seed).run(print)
        finally:
            forks.close()
    found = {
        "command": f"python benchmarks/faults.py --kills {arguments.kills} --seed {arguments.seed} --out FILE",
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions(),
        **figures.values(),
    }
    text = json.dumps(found, indent=1) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
