"""Seconds from the command to the first step, by phases: `ft run` itself, each time in a process of its own.

    python benchmarks/start.py --model DIR --out benchmarks/start.json
    python benchmarks/start.py --model DIR --against REVISION --repeat 3

`--model` is a directory with weights (random ones will do) and configuration; a tokenizer of single bytes is put beside
it where it has none. Wall-clock seconds are those that `run.json` records of each start (`phases`); seconds of the CPU
are of the whole command, of one step, with the processes that it starts. `--against` runs another revision of this
repository in turn with this one, so that a machine that is busy is so for both. The first start of each is left out: it
reads what the others find in the system's caches.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "fit"))
from commands import give_tokenizer
from measure import circumstances

Json = dict[str, Any]

ROOT = Path(__file__).parent.parent
PATIENCE = 900
"""Seconds for one start."""


def main() -> None:
    """Start a run again and again, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--against", help="a revision of git to compare with")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--fit", action="store_true", help="with [memory] fit = true, which chooses strategies first")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    give_tokenizer(arguments.model)
    whole: Json = {**circumstances(0.0, "python benchmarks/start.py --model DIR"), "host": host()}
    del whole["allocator_limit_gib"]
    whole |= {"length": arguments.length, "fit": arguments.fit, "weights": weights(arguments.model)}
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        places = {"this": ROOT}
        if arguments.against:
            places[arguments.against] = checked_out(arguments.against, home / "other")
        starts: dict[str, list[Json]] = {name: [] for name in places}
        for number in range(arguments.repeat + 1):
            for name, place in places.items():
                found = started(place, home / f"{number}-{len(starts[name])}-{name[:8]}", arguments)
                starts[name].append(found)
                print(name, json.dumps(found), flush=True)
            whole["starts"] = starts
            whole["medians"] = {name: medians(all_[1:]) for name, all_ in starts.items()}
            arguments.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    for name, found in whole["medians"].items():
        print(f"{name}: {json.dumps(found)}")


def started(place: Path, home: Path, arguments: argparse.Namespace) -> Json:
    """One start: its phases, and what the command took in all."""
    home.mkdir(parents=True)
    rows = "".join(json.dumps({"text": "ab" * (arguments.length // 2)}) + "\n" for _ in range(4))
    (home / "data.jsonl").write_text(rows, encoding="utf-8")
    table = {
        "name": "start",
        "model": {"use": "hf", "path": str(arguments.model.resolve()), "dtype": "bfloat16"},
        "adapter": {"use": "lora", "r": 4, "alpha": 8, "targets": "all-linear"},
        "data": {
            "source": [{"use": "jsonl", "path": "data.jsonl"}],
            "stage": [{"use": "plain-text"}, {"use": "tokenize"}],
        },
        "train": {"length": arguments.length, "steps": 1},
        **({"memory": {"fit": True}} if arguments.fit else {}),
    }
    (home / "recipe.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    paths = [str(place / "core"), str(place / "plugins"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "fitune", "run", str(home / "recipe.toml"), "--out", str(home / "run")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=home,
    )
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    record = json.loads((home / "run" / "run.json").read_text(encoding="utf-8"))
    phases: dict[str, float] = record["starts"][-1].get("phases", {})
    return {
        "phases": phases,
        **({"to_first_step": round(sum(phases.values()), 3)} if phases else {}),
        "command": round(seconds, 3),
        "cpu": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 3),
    }


def medians(starts: list[Json]) -> Json:
    """Of each figure."""
    whole = [start for start in starts if "failed" not in start]
    if not whole:
        return {}
    names = [name for name in ("to_first_step", "command", "cpu") if name in whole[0]]
    found: Json = {name: round(statistics.median(start[name] for start in whole), 3) for name in names}
    found["phases"] = {
        name: round(statistics.median(start["phases"].get(name, 0.0) for start in whole), 3)
        for name in whole[0]["phases"]
    }
    return found


def checked_out(revision: str, place: Path) -> Path:
    """The files of a revision."""
    place.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision, "core", "plugins"], capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(place)], input=archive.stdout, check=True)
    return place


def weights(model: Path) -> int:
    """Bytes of weights."""
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


def host() -> Json:
    """The machine: a busy one takes longer."""
    return {"cores": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()}


if __name__ == "__main__":
    main()
