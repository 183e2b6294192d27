"""CPU seconds of small commands: `ft` itself, each time in a process of its own, with the processes that it starts.

    git worktree add --detach /tmp/before f3dd23f
    python benchmarks/small_things.py --run runs/quickstart-TIME --before /tmp/before --out benchmarks/small_things.json

`--run` is a finished run of the quickstart, for `ft generate`. Each command is done once before it is measured, so that
what it keeps (prepared data, compiled Python) is there, and then `--repeat` times, of which the least counts: a busy
machine adds, and never takes away. Seconds are of user and system together. `--before` is a checkout of an older
fitune, which does the same in turn with this one, with the same packages.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
AIMS: dict[str, float] = {"help": 0.3, "data": 3.0, "explain-oom": 20.0, "levers": 40.0, "generate": 15.0}
"""Issue 20."""


def main() -> None:
    """Do each, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of the quickstart")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--before", type=Path, help="a checkout of what it is compared with")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    repeat = arguments.repeat
    seven, card = "recipes/deepseek7b_g5.toml", ("--gpu", "a10g")
    commands: dict[str, tuple[str, ...]] = {
        "help": ("--help",),
        "data": ("data", "recipes/quickstart.toml"),
        "explain-oom": ("explain-oom", "--asked", "172MiB", "--free", "20MiB", *card, seven),
        "levers": ("plan", seven, *card, "--levers"),
    }
    if arguments.run is not None:
        commands["generate"] = (
            "generate",
            str(arguments.run.resolve()),
            "--prompt",
            "Hello.",
            "--max-new-tokens",
            "16",
        )
    found = {}
    for name, command in commands.items():
        sides = {"cpu_seconds": ROOT} | ({"before": arguments.before} if arguments.before else {})
        measured = [{side: cpu_seconds(command, place) for side, place in sides.items()} for _ in range(repeat + 1)][1:]
        found[name] = {
            "command": " ".join(["ft", *command]).replace(str(arguments.run and arguments.run.resolve()), "RUN"),
            **{side: round(min(one[side] for one in measured), 2) for side in sides},
            "aim": AIMS[name],
        }
        print(name, found[name], flush=True)
    host = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    commits = {"commit": commit_of(ROOT)} | ({"before": commit_of(arguments.before)} if arguments.before else {})
    written = {"measured": time.strftime("%Y-%m-%d"), **commits, "repeat": repeat, "host": host, "commands": found}
    arguments.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def cpu_seconds(command: Sequence[str], place: Path) -> float:
    """Of one command of the fitune in a checkout, which must end well."""
    path = os.pathsep.join(str(place / part) for part in ("core", "plugins"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "fitune", *command],
        cwd=place,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{place}: ft {' '.join(command)} ended with {done.returncode}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commit_of(place: Path) -> str:
    """What is checked out there."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=place, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
