"""How good a forecast of a run's memory is: each case forecast on the CPU and run on the card, errors in percent.

    python benchmarks/memory/forecasts.py --keep-going --out benchmarks/memory/forecasts.json

Truth is what torch's allocator says of the product's own path, `compose` and `train`, over three steps, each run in a
process of its own; as many share the card at once as it has room for, for none sees the others' memory. Where a
forecast of allocated bytes is wrong by more than is allowed, the run is made again with its allocations recorded, and
the blocks at both peaks are stored side by side (`alive`: [bytes rounded, how many]; `more`: how many more there are in
truth, with an example of each side). All sizes are bytes; `saving` is the peak while the trained weights are written,
`outside` what the card holds beside the allocator (other processes too, but for the first case, which runs alone).
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from family_cases import family_cases
from forecast_cases import SHAPES, Case, Shape, all_cases, by_name
from forecast_rows import forecast_of, write_weights
from forecast_table import GIB, Json, beside, summary, table, version
from forecast_truth import truth_of

sys.modules["kernels"] = None  # type: ignore[assignment]  # a file beside this one, where transformers finds a package

MODELS = ("llama", "qwen2", "gemma2")
PRELOADED = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    *(f"transformers.models.{name}.modeling_{name}" for name in MODELS),
)
"""What every process has from the start; neither peft nor what imports it, for bitsandbytes then asks the card."""
CONTEXT = 2 * GIB
"""What a process takes of the card beside its allocator, generously."""
UNKNOWN = 40 * GIB
"""What a run is taken to need that could not be forecast."""
FILES: dict[Shape, int] = {"deepseek": 8, "qwen": 2, "small": 1}
"""Files of the checkpoint of a shape."""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


def main() -> None:
    """Forecast and measure every case, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--only", default="*", help="cases whose names match, e.g. 'gemma*'")
    parser.add_argument("--families", action="store_true", help="many families of models in place of the usual cases")
    parser.add_argument("--list", action="store_true", help="print the cases' names and stop")
    parser.add_argument("--forecast-only", action="store_true", help="only the forecasts, which need no card")
    parser.add_argument("--keep-going", action="store_true", help="note a failure in its row, and go on")
    parser.add_argument("--card", default="h100", help="what to forecast for: the card that this runs on")
    parser.add_argument("--room", type=float, default=70, help="GiB of the card that runs may share")
    parser.add_argument("--processes", type=int, default=min(12, os.cpu_count() or 1), help="forecasts at a time")
    parser.add_argument("--runs", type=int, default=3, help="runs on the card at a time")
    parser.add_argument("--minutes", type=float, default=7.5, help="start no run on the card after so long")
    parser.add_argument("--start", default="forkserver", help="or spawn, which is slower")
    arguments = parser.parse_args()
    every = by_name(list(family_cases())) if arguments.families else all_cases()
    cases = {name: case for name, case in every.items() if fnmatch.fnmatch(name, arguments.only)}
    if arguments.list:
        print("\n".join(cases))
        return
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        os.environ.pop(name, None)
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "OMP_NUM_THREADS": "2"}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(prefix="forecasts-") as home:
        bench = Bench(arguments, Path(home), cases)
        try:
            bench.run()
        finally:
            bench.stop()
            bench.write()
    print(table(list(bench.rows.values())))


@dataclass
class Job:
    """A function at work in a process of its own."""

    kind: str
    name: str
    process: Any
    connection: Connection
    room: float = 0
    start: float = field(default_factory=time.perf_counter)


def work(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """In the process: send what the function gives, or how it failed."""
    try:
        connection.send((function(*arguments), ""))
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-6:]
        lines = [f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno} {f.name}" for f in where]
        connection.send((None, f"{type(error).__name__}: {str(error)[:600]} [{' > '.join(lines)}]"))


class Bench:
    """The cases, what is being done about them, and what was found."""

    def __init__(self, arguments: argparse.Namespace, home: Path, cases: dict[str, Case]) -> None:
        self.arguments = arguments
        self.start = time.perf_counter()
        self.context = multiprocessing.get_context(arguments.start)
        if arguments.start == "forkserver":
            self.context.set_forkserver_preload(list(PRELOADED))
        self.cases = cases
        self.home = home
        self.paths: dict[str, Path] = {}
        self.rows: dict[str, Json] = {
            name: {"case": name, "group": case.group, "settings": asdict(case)} for name, case in cases.items()
        }
        self.alive: dict[str, Json] = {}
        self.jobs: list[Job] = []
        read = [] if arguments.forecast_only else [case.shape for case in cases.values() if case.loader == "hf"]
        self.to_write = [(shape, file) for shape in dict.fromkeys(read) for file in range(FILES[shape])]
        self.unwritten = {shape: FILES[shape] for shape in read}
        self.to_forecast = list(cases)
        self.to_run = [] if arguments.forecast_only else list(cases)
        self.to_watch: list[str] = []
        self.alone = not arguments.forecast_only

    def run(self) -> None:
        """Do all there is to do."""
        self.prepare()
        while True:
            self.fill()
            if not self.jobs:
                break
            wait([job.connection for job in self.jobs], timeout=1)
            for job in list(self.jobs):
                late = time.perf_counter() - job.start > (150 if job.kind in ("run", "watch") else 300)
                if job.connection.poll() or late:
                    self.jobs.remove(job)
                    self.done(job, late)
        for name in (*self.to_run, *self.to_watch):
            self.rows[name].setdefault("errors", []).append("no time was left")

    def prepare(self) -> None:
        """Write recipes, data, configurations and the tokenizer."""
        from fitune.testing import write_tiny_tokenizer

        tokenizer = self.home / "tokenizer"
        write_tiny_tokenizer(tokenizer)
        for shape in {case.shape for case in self.cases.values()}:
            directory = shutil.copytree(tokenizer, self.home / shape.replace(" ", "-"))
            config = {**SHAPES[shape], "dtype": "bfloat16", "bos_token_id": None, "eos_token_id": 257}
            (directory / "config.json").write_text(json.dumps({**config, "pad_token_id": 258}), encoding="utf-8")
        for number, (name, case) in enumerate(self.cases.items()):
            self.paths[name] = case.write(self.home / f"case-{number}", self.model_of(case))

    def model_of(self, case: Case) -> Path:
        """Directory of the case's model."""
        return self.home / case.shape.replace(" ", "-")

    def fill(self) -> None:
        """Start what there is room for."""
        on_host = [job for job in self.jobs if job.kind in ("write", "forecast")]
        for _ in range(self.arguments.processes - len(on_host)):
            if self.to_write:
                shape, file = self.to_write.pop(0)
                self.begin("write", shape, write_weights, self.home / shape, file, FILES[shape])
            elif self.to_forecast:
                name = self.to_forecast.pop(0)
                self.begin("forecast", name, forecast_of, self.cases[name], self.paths[name], self.arguments.card)
        if time.perf_counter() - self.start < 60 * self.arguments.minutes:
            for kind, names in (("run", self.to_run), ("watch", self.to_watch)):
                for name in sorted(names, key=self.room, reverse=True):
                    if self.may_run(name):
                        names.remove(name)
                        self.begin(kind, name, truth_of, self.paths[name], kind == "watch", room=self.room(name))

    def room(self, name: str) -> float:
        """Bytes of the card that a run takes, as forecast."""
        return float(self.rows[name].get("forecast", {}).get("reserved", UNKNOWN)) + CONTEXT

    def may_run(self, name: str) -> bool:
        """Whether a case has its forecast and its model, and the card room for it; the first runs alone."""
        row, case, first = self.rows[name], self.cases[name], next(iter(self.cases))
        if not {"forecast", "errors"} & row.keys() or (case.loader == "hf" and self.unwritten[case.shape]):
            return False
        running = [job for job in self.jobs if job.kind in ("run", "watch")]
        if self.alone:
            return name == first and not running
        if any(job.name == first and job.kind == "run" for job in running):
            return False
        taken = sum(job.room for job in running)
        return not running or (
            len(running) < self.arguments.runs and taken + self.room(name) <= self.arguments.room * GIB
        )

    def begin(self, kind: str, name: str, function: Callable[..., Any], *given: Any, room: float = 0) -> None:
        """Start a job."""
        self.alone = self.alone and kind != "run"
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=work, args=(theirs, function, given))
        process.start()
        theirs.close()
        self.jobs.append(Job(kind, name, process, ours, room))

    def done(self, job: Job, late: bool) -> None:
        """Note what a job found. Raises `SystemExit` for a failure unless all is to be gone through."""
        found: Any = None
        failure = f"the process ended with {job.process.exitcode}"
        if late and not job.connection.poll():
            job.process.kill()
            failure = "took too long"
        else:
            try:
                found, failure = job.connection.recv()
            except EOFError:
                job.process.join(20)
                failure = f"the process ended with {job.process.exitcode}"
        job.process.join(20)  # the card has its memory back then
        job.process.kill()
        seconds = time.perf_counter() - job.start
        print(f"{time.perf_counter() - self.start:6.1f} {job.kind} {job.name} {seconds:.1f} s {failure}", flush=True)
        if job.kind == "write":
            self.unwritten[job.name] -= not failure
            return
        row = self.rows[job.name]
        if failure:
            row.setdefault("errors", []).append(f"{job.kind}: {failure}")
            if not self.arguments.keep_going:
                sys.exit(f"{job.kind} of {job.name}: {failure}")
        elif job.kind == "forecast":
            self.alive[job.name] = found.pop("alive")
            row["forecast"] = found
        elif job.kind == "run":
            row["truth"] = {**found, "seconds": round(seconds, 1)}
            self.compare(job.name)
        else:
            row["alive"] = beside(self.alive[job.name], found["alive"])

    def compare(self, name: str) -> None:
        """The errors of a row; a large one is looked into."""
        row = self.rows[name]
        if "forecast" not in row:
            return
        row["error_percent"] = {
            key: round(100 * (row["forecast"][key] / row["truth"][key] - 1), 4) for key in ("allocated", "reserved")
        }
        if abs(row["error_percent"]["allocated"]) > self.cases[name].allowed:
            self.to_watch.append(name)

    def stop(self) -> None:
        """End what still works."""
        for job in self.jobs:
            job.process.kill()
            job.process.join()

    def write(self) -> None:
        """Write what was found."""
        rows = list(self.rows.values())
        truths = [row["truth"] for row in rows if "truth" in row]
        first = next(iter(rows), {}).get("truth", {})
        families = " --families" if self.arguments.families else ""
        about: Json = {
            "card": truths[0]["card"] if truths else None,
            "memory": truths[0]["total"] if truths else None,
            "context": first.get("outside"),
            "forecast_for": self.arguments.card,
            "versions": {name: version(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
            "date": datetime.date.today().isoformat(),
            "command": f"python benchmarks/memory/forecasts.py{families} --keep-going --out FILE",
            "seconds": round(time.perf_counter() - self.start),
            "summary": summary(rows),
        }
        lines = [json.dumps(row, default=str) for row in rows]
        head = json.dumps(about, indent=1).removesuffix("\n}")
        self.arguments.out.write_text(head + ',\n "rows": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
