"""The size of a report, and the time to make it, of a run of 100,000 steps with an evaluation each 100 or 1,000.

    python benchmarks/report.py --out benchmarks/report.json

The run's files are made up (`tests/support/reported.py`); what reads them and writes the page is `ft report`'s. Seconds
are the processor's, since the machine may have other work; those on the wall stand beside them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fitune.runs.report.collect import collect
from fitune.runs.report.page import page
from support.reported import write_long_run

CASES = ((1_000, 100), (100_000, 1_000), (100_000, 100))


def main() -> None:
    """Make the pages, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": "python benchmarks/report.py --out benchmarks/report.json",
        "python": platform.python_version(),
        "reports": [measured(steps, every) for steps, every in CASES],
    }
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measured(steps: int, every: int) -> dict[str, Any]:
    """One report."""
    with tempfile.TemporaryDirectory() as made:
        run = write_long_run(Path(made) / "run", steps, every=every)
        wall, processor = time.perf_counter(), time.process_time()
        text = page([collect(run)], "0")
        found = {
            "steps": steps,
            "evaluations": steps // every,
            "metrics_bytes": (run / "metrics.jsonl").stat().st_size,
            "report_bytes": len(text.encode()),
            "processor_seconds": round(time.process_time() - processor, 2),
            "seconds": round(time.perf_counter() - wall, 2),
        }
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
