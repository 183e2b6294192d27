"""A drill: a run on a shared card loses 6 GiB of it to another process in its midst, runs out of memory, and goes on.

    python benchmarks/fit/drill.py --model DIR --data gsm8k.jsonl --out benchmarks/fit/drill.json

DIR holds DeepSeek-LLM 7B or a checkpoint of its shape, the data are problems and answers. A process holds all of the
card but 28.3 GiB: a 22.3 GiB card, and 6 GiB that nobody needs yet. The run, without gradient checkpointing, meets
short rows first and takes little. After its fourth step a second process takes the 6 GiB; in its eighth it meets the
first row of 2560 tokens, which does not fit any more. Another run of the same recipe, for which nobody takes the
6 GiB, gives the loss curve that the first must have.

The rehearsal is off: it would reserve, before the first step, what the long row needs, and the second process could
not take it. That is what it is for. `--dry` goes through all of it on a CPU, with a tiny model and no memory held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drill_processes import await_file, touch
from measure import circumstances

BENCHMARKS = Path(__file__).parent.parent
RECIPE = BENCHMARKS.parent / "recipes" / "deepseek7b_g5.toml"
GIB = 2**30
CARD, TAKEN = 22.3, 6.0
"""GiB that are left to the run in the end, and that the second process takes."""
STEPS, ACCUMULATION, LENGTH = 12, 4, 2560
LONG = (29, 42)
"""Places, in the order of training, of the long rows: in the eighth and in the eleventh step."""
PROCESSES = Path(__file__).with_name("drill_processes.py")
STRATEGIES = [{"use": "accumulation", "steps": ACCUMULATION}, {"use": "chunked-loss"}, {"use": "expandable-segments"}]
COMMAND = "python benchmarks/fit/drill.py --model DIR --data gsm8k.jsonl --out FILE"
Json = dict[str, Any]


def main() -> None:
    """Make both runs, compare them and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path, help="JSON Lines with question and answer")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry", action="store_true", help="on a CPU, with a tiny model of its own")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = drill(arguments, Path(directory))
    print_table(found)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def drill(arguments: argparse.Namespace, directory: Path) -> Json:
    """Both runs, one after the other, on what is left of the card."""
    recipe = write_tiny(directory) if arguments.dry else RECIPE
    model = directory / "model" if arguments.dry else arguments.model.resolve()
    if not arguments.dry:
        sys.path.insert(0, str(BENCHMARKS))
        from deepseek7b_g5 import make_tokenizer

        make_tokenizer(model, arguments.data)
        write_rows(arguments.data, directory / "data.jsonl")
    settings = directory / "settings.json"
    overrides = [f"model.path={model}", *changes(directory / "data.jsonl", dry=arguments.dry)]
    settings.write_text(json.dumps({"recipe": str(recipe), "overrides": overrides}), encoding="utf-8")
    dry = ["--dry"] if arguments.dry else []
    start = time.perf_counter()
    with held(directory / "second", TAKEN, dry) as second, held(directory / "first", CARD + TAKEN, dry) as first:
        touch(first / "take")  # by now the context of the second is there, so that it takes no more than its 6 GiB
        await_file(first / "taken")
        with_loss = child(directory, "drill", second, dry)
    with held(directory / "again", CARD + TAKEN, dry) as first:
        touch(first / "take")
        await_file(first / "taken")
        undisturbed = child(directory, "undisturbed", None, dry)
    pairs = list(zip(losses(with_loss), losses(undisturbed), strict=True))
    return {
        **{key: value for key, value in circumstances(CARD, COMMAND).items() if key != "allocator_limit_gib"},
        "left_of_the_card_gib": CARD,
        "taken_in_mid_run_gib": TAKEN,
        "seconds_in_all": round(time.perf_counter() - start, 1),
        "recoveries": [line for line in with_loss if line["event"] == "recovery"],
        "loss": losses(with_loss),
        "loss_undisturbed": losses(undisturbed),
        "largest_relative_difference": max(abs(one / other - 1) for one, other in pairs),
        "tokens": [line["tokens"] for line in with_loss if line["event"] == "step"],
        "seconds": [round(line["seconds"], 3) for line in with_loss if line["event"] == "step"],
        "seconds_undisturbed": [round(line["seconds"], 3) for line in undisturbed if line["event"] == "step"],
        "recoveries_undisturbed": sum(line["event"] == "recovery" for line in undisturbed),
    }


def changes(data: Path, *, dry: bool) -> list[str]:
    """What the recipe's run has otherwise."""
    from fitune.plugin.options import toml_text

    return [
        f"data.path={data}",
        "data.stage=[{use='chat'},{use='tokenize'},{use='truncate'}]",
        f"memory.strategy={toml_text([*STRATEGIES, *([{'use': 'short'}] if dry else [])])}",
        "memory.fast=false",
        "memory.rehearse=false",
        "train.warmup_steps=2",
        f"train.steps={STEPS}",
        f"train.length={128 if dry else LENGTH}",
    ]


# ------------------------------------------------------------------------------------------------------------- the data


def write_rows(data: Path, out: Path) -> None:
    """Write conversations that the run meets in this order: problems one by one, and many in one at `LONG`."""
    problems = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    wanted = []
    for place in range(STEPS * ACCUMULATION):
        chosen = problems[place * 40 : place * 40 + 40] if place in LONG else problems[place : place + 1]
        messages = []
        for problem in chosen:
            messages.append({"role": "user", "content": problem["question"]})
            messages.append({"role": "assistant", "content": problem["answer"]})
        wanted.append({"messages": messages})
    write_in_order(wanted, out)


def write_in_order(wanted: list[Json], out: Path) -> None:
    """Write rows so that the run's seed brings them into this order."""
    from fitune.data.sampler import order

    rows: list[Json] = [{} for _ in wanted]
    for place, row in enumerate(order(len(wanted), 42, 0)):
        rows[int(row)] = wanted[place]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tiny(directory: Path) -> Path:
    """A model and data of a few bytes, for a dry run; gives the recipe."""
    from fitune.testing import write_recipe

    path = write_recipe(directory, {"train": {"micro_batch": 1}})
    wanted = []
    for place in range(STEPS * ACCUMULATION):
        question = "?" * (90 if place in LONG else 9 + place % 3)
        turns = [("user", question), ("assistant", str(place))]
        wanted.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    write_in_order(wanted, directory / "data.jsonl")
    return path


# -------------------------------------------------------------------------------------------------------- the processes


@contextlib.contextmanager
def held(directory: Path, gib: float, dry: list[str]) -> Iterator[Path]:
    """A process that is ready to take memory, until the block ends."""
    directory.mkdir()
    process = subprocess.Popen([sys.executable, str(PROCESSES), "--hold", str(directory), "--gib", str(gib), *dry])
    try:
        await_file(directory / "ready")
        yield directory
    finally:
        process.kill()
        process.wait()


def child(directory: Path, name: str, second: Path | None, dry: list[str]) -> list[Json]:
    """Make a run in a process of its own; gives the lines of its `metrics.jsonl`."""
    run = directory / name
    run.mkdir()
    command = [sys.executable, str(PROCESSES), "--run", str(run), *dry]
    done = subprocess.run(
        [*command, *(["--signals", str(second)] if second else [])],
        check=False,
        env={**os.environ, "FT_CACHE": str(directory / "cache")},  # what it shows of a shared card is not to be kept
    )
    if done.returncode:
        sys.exit(f"the run {name} ended with exit code {done.returncode}")
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


# ----------------------------------------------------------------------------------------------------------- the result


def losses(lines: list[Json]) -> list[float]:
    """The loss curve of a run."""
    return [line["loss"] for line in lines if line["event"] == "step"]


def print_table(found: Json) -> None:
    """The short of it."""
    print(f"{'step':>4} {'tokens':>7} {'loss':>9} {'undisturbed':>12} {'difference':>11} {'s':>7} {'s then':>7}")
    curves = (found["tokens"], found["loss"], found["loss_undisturbed"], found["seconds"], found["seconds_undisturbed"])
    for step, (tokens, loss, other, seconds, then) in enumerate(zip(*curves, strict=True), 1):
        off = abs(loss / other - 1)
        print(f"{step:>4} {tokens:>7} {loss:>9.5f} {other:>12.5f} {off:>11.2e} {seconds:>7.2f} {then:>7.2f}")
    for recovery in found["recoveries"]:
        print(f"out of memory after {recovery['step']} steps: {recovery['error'][:100]}")
        print(f"  before  {', '.join(recovery['before'])}")
        print(f"  after   {', '.join(recovery['after'])}")
        print(f"  {recovery['seconds']:.1f} s to go on (measured)")
    print(f"largest relative difference of the losses: {found['largest_relative_difference']:.2e}")
    print(f"{found['card']}, {found['seconds_in_all']} s in all")


if __name__ == "__main__":
    main()
