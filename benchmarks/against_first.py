"""What 0.1 did where issue 16 says what must hold, beside what is done now: black-box cases through the command line.

    python benchmarks/against_first.py --ft "NAME OF AN FT" --as now --out benchmarks/against_first.json

An `ft` of 0.1 beside today's, for the same cases:

    git worktree add /tmp/first 14e7eaf
    PYTHONPATH=/tmp/first/core:/tmp/first/plugins python benchmarks/against_first.py \\
        --ft "python -m fitune" --as 0.1 --out benchmarks/against_first.json

Each case makes what it needs of a tiny model, has `ft` meet it with a limit of time, and says "holds", or "fails" and
how. The file has a row for each case, with what came of each `ft`. Cases are in `against_first_files.py` (items 1 to 4)
and `against_first_words.py` (5 to 9).
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from against_first_files import CASES as OF_FILES
from against_first_given import Given
from against_first_words import CASES as OF_WORDS


def main() -> None:
    """Try all cases, or those that are asked for, with one `ft`, and put what came of them into the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ft", required=True, help="the command, e.g. ft, or python -m fitune")
    parser.add_argument("--as", dest="name", required=True, choices=("0.1", "now"))
    parser.add_argument("--only", default="", help="cases whose words hold this")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    out: Path | None = asked.out
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out is not None and out.exists() else {}
    rows: dict[str, dict[str, Any]] = {row["case"]: row for row in found.get("cases", [])}
    with tempfile.TemporaryDirectory() as home:
        ft = shlex.split(asked.ft)
        base = made_base(ft, Path(home))
        for number, case in enumerate(one for one in (*OF_FILES, *OF_WORDS) if asked.only in one.what):
            began = time.perf_counter()
            said = case.work(Given(ft, Path(home) / f"case-{number}", base))
            came = "holds" if said is None else f"fails: {said}".replace(home, "~").encode("ascii", "replace").decode()
            print(f"{case.item} {case.what}: {came} ({time.perf_counter() - began:.0f} s)", flush=True)
            rows.setdefault(case.what, {"item": case.item, "case": case.what})[asked.name] = came
    if out is not None:
        out.write_text(text(found, asked.name, list(rows.values())), encoding="utf-8")


def made_base(ft: Sequence[str], home: Path) -> Path:
    """A project with a run that is done, by the `ft` itself."""
    base = home / "base"
    given = Given(ft, home / "base-user", base)
    from fitune.testing import write_recipe, write_tiny_data

    recipe = write_recipe(base, {"eval": {"source": [{"use": "jsonl", "path": "held_out.jsonl"}]}})
    write_tiny_data(base / "held_out.jsonl", rows=3)
    ended = given.ft("run", recipe, "--out", base / "run")
    assert ended.code == 0, ended.text
    return base


def text(found: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """JSON with a line for each case."""
    figures = {
        one: {"holds": sum(row.get(one) == "holds" for row in rows), "of": sum(one in row for row in rows)}
        for one in ("0.1", "now")
    }
    made = {**found.get("made", {}), name: {"date": date.today().isoformat(), "python": platform.python_version()}}
    head = json.dumps({"what": (__doc__ or "").splitlines()[0], "made": made, "figures": figures}, indent=1)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in sorted(rows, key=lambda row: int(row["item"])))
    return f'{head[:-2]},\n "cases": [\n{lines}\n ]\n}}\n'


if __name__ == "__main__":
    main()
