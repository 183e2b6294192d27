"""The founding case, on a card made as small as its own: it dies, and with `[memory] fit` it trains to the same loss.

    python benchmarks/fit/founding.py --model DIR --data gsm8k.jsonl --out benchmarks/fit/founding.json

DIR holds DeepSeek-LLM 7B, or a checkpoint of its shape with random weights. The run is `ft run` of
`recipes/deepseek7b_g5.toml` in the founding case's configuration: LoRA r = 8, alpha = 16 on q and v, no strategy, plain
loss, rows of 2048 tokens one at a time. It is made three times: on 21.8 GiB of allocator, which stand for the 22.30 GiB
of an A10G less its CUDA context; there with `memory.fit = "a10g"` and nothing else changed; and as the first, but with
all of the card, for the losses that the second is compared with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Json, circumstances

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
RECIPE = ROOT / "recipes" / "deepseek7b_g5.toml"
FOUNDING = [
    "adapter.r=8",
    "adapter.alpha=16",
    "memory.strategy=[]",
    "data.stage=[{use='chat'},{use='tokenize'},{use='truncate'}]",
    "memory.recoveries=0",
]
PLAIN = "memory.fast=false"
"""What leaves a run as it was before there was anything to add."""
CHILD = "--child"
"""What a process is started with that makes one run: `--child GIB ARGUMENTS OF FT`."""
WARM_UP = 5
"""Steps that are left out of the speed."""


def main() -> None:
    """Make the three runs and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines with question and answer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gib", type=float, default=21.8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--card", default="a10g", help="what the run is fitted to")
    arguments = parser.parse_args()
    from deepseek7b_g5 import make_tokenizer, write_long_rows

    make_tokenizer(arguments.model, arguments.data)
    with tempfile.TemporaryDirectory() as home:
        rows = Path(home) / "rows.jsonl"
        write_long_rows(arguments.data, rows, arguments.steps)
        paths = [f"model.path={arguments.model.resolve()}", f"data.path={rows}", f"train.steps={arguments.steps}"]
        results = {
            "founding": one([*FOUNDING, PLAIN, *paths], Path(home) / "founding", arguments.gib),
            "fitted": one([*FOUNDING, *paths, f'memory.fit="{arguments.card}"'], Path(home) / "fit", arguments.gib),
            "founding, all of the card": one([*FOUNDING, PLAIN, *paths], Path(home) / "all", 0),
        }
    command = "python benchmarks/fit/founding.py --model DIR --data gsm8k.jsonl --out FILE"
    found = {**circumstances(arguments.gib, command), "results": results, "compared": compared(results)}
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found["compared"], indent=2))


def run(gib: float, arguments: list[str]) -> None:
    """`ft` in this process, its allocator limited; 0 for no limit."""
    import torch

    from fitune.cli.main import main as ft

    if gib:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total)
    ft(arguments)


def one(overrides: list[str], directory: Path, gib: float) -> Json:
    """A run in a process of its own; sizes are bytes."""
    switches = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, __file__, CHILD, str(gib), "run", str(RECIPE), *switches, "--out", str(directory)]
    start = time.perf_counter()
    done = subprocess.run(command, check=False, text=True, capture_output=True, errors="replace")
    print(done.stdout[-1500:], done.stderr[-600:], flush=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        error = said[-1] if said else done.stderr[-500:]
        return {"exit_code": done.returncode, "error": without_places(error, directory, overrides)}
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    recipe = (directory / "recipe.toml").read_text(encoding="utf-8")
    return {
        "exit_code": 0,
        "allocated": steps[-1]["gpu_memory_peak"],
        "reserved": steps[-1]["gpu_memory_reserved_peak"],
        "tokens_per_second": round(statistics.median(step["tokens_per_second"] for step in steps[WARM_UP:])),
        "loss": [step["loss"] for step in steps],
        "seconds": round(time.perf_counter() - start, 1),
        "recipe": without_places(recipe, directory, overrides),
        "memory": json.loads((directory / "memory.json").read_text(encoding="utf-8")),
    }


def without_places(text: str, directory: Path, overrides: list[str]) -> str:
    """A text that names no directory of this machine."""
    model = next(value for key, _, value in (o.partition("=") for o in overrides) if key == "model.path")
    return text.replace(str(directory.parent), "RUNS").replace(model, "DIR")


def compared(results: dict[str, Json]) -> Json:
    """What the case comes to."""
    fitted, whole = results["fitted"].get("loss", []), results["founding, all of the card"].get("loss", [])
    pairs = list(zip(fitted, whole, strict=False))
    return {
        "founding": results["founding"].get("error", "trained"),
        "fitted": results["fitted"].get("error", "trained"),
        "steps_compared": len(pairs),
        "largest_relative_difference_of_loss": max((abs(a / b - 1) for a, b in pairs), default=None),
        "tokens_per_second": {name: result.get("tokens_per_second") for name, result in results.items()},
        "reserved_gib": {name: round(r["reserved"] / 2**30, 3) for name, r in results.items() if "reserved" in r},
    }


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        run(float(sys.argv[2]), sys.argv[3:])
    else:
        main()
