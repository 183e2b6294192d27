"""CPU seconds of small commands: `ft` itself, each time in a process of its own, with the processes that it starts.

    python benchmarks/small_things.py --run runs/quickstart-TIME --out benchmarks/small_things.json

`--run` is a finished run of the quickstart, for `ft generate`. Each command is done once before it is measured, so that
what it keeps (prepared data, compiled Python) is there, and then `--repeat` times, of which the least counts: a busy
machine adds, and never takes away. Seconds are of user and system together.
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
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    seven, card = "recipes/deepseek7b_g5.toml", ("--gpu", "a10g")
    commands: dict[str, tuple[str, ...]] = {
        "help": ("--help",),
        "data": ("data", "recipes/quickstart.toml"),
        "explain-oom": ("explain-oom", "--asked", "172MiB", "--free", "20MiB", *card, seven),
        "levers": ("plan", seven, *card, "--levers"),
    }
    if arguments.run is not None:
        commands["generate"] = ("generate", str(arguments.run), "--prompt", "Hello.", "--max-new-tokens", "16")
    found = {}
    for name, command in commands.items():
        measured = [cpu_seconds(command) for _ in range(arguments.repeat + 1)][1:]
        found[name] = {
            "command": " ".join(["ft", *command]).replace(str(arguments.run), "RUN"),
            "cpu_seconds": round(min(measured), 2),
            "aim": AIMS[name],
        }
        print(name, found[name], flush=True)
    host = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    written = {"measured": time.strftime("%Y-%m-%d"), "repeat": arguments.repeat, "host": host, "commands": found}
    arguments.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def cpu_seconds(command: Sequence[str]) -> float:
    """Of one command, which must end well."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "fitune", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"ft {' '.join(command)} ended with {done.returncode}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
