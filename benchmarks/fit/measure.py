"""One run of a recipe on a card of limited memory, measured: what the other benchmarks here start, a process a run.

    python benchmarks/fit/measure.py --gib 21.8 recipe.toml result.json

The run is the product's own, `compose` and `train`, without what `ft run` does around them. Weights come from the
loader that the recipe names; `shape` (benchmarks/memory/forecast_rows.py) makes random ones on the card, on whose
values neither memory nor speed depends. Steps are timed as `StepReport.seconds`; the first two are left out of the
median.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import importlib.metadata
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MEMORY = Path(__file__).parent.parent / "memory"
sys.path.insert(0, str(MEMORY))
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # a file there, where transformers finds a package

Json = dict[str, Any]
WARM_UP = 2
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "triton")


def main() -> None:
    """Make one run and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--gib", type=float, required=True, help="what torch's allocator may take")
    parser.add_argument("--lock", type=Path, help="a file that is locked while the card is timed")
    arguments = parser.parse_args()
    try:
        found = measured(arguments.recipe, arguments.gib, arguments.lock)
    except BaseException as error:
        said = next((line for line in str(error).splitlines() if "Tried to allocate" in line), str(error))
        found = {"failed": f"{type(error).__name__}: {said.strip()[:400]}"}
    arguments.result.write_text(json.dumps(found), encoding="utf-8")


def measured(path: Path, gib: float, lock: Path | None) -> Json:
    """The figures of a run; sizes are bytes."""
    import forecast_rows
    import torch

    from fitune.compose.parts import compose
    from fitune.plugin.events import StepReport
    from fitune.plugin.registry import Registry
    from fitune.recipe.reader import read_recipe
    from fitune.train.loop import train

    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    registry = Registry.open(third_party=False)
    registry.register(forecast_rows, "shape")
    parts = compose(read_recipe(path, registry), path.parent / "run")
    with (lock or path).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        steps = [report for report in train(parts) if isinstance(report, StepReport)]
    seconds = statistics.median(step.seconds for step in steps[min(WARM_UP, len(steps) - 1) :])
    return {
        "steps": len(steps),
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "retries": torch.cuda.memory_stats()["num_alloc_retries"],
        "tokens": steps[-1].tokens,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(steps[-1].tokens / seconds),
        "loss": [round(step.loss, 5) for step in steps],
        "card": torch.cuda.get_device_name(),
        "outside": outside(),
    }


def outside() -> int:
    """Bytes of the card that are in use beside torch's allocator, other processes' among them."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return int(total - free - torch.cuda.memory_reserved())


def started(recipe: Json, rows: list[Json], result: Path, gib: float, lock: Path) -> subprocess.Popen[bytes]:
    """Start a run of this recipe on these rows in a process of its own."""
    import tomli_w

    directory = Path(tempfile.mkdtemp(prefix="run-", dir=result.parent))
    recipe = {**recipe, "data": {**recipe["data"], "source": [{"use": "jsonl", "path": "data.jsonl"}]}}
    (directory / "recipe.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
    (directory / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    lock.touch()
    command = [sys.executable, __file__, "--gib", str(gib), "--lock", str(lock)]
    return subprocess.Popen([*command, str(directory / "recipe.toml"), str(result)])


def circumstances(gib: float, command: str) -> Json:
    """Card, versions, date and command."""
    import torch

    return {
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "allocator_limit_gib": gib,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)},
        "date": datetime.date.today().isoformat(),
        "command": command,
    }


if __name__ == "__main__":
    main()
