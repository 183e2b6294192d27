"""What befalls runs, and what becomes of them: kills of one process and of two, damaged files, hostile inputs.

    python benchmarks/faults.py --kills 1000 --pairs 200 --damages 500 --hostile 500 --out benchmarks/faults.json

Each part that is asked for is made and takes the place of that part in the file; the others stay. What befalls a run,
and what must come of it, stands in `tests/support/fault_suite.py`, `damage_suite.py` and `hostile.py`. It ends with an
error where anything is otherwise. The file holds the figures, and every single kill, damage and kind of input.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from fitune.runs.provenance import versions

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.damage_suite import DamageSuite
from support.fault_suite import Suite
from support.forked import Forks
from support.hostile import meet

Part = dict[str, Any]


def kills(forks: Forks, home: Path, number: int, seed: int, processes: int, *, sharded: bool = False) -> Part:
    """A suite of kills."""
    figures = Suite(forks, home, kills=number, seed=seed, processes=processes, sharded=sharded).run(print)
    return {**figures.values(), "raw": figures.raw}


def main() -> None:
    """Make the parts and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part, what in (
        ("kills", "of a run of one process"),
        ("pairs", "kills of one of two processes"),
        ("sharded", "kills of one of two processes that each hold a part of the model"),
        ("damages", "files that are damaged"),
        ("hostile", "inputs of each kind"),
    ):
        parser.add_argument(f"--{part}", type=int, default=0, help=what)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    makers: dict[str, Callable[[Forks, Path, int], Part]] = {
        "kills": lambda forks, home, number: kills(forks, home, number, asked.seed, 1),
        "pairs": lambda forks, home, number: kills(forks, home, number, asked.seed, 2),
        "sharded": lambda forks, home, number: kills(forks, home, number, asked.seed, 2, sharded=True),
        "damages": lambda forks, home, number: DamageSuite(forks, home, asked.seed).run(number, print),
        "hostile": lambda forks, home, number: meet(home, number, asked.seed, print),
    }
    found: Part = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out and asked.out.exists() else {}
    found = {key: value for key, value in found.items() if key in makers}
    for part, make in makers.items():
        number: int = getattr(asked, part)
        if not number:
            continue
        with tempfile.TemporaryDirectory() as home:
            forks = Forks(Path(home) / "forks")
            try:
                made = make(forks, Path(home) / "suite", number)
            finally:
                forks.close()
        found[part] = {
            "command": f"python benchmarks/faults.py --{part} {number} --seed {asked.seed} --out FILE",
            "date": date.today().isoformat(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "versions": versions(),
            **made,
        }
        print(json.dumps({key: value for key, value in found[part].items() if key != "raw"}, indent=1))
        if asked.out:
            asked.out.write_text(_text(found), encoding="utf-8")


def _text(found: Part) -> str:
    """JSON with a line for each kill, damage and kind of input."""
    parts = []
    for part, values in found.items():
        rows = ",\n".join(f"   {json.dumps(row)}" for row in values.get("raw", []))
        head = json.dumps({key: value for key, value in values.items() if key != "raw"}, indent=2)
        head = "\n".join(f" {line}" for line in head.rstrip("}\n").rstrip().splitlines()).lstrip()
        parts.append(f' "{part}": {head},\n  "raw": [\n{rows}\n  ]\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
