"""Speed and memory of `ft run` beside its rivals: one card, the same shape, tokens, targets and limit of memory.

    python deepseek7b_shape.py /tmp/model     # a checkpoint of DeepSeek-LLM 7B's shape; values do not matter
    python benchmarks/speed.py --model /tmp/model --texts gsm8k.jsonl --out speed.json \\
        --rows 4096,2048-cap --stacks fitune,unsloth,transformers

Each stack trains LoRA r = 4 on all linear layers in bfloat16, one row a micro-batch and four a step, in a process of
its own. Measured is the median step (speed_clock.py), what the allocator took, the seconds from the command to the end
of the first step and of the tenth, and in a step that is not timed the kernels' time by part (speed_kernels.py). A
stack that runs out of memory is tried again with gradient checkpointing. What fitune does about memory is chosen by
`fit`; `fitune-plain` is the same recipe without it. A stack that is named twice runs twice: the second time what the
first compiled is there.

Results are written after every run. A file that is there already is added to; speeds are compared within one session
only. `--merge FILE` adds the sessions of another file, and prints all tables.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from speed_kernels import parts
from speed_rows import ACCUMULATION, ALPHA, ROWS, TARGETS, TIMED, Json, Prepared, R, Row, possible, prepare, recipe
from speed_table import result_of, tables

HERE = Path(__file__).parent
RIVALS = ("transformers", "trl", "liger", "compiled", "unsloth", "unsloth-xformers")
STACKS = ("fitune", "fitune-plain", *RIVALS)
PATIENCE = {"fitune": 130, "fitune-plain": 110, "unsloth": 150, "unsloth-xformers": 150, "compiled": 130}
"""Seconds after which a run is given up; `USUAL` for others."""
USUAL = 100
LEAST = 40
"""Seconds that have to be left for a run to be started."""
TOO_LARGE = {
    "4096-cap": RIVALS,
    "2048-cap": ("transformers", "trl", "liger", "compiled"),
    "4096-nf4-cap": ("transformers", "trl", "liger", "compiled"),
}
"""What is known not to fit without gradient checkpointing, and is not tried without it."""
SHORT = ("OutOfMemory", "out of memory", "ALLOC_FAILED")
"""What errors say where memory ran out."""
SHRINK = 64
"""What lengths are divided by where all is tried without a GPU."""


def main() -> None:
    """Run what is asked for; write and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a checkpoint of Llama's architecture")
    parser.add_argument("--texts", type=Path, help="JSON Lines with question and answer, for packed rows")
    parser.add_argument("--rows", default=",".join(ROWS), help="any of %(default)s")
    parser.add_argument(
        "--stacks", default="fitune,transformers,trl,liger,compiled,unsloth", help="of " + ",".join(STACKS)
    )
    parser.add_argument("--rivals", type=Path, help="packages of rivals: DIR/common, and DIR/STACK for one alone")
    parser.add_argument("--gib", type=float, default=21.8, help="what a limited allocator may take")
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing that would end later")
    parser.add_argument("--merge", type=Path, help="add the sessions of this file; run nothing")
    parser.add_argument("--cpu", action="store_true", help=f"try all parts: lengths divided by {SHRINK}, no limit")
    parser.add_argument("--ceiling", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ceiling:
        arguments.out.write_text(json.dumps(ceiling(cpu=arguments.cpu)), encoding="utf-8")
        return
    kept: Json = {"sessions": [], "results": []}
    if arguments.out.exists():
        kept = json.loads(arguments.out.read_text(encoding="utf-8"))
    if arguments.merge:
        add(kept, json.loads(arguments.merge.read_text(encoding="utf-8")))
        write(kept, arguments.out)
    else:
        with tempfile.TemporaryDirectory() as home:
            session = Session(arguments, Path(home))
            kept["sessions"].append(session.told)
            for found in session.results(arguments.rows.split(","), arguments.stacks.split(",")):
                kept["results"].append(found)
                write(kept, arguments.out)
    print("\n".join(tables(kept)))


def add(kept: Json, other: Json) -> None:
    """Add the sessions of another file that are not there yet, and their results."""
    known = {session["session"] for session in kept["sessions"]}
    kept["sessions"] += [session for session in other["sessions"] if session["session"] not in known]
    kept["results"] += [result for result in other["results"] if result["session"] not in known]


def write(kept: Json, out: Path) -> None:
    """Write it so that the file is whole at any time."""
    beside = out.with_suffix(".part")
    beside.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    beside.replace(out)


def ceiling(*, cpu: bool) -> Json:
    """The card, and what it makes of a large product of bfloat16 matrices: the median of 20 after 10, in FLOP/s."""
    import torch

    size = 256 if cpu else 8192
    device = "cpu" if cpu else "cuda"
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(30):
        start = time.perf_counter()
        torch.mm(a, b)
        if not cpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    found: Json = {"flops": 2 * size**3 / sorted(times[10:])[10], "card": "none", "torch": torch.__version__}
    if not cpu:
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "bytes": properties.total_memory, "cuda": torch.version.cuda}
    return found


class Session:
    """Runs on one card, one after another."""

    def __init__(self, arguments: argparse.Namespace, home: Path) -> None:
        self.arguments, self.home = arguments, home
        self.end = time.time() + arguments.minutes * 60
        self.config: Json = json.loads((arguments.model / "config.json").read_text(encoding="utf-8"))
        file = home / "ceiling.json"
        cpu = ["--cpu"] if arguments.cpu else []
        subprocess.run([sys.executable, __file__, "--ceiling", *cpu, "--out", str(file)], check=True)
        measured = json.loads(file.read_text(encoding="utf-8"))
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.told: Json = {"session": f"{now} {measured['card']}", **measured, "limit_gib": arguments.gib}
        self.plugin = home / "plugin"
        information = self.plugin / "speed_plugin-0.dist-info"
        information.mkdir(parents=True)
        for name in ("speed_plugin.py", "speed_clock.py"):
            shutil.copy(HERE / name, self.plugin)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: speed-plugin\nVersion: 0\n")
        (information / "entry_points.txt").write_text("[fitune]\nspeed = speed_plugin\n")

    def results(self, rows: list[str], stacks: list[str]) -> Iterator[Json]:
        """What each stack made of each row."""
        number = 0
        for name in rows:
            row = ROWS[name]
            length = row.length // (SHRINK if self.arguments.cpu else 1)
            files = prepare(row, length, self.arguments.model, self.arguments.texts, self.home)
            for stack in stacks:
                if row.fp8 and stack in RIVALS:
                    continue
                checkpointing = stack in TOO_LARGE.get(name, ()) and not self.arguments.cpu
                for again in (checkpointing, True) if stack in RIVALS and not checkpointing else (checkpointing,):
                    number += 1
                    found = self.one(row, length, files, stack, again, self.home / str(number))
                    smallest = 2 * length * self.config["hidden_size"] ** 2 / self.told["flops"]
                    trace = self.home / f"{number}.trace"
                    if trace.exists():
                        found["kernels"] = parts(trace, smallest, ACCUMULATION)
                        trace.unlink()
                    best = possible(self.config, files.attended, self.told["flops"])
                    told = {"session": self.told["session"], "row": name, "stack": stack, "checkpointing": again}
                    text = json.dumps({**told, **result_of(found, best)}).replace(str(self.home), "RUNS")
                    result = json.loads(text)
                    print(
                        json.dumps({k: v for k, v in result.items() if k not in ("kernels", "raw")})[:700], flush=True
                    )
                    yield result
                    if not any(words in result.get("error", "") for words in SHORT):
                        break

    def one(self, row: Row, length: int, files: Prepared, stack: str, checkpointing: bool, place: Path) -> Json:
        """Make one run; what its clock has seen."""
        gib = self.arguments.gib if row.capped and not self.arguments.cpu else None
        out = place.with_suffix(".json")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
        if stack in RIVALS:
            case = {"model": str(files.model), "tokens": str(files.tokens), "out": str(out), "length": length}
            case |= {"gib": gib, "nf4": row.nf4, "packed": row.packed, "checkpointing": checkpointing, "timed": TIMED}
            case |= {
                "accumulation": ACCUMULATION,
                "r": R,
                "alpha": ALPHA,
                "targets": TARGETS,
                "cpu": self.arguments.cpu,
            }
            place.with_suffix(".case").write_text(json.dumps(case), encoding="utf-8")
            command = [sys.executable, str(HERE / "speed_rivals.py"), stack, str(place.with_suffix(".case"))]
            paths = [stack, *(["unsloth"] if stack.startswith("unsloth") else []), "common"]
            found = [
                str(path) for name in paths if self.arguments.rivals and (path := self.arguments.rivals / name).exists()
            ]
        else:
            import tomli_w

            fit: str | bool = stack == "fitune" and not self.arguments.cpu and (f"{gib}GiB" if gib else True)
            asked = recipe(row, files.model, files.texts, length=length, fit=fit, steps=TIMED + 1)
            place.with_suffix(".toml").write_text(tomli_w.dumps(asked), encoding="utf-8")
            command = [sys.executable, "-m", "fitune", "run", str(place.with_suffix(".toml")), "--out", str(place)]
            environment |= {"SPEED_OUT": str(out), "SPEED_TIMED": str(TIMED)} | ({"SPEED_GIB": str(gib)} if gib else {})
            found = [str(self.plugin)]
        environment["PYTHONPATH"] = os.pathsep.join([*found, *filter(None, [os.environ.get("PYTHONPATH")])])
        patience = min(PATIENCE.get(stack, USUAL), self.end - time.time())
        if patience < LEAST:
            return {"error": "not run: no time was left"}
        start = time.time()
        code, said = run(command, environment, self.home, place.with_suffix(".log"), patience)
        seen: Json = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        if code != 0 and "error" not in seen:
            seen["error"] = f"given up after {patience:.0f} s" if code is None else said
        if "error" in seen:
            seen["log"] = place.with_suffix(".log").read_text(encoding="utf-8", errors="replace")[-3000:]
        memory = place / "memory.json"
        if memory.exists():
            seen["memory"] = json.loads(memory.read_text(encoding="utf-8"))
        return {**seen, "start": start, "took": round(time.time() - start, 1)}


def run(
    command: list[str], environment: dict[str, str], place: Path, log: Path, patience: float
) -> tuple[int | None, str]:
    """Run it; its exit code, None where it was ended after `patience` seconds, and the last of what it said."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, cwd=place, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        code: int | None
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    errors = [line for line in text.splitlines() if line.startswith("error:") or "OutOfMemoryError" in line]
    return code, "\n".join(errors[-1:]) or text[-1200:]


if __name__ == "__main__":
    main()
