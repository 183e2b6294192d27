"""What befalls runs, and what becomes of them: kills of one process and of two, damaged files, hostile inputs.

    python benchmarks/faults.py --kills 1000 --pairs 200 --damages 500 --hostile 500 --out benchmarks/faults.json

What befalls a run, and what must come of it, stands in `tests/support/fault_suite.py`, `damage_suite.py` and
`hostile.py`. It ends with an error where anything is otherwise. Each part is made in suites of their own seeds, which
are kept in the file as they are done: given again, it goes on with those that are missing, and a part that is not asked
for stays as it is. The file holds the sums, each suite with its date, versions and commit, and every single kill,
damage and kind of input.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from fitune.runs.git import state_of
from fitune.runs.provenance import versions

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.damage_suite import DamageSuite
from support.fault_suite import Suite
from support.forked import Forks
from support.hostile import meet

ROOT = Path(__file__).parent.parent
Values = dict[str, Any]
OF_A_SUITE = ("seed", "date", "commit", "versions", "seconds")
"""What is said of each suite, beside its number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind of what befalls a run."""

    what: str
    largest: int
    """Of a suite."""
    make: Callable[[Forks, Path, int, int], Values]
    """With a number and a seed."""


def kills(forks: Forks, home: Path, number: int, seed: int, processes: int, *, sharded: bool = False) -> Values:
    """A suite of kills."""
    figures = Suite(forks, home, kills=number, seed=seed, processes=processes, sharded=sharded).run(print)
    return {**figures.values(), "raw": figures.raw}


PARTS = {
    "kills": Part(
        what="of a run of one process",
        largest=100,
        make=lambda forks, home, number, seed: kills(forks, home, number, seed, 1),
    ),
    "pairs": Part(
        what="kills of one of two processes",
        largest=25,
        make=lambda forks, home, number, seed: kills(forks, home, number, seed, 2),
    ),
    "sharded": Part(
        what="kills of one of two processes that each hold a part of the model",
        largest=25,
        make=lambda forks, home, number, seed: kills(forks, home, number, seed, 2, sharded=True),
    ),
    "damages": Part(
        what="files that are damaged",
        largest=125,
        make=lambda forks, home, number, seed: DamageSuite(forks, home, seed).run(number, print),
    ),
    "hostile": Part(
        what="inputs of each kind", largest=500, make=lambda forks, home, number, seed: meet(home, number, seed, print)
    ),
}


def main() -> None:
    """Make the suites that are missing, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, part in PARTS.items():
        parser.add_argument(f"--{name}", type=int, default=0, help=part.what)
    parser.add_argument("--seed", type=int, default=1, help="of the first suite of each part")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    out: Path | None = asked.out
    found: Values = json.loads(out.read_text(encoding="utf-8")) if out is not None and out.exists() else {}
    for name, part in PARTS.items():
        number: int = getattr(asked, name)
        for place, start in enumerate(range(0, number, part.largest)):
            seed, size = asked.seed + place, min(part.largest, number - start)
            suites = found.get(name, {"suites": []})["suites"]
            if any((suite["seed"], suite["number"]) == (seed, size) for suite in suites):
                continue
            found[name] = added(name, found.get(name), made(part, size, seed), size)
            if out is not None:
                out.write_text(text(found), encoding="utf-8")
        if number:
            print(json.dumps({key: value for key, value in found[name].items() if key != "raw"}, indent=1))


def made(part: Part, number: int, seed: int) -> Values:
    """One suite."""
    with tempfile.TemporaryDirectory() as home:
        forks = Forks(Path(home) / "forks")
        try:
            figures = part.make(forks, Path(home) / "suite", number, seed)
        finally:
            forks.close()
    commit = (state_of(ROOT) or {}).get("commit")
    return {"date": date.today().isoformat(), "commit": commit, "versions": versions(), **figures}


def added(name: str, before: Values | None, suite: Values, number: int) -> Values:
    """A part with one suite more."""
    told = {"number": number, **{key: suite[key] for key in OF_A_SUITE if key in suite}}
    raw = [{"seed": suite["seed"], **row} for row in suite["raw"]]
    new = {
        key: value for key, value in suite.items() if key not in (*OF_A_SUITE, "raw", "python", "machine", "command")
    }
    old = before or {}
    suites, rows = [*old.get("suites", []), told], [*old.get("raw", []), *raw]
    if "steps_made_again" in new:
        again = [max(0, row["steps_made"] - row["steps_saved"]) for row in rows]
        new["steps_made_again"] = {"mean": round(statistics.mean(again), 2), "most": max(again)}
    asked = sum(one["number"] for one in suites)
    return {
        "command": f"python benchmarks/faults.py --{name} {asked} --seed {suites[0]['seed']} --out FILE",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{key: _sum(key, old.get(key), value) for key, value in new.items()},
        "suites": suites,
        "raw": rows,
    }


def _sum(key: str, before: Any, now: Any) -> Any:
    """Two figures together; of the most the larger, of what is one of a kind the new one."""
    if before is None or key in ("processes", "steps_made_again"):
        return now
    if isinstance(now, dict):
        now = {str(one): figure for one, figure in now.items()}  # as JSON has the keys of what was before
        return {one: _sum(one, before.get(one), now.get(one, 0)) for one in {**before, **now}}
    return max(before, now) if key.startswith("most") else before + now


def text(found: Values) -> str:
    """JSON with a line for each suite, kill, damage and kind of input."""
    parts = []
    for part, values in found.items():
        lists = {key: ",\n".join(f"   {json.dumps(row)}" for row in values[key]) for key in ("suites", "raw")}
        head = json.dumps({key: value for key, value in values.items() if key not in lists}, indent=1)
        head = "\n".join(f" {line}" for line in head.splitlines()[:-1]).lstrip()
        ends = ",\n".join(f'  "{key}": [\n{rows}\n  ]' for key, rows in lists.items())
        parts.append(f' "{part}": {head},\n{ends}\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
