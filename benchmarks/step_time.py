"""The time of a step on one card: forecast beside measured, in all and by kind of kernel.

    python benchmarks/step_time.py --plan plan.json --card h100                         (needs no card)
    python benchmarks/step_time.py --measure plan.json --out benchmarks/step_time.json  (about three minutes of a card)
    python benchmarks/step_time.py --table benchmarks/step_time.json

LoRA on DeepSeek-LLM 7B's shape, one row to a micro-batch, in compositions with and without each strategy that changes
time. What is measured is the product's own step (`compose`, `train`), one composition behind another in one process,
with random weights that are made on the card: the median of all steps but the first three. One more step is profiled,
so that an error is seen where it is made: in products, in attention, in what is bound by memory, or between kernels. Of
a forecast the kinds are those of operations, of a profile those of kernels' names (`speed_kernels.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "fit"))
from measure import MEMORY, Json, circumstances
from speed_kernels import parts as kernels_of

from runs import recipe, rows, write_model

sys.path.insert(0, str(MEMORY))

if TYPE_CHECKING:
    from fitune.memory.forecast import Forecast
    from fitune.plugin.recipe import Recipe
    from fitune.plugin.registry import Registry

WARM_UP, STEPS = 3, 10
NARROW = 64
"""Products with a side of fewer rows or columns are an adapter's."""

RATE = 800e12
"""Floating-point operations a second, about, by which an adapter's products are told from the base's."""

LOSS: list[Json] = [{"use": "chunked-loss"}]
FUSED: list[Json] = [{"use": "fused-rms-norm"}, {"use": "fused-lora"}, *LOSS]
FAST: list[Json] = [{"use": "fast-layers"}, *LOSS, {"use": "fused-rms-norm"}, {"use": "fused-lora"}]
GRAPHS: list[Json] = [*FAST, {"use": "cuda-graphs"}]
FOUR: Json = {"use": "accumulation", "steps": 4}
CASES: dict[str, Json] = {
    "fast, four micro-batches": {"strategies": [FOUR, *GRAPHS]},
    "plain": {"strategies": LOSS},
    "fused": {"strategies": FUSED},
    "fused, recomputed": {"strategies": [*FUSED, {"use": "recompute-pointwise"}]},
    "fused, checkpointed": {"strategies": [*FUSED, {"use": "gradient-checkpointing"}]},
    "fast": {"strategies": FAST},
    "fast, checkpointed": {"strategies": [*FAST, {"use": "gradient-checkpointing"}]},
    "fast, fp8": {"strategies": [{"use": "fp8"}, *GRAPHS]},
    "fast, 2048": {"strategies": GRAPHS, "length": 2048},
    "fast, 1024": {"strategies": GRAPHS, "length": 1024},
    "plain, 2048": {"strategies": LOSS, "length": 2048},
    "r = 16 on q and v, 2048": {"strategies": FUSED, "length": 2048, "r": 16, "targets": ["q_proj", "v_proj"]},
    "fast, offloaded": {"strategies": [*FAST, {"use": "gradient-checkpointing"}, {"use": "offload-checkpoints"}]},
}
"""By name: what differs from r = 4 on all linear layers and 4,096 tokens; the first count most."""


def main() -> None:
    """Plan, measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, help="write here what is forecast")
    parser.add_argument("--card", default="h100", help="by name, the card that it is measured on")
    parser.add_argument("--only", action="append", choices=list(CASES), help="may be repeated")
    parser.add_argument("--measure", type=Path, help="measure what is planned here")
    parser.add_argument("--seconds", type=float, default=170, help="after which no other composition is begun")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--table", type=Path, help="print what was written here, as a table")
    arguments = parser.parse_args()
    if arguments.plan:
        planned: Json = {}
        for name in arguments.only or CASES:
            planned[name] = plan(name, arguments.card)
            arguments.plan.write_text(json.dumps(planned, indent=1) + "\n", encoding="utf-8")
            print(name, f"{planned[name]['seconds']:.4f} s", planned[name]["kinds"], flush=True)
    if arguments.measure:
        measure_all(json.loads(arguments.measure.read_text(encoding="utf-8")), arguments)
    if arguments.table:
        print("\n".join(table(json.loads(arguments.table.read_text(encoding="utf-8"))["cases"])))


# ------------------------------------------------------------------------------------------------------------ forecast
def plan(name: str, card: str) -> Json:
    """What is forecast of a composition."""
    from fitune.memory.cards.cards import find_card
    from fitune.memory.forecast import forecast
    from fitune.memory.shapes import of_recipe
    from fitune.memory.timing import json_of_time

    with tempfile.TemporaryDirectory() as directory:
        read = written(name, Path(directory), registry_of())
        found = forecast(read, of_recipe(read), find_card(card))
    return {**json_of_time(found), "allocated": found.allocated, "kinds": kinds(found)}


def kinds(found: Forecast) -> dict[str, float]:
    """Milliseconds of a micro-batch by kind of operation, each as it was measured by itself."""
    from fitune.memory.cards.pace import Pace

    pace, work = Pace(found.card), found.trace.work
    told = dict.fromkeys(("products", "LoRA", "attention", "passes", "operations"), 0.0)
    for operation, times in work.micro.items():
        kind = {"product": "products", "attention": "attention"}.get(operation.family, "passes")
        if kind == "products" and min(operation.sizes[1:]) <= NARROW:
            kind = "LoRA"
        told[kind] += 1e3 * times * pace.seconds(operation) / found.trace.micro_batches
        told["operations"] += times / found.trace.micro_batches
    return {kind: round(value, 3) for kind, value in told.items()}


def registry_of() -> Registry:
    """fitune's own plugins, and a loader that makes models without a checkpoint."""
    import forecast_rows

    from fitune.plugin.registry import Registry

    registry = Registry.open(third_party=False)
    registry.register(forecast_rows, "shape")
    return registry


def written(name: str, home: Path, registry: Registry) -> Recipe:
    """The recipe of a composition, with rows of its length."""
    from fitune.recipe.reader import read_recipe

    case = {"length": 4096, **CASES[name]}
    strategies = case.pop("strategies")
    made = recipe(write_model(home / "model"), strategies, steps=STEPS + 1, **case)
    texts = rows(case["length"], 8)
    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    made["data"]["source"] = [{"use": "jsonl", "path": "data.jsonl"}]
    (home / "recipe.toml").write_text(tomli_w.dumps(made), encoding="utf-8")
    return read_recipe(home / "recipe.toml", registry)


# ------------------------------------------------------------------------------------------------------------- measure
def measure_all(planned: Json, arguments: argparse.Namespace) -> None:
    """Measure the compositions while there is time, and write what there is after each."""
    begun = time.perf_counter()
    command = "python benchmarks/step_time.py --plan plan.json; ... --measure plan.json"
    whole: Json = {**circumstances(0.0, command), "cases": {}}
    del whole["allocator_limit_gib"]
    registry = registry_of()
    for name, told in planned.items():
        if time.perf_counter() - begun > arguments.seconds:
            print(f"no time is left for {name}")
            continue
        try:
            found = measured(name, registry)
        except Exception as error:  # one that fails hides no other
            found = {"failed": f"{type(error).__name__}: {str(error)[:400]}"}
        whole["cases"][name] = {"forecast": told, "measured": found}
        arguments.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        print(next(iter(table({name: whole["cases"][name]}, head=False))), flush=True)


def measured(name: str, registry: Registry) -> Json:
    """Seconds of a step, and milliseconds of a micro-batch by part."""
    from fitune.compose.devices import free_memory
    from fitune.compose.parts import compose
    from fitune.plugin.events import StepReport
    from fitune.train.loop import train

    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        parts = compose(written(name, home, registry), home / "run")
        steps = (report for report in train(parts) if isinstance(report, StepReport))
        reports = [next(steps) for _ in range(STEPS)]
        accumulation, device = parts.run.plan.accumulation, parts.accelerator.device
        smallest = 2 * reports[-1].tokens / accumulation * 4096 * 4096 / RATE
        kernels = profiled(steps, home / "trace.json", smallest, accumulation)
        del parts, steps
    free_memory(device)
    seconds = [report.seconds for report in reports[WARM_UP:]]
    return {
        "seconds": statistics.median(seconds),
        "all": [round(one, 5) for one in seconds],
        "accumulation": accumulation,
        "attention": list(reports[-1].attention),
        "allocated": reports[-1].memory.peak,
        "kernels": kernels,
    }


def profiled(steps: Iterator[Any], trace: Path, smallest: float, accumulation: int) -> Json | None:
    """Where the time of the next step goes, by part; `smallest` is about what the base's smallest product takes."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        next(steps)
        torch.cuda.synchronize()
    seen.export_chrome_trace(str(trace))
    return kernels_of(trace, smallest, accumulation)


# --------------------------------------------------------------------------------------------------------------- table
def table(cases: Json, *, head: bool = True) -> Iterator[str]:
    """A line for each composition, in milliseconds of a micro-batch: forecast / measured."""
    if head:
        columns = ("composition", "a step, s", "error", "products", "adapter", "attention", "passes", "number", "gaps")
        yield f"| {' | '.join(columns)} |"
        yield f"| --- |{' ---: |' * (len(columns) - 1)}"
    for name, case in cases.items():
        told, real = case["forecast"], case["measured"]
        if "failed" in real:
            yield f"| {name} | {told['seconds']:.4f} / failed: {real['failed']} |"
            continue
        error = 100 * (told["seconds"] / real["seconds"] - 1)
        cells = [name, f"{told['seconds']:.4f} / {real['seconds']:.4f}", f"{error:+.1f} %"]
        kernels = real["kernels"]
        if kernels is not None:
            seen, kind = kernels["parts"], told["kinds"]
            known = ("products", "LoRA", "attention")
            cells += [f"{kind[one]:.1f} / {seen.get(one, 0.0):.1f}" for one in known]
            others = sum(value for one, value in seen.items() if one not in known)
            cells += [f"{kind['passes']:.1f} / {others:.1f}", f"{kind['operations']:.0f}, {kernels['kernels']:.0f}"]
            cells.append(f"{kernels['gaps']:.1f}")
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
