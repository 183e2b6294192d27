"""Runs on several cards of one host: forecast beside measured, on every one of them, and how replicas scale.

    python benchmarks/several.py --plan plan.json --cards 2 --card h100          (needs no card)
    python benchmarks/several.py --measure plan.json --out benchmarks/several.json --minutes 9
    python benchmarks/several.py --weights /dev/shm/llama70b                     (132 GiB, for "70B, shards")

Each composition is a run of its own, of `compose` and `train` as `ft run` has them; a process for each card (by
torchrun) makes one after the other, for starting takes longer than they do. Weights are random, of Llama 3's shape,
mostly in few layers, on whose number the forecast's correctness does not depend. Of each process is kept the most that
torch's allocator gave out and reserved, and what of the card is in use beside it: the context, and NCCL's memory. What
was found is written after each run, so that a call that is cut short counts; a second leaves out what the file has.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from several_cases import CASES, LAYERS, LORA, SHAPES, STEPS
from several_profile import LOOKS, Json, looked_into

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "fit"), str(HERE / "memory")]

GIB, WARM_UP = 2**30, 2

LONG = 100_000
"""Tokens of a row that all cards share: so few rows are enough."""

PATIENCE = 280
"""Seconds after which a run is given up."""

WEIGHTS = Path("/dev/shm/llama70b")
"""Where a case with `weights` finds its checkpoint, as `--weights` makes it."""


def main() -> None:
    """Plan, measure, or be one of the processes of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, help="write forecasts here")
    parser.add_argument("--measure", type=Path, help="measure what is planned here")
    parser.add_argument("--worker", type=Path, nargs="+", help="the recipes of runs that this is a process of")
    parser.add_argument("--cards", type=int, default=2)
    parser.add_argument("--card", default="h100", help="by name, the card that it is measured on")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no further run is begun")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--only", nargs="*", help="names of cases")
    parser.add_argument("--jobs", type=int, default=1, help="forecasts that are made at once")
    parser.add_argument("--weights", type=Path, help=f"write the checkpoint of 70B here; cases look in {WEIGHTS}")
    asked = parser.parse_args()
    for recipe in asked.worker or ():
        work(recipe)
    if asked.weights:
        write_weights(asked.weights, asked.jobs)
    if asked.plan:
        chosen = {name: case for name, case in CASES.items() if not asked.only or name in asked.only}
        with tempfile.TemporaryDirectory() as home, ProcessPoolExecutor(asked.jobs, get_context("spawn")) as pool:
            given = [(case, Path(home) / str(at), asked.card, asked.cards) for at, case in enumerate(chosen.values())]
            planned = dict(zip(chosen, pool.map(plan, *zip(*given, strict=True)), strict=True))
        whole = {"card": asked.card, "cards": asked.cards, "cases": planned}
        asked.plan.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if asked.measure:
        measure(json.loads(asked.measure.read_text(encoding="utf-8")), asked.out, time.monotonic() + 60 * asked.minutes)


def model_of(case: Json, directory: Path) -> Path:
    """The directory, with configuration and tokenizer of a case's shape."""
    import forecast_cases

    from runs import write_model

    size = {**SHAPES.get(case.get("shape", ""), {}), "num_hidden_layers": case.get("layers", LAYERS)}
    forecast_cases.SHAPES["several"] = {**forecast_cases.SHAPES["llama8b"], **size}
    return write_model(directory, "several", positions=2**20)


def write_weights(directory: Path, jobs: int) -> None:
    """Write the checkpoint of the case that needs one, in a file for each two layers."""
    from forecast_rows import write_weights as write_file

    case = next(case for case in CASES.values() if "weights" in case)
    model_of(case, directory)
    files = case["layers"] // 2
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        list(pool.map(write_file, [directory] * files, range(files), [files] * files))


def written(case: Json, home: Path) -> Path:
    """The recipe of a case, with its model's configuration and rows of exactly as many tokens as a row has."""
    import tomli_w

    from runs import recipe, rows

    home.mkdir(parents=True, exist_ok=True)
    length, accumulation = case.get("length", 2048), case.get("accumulation", 1)
    steps = case.get("steps", STEPS + LOOKS)
    whole = "weights" in case and WEIGHTS.exists()
    model = WEIGHTS if whole else model_of(case, home / f"{case.get('shape', 'model')}-{case.get('layers', LAYERS)}")
    made = recipe(model, case["strategies"], length=length, steps=steps, loader="hf" if whole else "shape")
    made["adapter"] = case.get("adapter", LORA)
    made["train"] |= {"accumulation": accumulation}
    made["data"]["source"] = [{"use": "jsonl", "path": "data.jsonl"}]
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=home))
    data = rows(length, 2 * 8 * accumulation if length < LONG else 4)
    (directory / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in data), encoding="utf-8")
    (directory / "recipe.toml").write_text(tomli_w.dumps(made), encoding="utf-8")
    return directory / "recipe.toml"


def plan(case: Json, home: Path, card: str, cards: int) -> Json:
    """What is forecast of a case; sizes are bytes of each card."""
    import forecast_rows

    from fitune.errors import FtError
    from fitune.memory.cards.cards import find_card
    from fitune.memory.cards.several import several
    from fitune.memory.forecast import forecast
    from fitune.memory.shapes import of_recipe
    from fitune.memory.timing import time_of
    from fitune.plugin.registry import Registry
    from fitune.recipe.reader import read_recipe

    registry = Registry.open(third_party=False)
    registry.register(forecast_rows, "shape")
    try:
        read = read_recipe(written(case, home), registry)
        found = forecast(read, of_recipe(read), several(find_card(card), case.get("cards", cards)))
    except FtError as error:
        return {"failed": error.lines[0]}
    took = time_of(found)
    told = {"allocated": found.allocated, "reserved": found.reserved, "outside": found.card.outside}
    return {**told, "seconds": round(took.seconds.step, 4), "tokens": took.tokens, "peers": took.seconds.peers}


def measure(planned: Json, out: Path, until: float) -> None:
    """Make every run that was planned, the first ones first."""
    from measure import circumstances

    cards = planned["cards"]
    before = json.loads(out.read_text(encoding="utf-8"))["cases"] if out.exists() else {}
    cases: Json = {name: {"forecast": told, **before.get(name, {})} for name, told in planned["cases"].items()}
    whole = {**circumstances(0.0, "python benchmarks/several.py --measure ..."), "cards": cards}
    wanted = [name for name, case in cases.items() if not ("measured" in case or "failed" in case["forecast"])]
    with tempfile.TemporaryDirectory() as home:
        recipes = {name: written(CASES[name], Path(home)) for name in wanted}
        for count in (cards, 1):
            left = {name: path for name, path in recipes.items() if int(CASES[name].get("cards") or cards) == count}
            while left and time.monotonic() < until:
                for name, found in several_runs(left, count, until):
                    cases[name]["measured"] = found
                    del left[name]
                    out.write_text(json.dumps({**whole, "cases": cases}, indent=1) + "\n", encoding="utf-8")
                    print(line(name, cases[name]), flush=True)
    tell_scaling(cases, cards)


def several_runs(recipes: dict[str, Path], cards: int, until: float) -> Iterator[tuple[str, list[Json]]]:
    """Runs of one start, each with what its processes measured; the last with why, where it failed or took too long."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(cards)]
    with tempfile.TemporaryFile("w+") as said:
        started = subprocess.Popen([*command, __file__, "--worker", *map(str, recipes.values())], stderr=said)
        try:
            for name, path in list(recipes.items()):
                files, patience = [path.parent / f"{rank}.json" for rank in range(cards)], time.monotonic() + PATIENCE
                while not all(file.exists() for file in files):
                    if time.monotonic() > until:
                        return
                    if started.poll() is not None or time.monotonic() > patience:
                        said.seek(0)
                        yield name, [{"failed": said.read()[-600:]}]
                        return
                    time.sleep(0.2)
                yield name, [json.loads(file.read_text(encoding="utf-8")) for file in files]
        finally:
            started.terminate()
            started.wait()


def work(path: Path) -> None:
    """Make a run as one of its processes, and write what was measured."""
    import forecast_rows
    import torch

    from fitune.compose.parts import compose
    from fitune.plugin.events import StepReport
    from fitune.plugin.registry import Registry
    from fitune.recipe.reader import read_recipe
    from fitune.train.loop import train

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.cuda.reset_peak_memory_stats()
    registry = Registry.open(third_party=False)
    registry.register(forecast_rows, "shape")
    parts = compose(read_recipe(path, registry), path.parent / "run")
    reports = (report for report in train(parts) if isinstance(report, StepReport))
    look = parts.run.recipe.train.steps == STEPS + LOOKS  # where a case does not say how many
    steps = list(itertools.islice(reports, STEPS if look else None))
    free, total = torch.cuda.mem_get_info()
    found = {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "outside": total - free - torch.cuda.memory_reserved(),
        "retries": torch.cuda.memory_stats()["num_alloc_retries"],
        "seconds": round(statistics.median(step.seconds for step in steps[min(WARM_UP, len(steps) - 1) :]), 4),
        "loss": [round(step.loss, 5) for step in steps],
        "card": torch.cuda.get_device_name(),
        **(looked_into(reports) if look else {}),
    }
    written = path.parent / f"{os.environ['RANK']}.part"
    written.write_text(json.dumps(found), encoding="utf-8")
    written.rename(written.with_suffix(".json"))
    del parts
    gc.collect()
    torch.cuda.empty_cache()


def line(name: str, case: Json) -> str:
    """A case: by how much its forecast was off, on the card where it was off most."""
    told, measured = case["forecast"], case["measured"]
    if "failed" in measured[0]:
        return f"{name}: {measured[0]['failed']}"
    worst = [max((100 * (told[key] / one[key] - 1) for one in measured), key=abs) for key in ("allocated", "reserved")]
    seconds = 100 * (told["seconds"] / max(one["seconds"] for one in measured) - 1)
    beside = max(one["outside"] for one in measured) / GIB
    return (
        f"{name}: allocated {worst[0]:+.2f} %, reserved {worst[1]:+.2f} %, time {seconds:+.1f} %, beside the allocator "
        f"{beside:.2f} GiB (forecast {told['outside'] / GIB:.2f}); "
        f"{told['tokens'] / len(measured) / max(one['seconds'] for one in measured):,.0f} tokens a second on each card"
    )


def tell_scaling(cases: Json, cards: int) -> None:
    """Tokens a second on all cards, beside as many times those of one."""
    many, one = (cases.get(name, {}).get("measured") for name in list(CASES)[:2])
    if many and one and not any("failed" in found[0] for found in (many, one)):
        share = one[0]["seconds"] / max(found["seconds"] for found in many)
        print(f"replicas on {cards} cards: {100 * share:.1f} % of {cards} times one card's tokens a second")


if __name__ == "__main__":
    main()
