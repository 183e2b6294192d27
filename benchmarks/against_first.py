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
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

LIMIT = 240.0
"""Seconds that a command may take where a case does not say; a start takes up to 20 on a machine at work."""

ENDED, UNREAD, ERROR, STOPPED = 0, 1, 2, 3
"""Exit codes of `ft`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int | None
    """None if it was still at work when its time was over."""
    out: str
    err: str

    @property
    def text(self) -> str:
        """All that it printed."""
        return self.out + self.err

    def wrong(self, *codes: int) -> str | None:
        """What is wrong with it where it should have ended with one of these exit codes, and as a user's error if not
        with 0."""
        if self.code is None:
            return "still at work when its time was over"
        if "Traceback" in self.text:
            return f"a traceback: {self._last()}"
        return None if self.code in codes else f"exit code {self.code}: {self._last()}"

    def _last(self) -> str:
        lines = [line for line in self.text.strip().splitlines() if "Loading weights" not in line]
        return (lines or [""])[-1][:160]


class Given:
    """What a case is given: an `ft`, a directory of its own, and a tiny project with a run that is done."""

    def __init__(self, ft: Sequence[str], home: Path, base: Path) -> None:
        self.words, self.home, self.base = tuple(ft), home, base
        home.mkdir(parents=True, exist_ok=True)
        user = home / "user"
        user.mkdir(exist_ok=True)
        places = {"HOME": user, "XDG_CONFIG_HOME": user / "config", "XDG_CACHE_HOME": user / "cache"}
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("FT_", "XDG_"))},
            **{key: str(place) for key, place in places.items()},
            **{"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120", "PYTHONDONTWRITEBYTECODE": "1"},
        }

    def ft(self, *words: str | Path, limit: float = LIMIT, stdin: bytes = b"", **more: Any) -> Ended:
        """Run a command to its end, or to the end of its time; `more` is for `subprocess`."""
        process = self.start(*words, **{"stdin": subprocess.PIPE, **more})
        try:
            out, err = process.communicate(stdin, timeout=limit)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            code = None
        texts = [(said or b"").decode("utf-8", "surrogateescape") for said in (out, err)]
        return Ended(code=code, out=texts[0], err=texts[1])

    def start(self, *words: str | Path, env: Mapping[str, str] | None = None, **more: Any) -> subprocess.Popen[bytes]:
        """Start a command, in the case's directory if no other is named."""
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.home}
        command = [*self.words, *map(str, words)]
        return subprocess.Popen(command, env={**self.environment, **(env or {})}, **{**piped, **more})

    def project(self, changes: Mapping[str, object] | None = None, name: str = "project") -> Path:
        """A tiny project of the case's own, with these tables in its recipe; gives the recipe."""
        from fitune.testing import write_recipe

        return write_recipe(self.home / name, changes)

    def finished(self, name: str = "run") -> Path:
        """A copy of the run that is done, in the case's directory."""
        return Path(shutil.copytree(self.base / "run", self.home / name))


Work = Callable[[Given], str | None]
"""Gives how it fails; None where it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case of an item of the issue."""

    item: int
    what: str
    work: Work


class Cases(list[Case]):
    """Cases, as they are written down."""

    def of(self, item: int, what: str) -> Callable[[Work], Work]:
        """Write a function down as a case."""

        def keep(work: Work) -> Work:
            self.append(Case(item=item, what=what, work=work))
            return work

        return keep


def main() -> None:
    """Try all cases, or those that are asked for, with one `ft`, and put what came of them into the file."""
    from against_first_files import CASES as OF_FILES
    from against_first_words import CASES as OF_WORDS

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
