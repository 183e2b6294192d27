"""Whether the fast path, also on a base in 8 bits, learns what plain layers and plain peft learn: on a card.

    python benchmarks/quality.py --model DIR --data gsm8k/train.jsonl --out benchmarks/quality.json   (3 to 5 minutes)

A small model (SmolLM2-135M, or any other of `fast-layers`' families) learns grade-school sums (GSM8K) by LoRA on all
linear layers, in bfloat16, from three seeds each: through `fitune.run` with plain layers, with the fast path, and with
the fast path and `fp8`; and by transformers and peft in a loop of this file's own, on the same rows in the same order.
A seed gives the adapter's first weights and the order of rows. Kinds run beside each other, seeds behind each other;
what is done is written as it is done, and not made again by a later call with the same --work.

Two kinds are "within the noise" where the means of their held-out losses differ by less than three times what means of
so many seeds scatter by.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "fit"))
from measure import circumstances
from quality_runs import HELD_OUT, SEEDS, Json, losses_of, recipe, write_data

if TYPE_CHECKING:
    from fitune import Batch
    from fitune.plugin.recipe import Recipe

FAST = ("fast-layers", "chunked-loss", "fused-rms-norm", "fused-lora", "cuda-graphs")
KINDS: dict[str, tuple[str, ...]] = {"peft": (), "plain": (), "fast": FAST, "fp8": ("fp8", *FAST)}
"""By name, the memory strategies of each; "peft" is this file's own loop."""

PAIRS = (("plain", "peft"), ("fast", "plain"), ("fast", "peft"), ("fp8", "fast"), ("fp8", "plain"))
"""What is compared: the second is what the first should learn."""

COMMAND = "python benchmarks/quality.py --model DIR --data gsm8k/train.jsonl"


def main() -> None:
    """Train kinds in processes of their own, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint with a tokenizer and a chat template")
    parser.add_argument("--data", type=Path, help="GSM8K's train.jsonl: question and answer")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--only", action="append", choices=list(KINDS), help="kinds; may be repeated")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where runs are kept")
    parser.add_argument("--kind", choices=list(KINDS), help="train this one here: what the others are started with")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.kind:
        for seed in SEEDS:
            train(arguments, arguments.kind, seed)
            write(arguments)
        return
    if arguments.data is None:
        parser.error("--data is needed")
    write_data(arguments.work, arguments.data)
    write(arguments)  # what is known beforehand can be written, or nothing is trained
    kinds = arguments.only or list(KINDS)
    started = {kind: subprocess.Popen([sys.executable, *sys.argv, "--kind", kind]) for kind in kinds}
    failed = [kind for kind, process in started.items() if process.wait()]
    print(json.dumps(write(arguments, failed)["summary"], indent=1))
    if failed:
        raise SystemExit(f"these failed: {', '.join(failed)}")


def write(arguments: argparse.Namespace, failed: Sequence[str] = ()) -> Json:
    """Write what has become of all runs so far, of which each kind's process makes its own; gives what is written."""
    with (arguments.work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = [result(arguments, kind, seed) for kind in KINDS for seed in SEEDS]
        runs = [run for run in found if run is not None]
        told: Json = {**circumstances(0.0, COMMAND), "summary": summary(runs), "failed": list(failed)}
        del told["allocator_limit_gib"]
        rows = len((arguments.work / "train.jsonl").read_text(encoding="utf-8").splitlines())
        told |= {"model": arguments.model.resolve().name, "training_rows": rows, "held_out_rows": HELD_OUT}
        told |= {"steps": arguments.steps, "rows_of_a_step": arguments.rows, "runs": runs}
        part = arguments.out.with_suffix(".part")
        part.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        part.replace(arguments.out)
    return told


def place(arguments: argparse.Namespace, kind: str, seed: int) -> Path:
    """The directory of a run."""
    return Path(arguments.work) / f"{arguments.model.resolve().name}-{arguments.rows}-{kind}-{seed}"


def result(arguments: argparse.Namespace, kind: str, seed: int) -> Json | None:
    """The losses of a run, and which attention ran; None for one that is not done."""
    run = place(arguments, kind, seed)
    losses = losses_of(run, arguments.steps)
    if losses is None:
        return None
    record = run / "run.json"
    ran = json.loads(record.read_text(encoding="utf-8"))["attention"] if record.exists() else []
    return {"kind": kind, "seed": seed, **losses, "attention": ran}


def train(arguments: argparse.Namespace, kind: str, seed: int) -> None:
    """Make a run, unless it is there."""
    import fitune
    from fitune.plugin.registry import Registry
    from fitune.recipe.reader import read_recipe

    run = place(arguments, kind, seed)
    if losses_of(run, arguments.steps) is not None:
        return
    model = f'use = "hf"\npath = "{arguments.model.resolve().as_posix()}"'
    file = Path(arguments.work) / f"{run.name}.toml"
    text = recipe(model, KINDS[kind], seed=seed, steps=arguments.steps, rows=arguments.rows)
    file.write_text(text, encoding="utf-8")
    if kind == "peft":
        by_peft(read_recipe(file, Registry.open(third_party=False)), run)
    else:
        fitune.run(file, run, resume=run.exists())


# ---------------------------------------------------------------------------------------------------------- plain peft
def by_peft(read: Recipe, run: Path) -> None:
    """A loop of transformers and peft, as their documentation writes it: weights in bfloat16, adapters in float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, get_scheduler, set_seed

    from fitune.compose.loss import plain_loss
    from fitune.data.prepare import batch_maker, batches
    from fitune.data.run_data import gather
    from fitune.data.sampler import windows

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    told, settings, data = read.adapter.options, read.train, gather(read)
    set_seed(read.general.seed)
    base = AutoModelForCausalLM.from_pretrained(str(read.model.options.path), dtype=torch.bfloat16)
    lora = LoraConfig(r=told.r, lora_alpha=told.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    placed: Any = base
    model: Any = get_peft_model(placed.to(device), lora)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.steps or 1
    scheduler = get_scheduler(
        settings.schedule, optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=steps
    )
    make, examples = batch_maker(read.stages, data.context), list(data.data.rows)
    picked = windows(len(examples), settings.micro_batch, read.general.seed)
    run.mkdir(exist_ok=True)

    def loss_of(batch: Batch) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return plain_loss(model, batch.to(device))

    def held_out() -> float:
        rows = list(data.held_out.rows) if data.held_out is not None else []
        each = [rows[at : at + 16] for at in range(0, len(rows), 16)]
        with torch.no_grad():
            found = [(float(loss_of(batch)), batch.targets) for batch in make(iter(each))]
        return float(sum(loss for loss, _ in found) / sum(targets for _, targets in found))

    with (run / "metrics.jsonl").open("w", encoding="utf-8") as lines:
        for step in range(1, steps + 1):
            model.train()
            batch = next(iter(batches(examples, [next(picked)[1]], make)))
            loss = loss_of(batch) / batch.targets
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            lines.write(json.dumps({"event": "step", "step": step, "loss": loss.item()}) + "\n")
            if step % (read.evaluation.every or steps) == 0 or step == steps:
                model.eval()
                lines.write(json.dumps({"event": "evaluation", "step": step, "loss": held_out()}) + "\n")


# ------------------------------------------------------------------------------------------------------------- compare
def summary(runs: Sequence[Json]) -> Json:
    """Means of each kind, and of each pair whether they differ by more than seeds make them."""
    last: Mapping[str, list[float]] = {
        kind: [list(run["held_out"].values())[-1] for run in runs if run["kind"] == kind] for kind in KINDS
    }
    whole = {kind: values for kind, values in last.items() if len(values) == len(SEEDS)}
    found: Json = {"held_out_at_the_end": {kind: round(statistics.mean(values), 5) for kind, values in whole.items()}}
    for one, other in PAIRS:
        if one in whole and other in whole:
            apart = statistics.mean(whole[one]) - statistics.mean(whole[other])
            noise = sum(statistics.variance(whole[kind]) / len(SEEDS) for kind in (one, other)) ** 0.5
            found[f"{one} - {other}"] = {
                "difference": round(apart, 5),
                "scatter_of_the_difference": round(noise, 5),
                "within_the_noise": abs(apart) < 3 * noise,
                "apart_at_most": round(_apart(runs, one, other), 4),
            }
    return found


def _apart(runs: Sequence[Json], one: str, other: str) -> float:
    """How far the curves of training loss, means of ten steps and of all seeds, are from each other at most."""
    curves = []
    for kind in (one, other):
        each = [run["losses"] for run in runs if run["kind"] == kind]
        tens = range(0, min(map(len, each)), 10)
        curves.append([statistics.mean(loss for losses in each for loss in losses[at : at + 10]) for at in tens])
    return float(max(abs(a - b) for a, b in zip(*curves, strict=True)))


if __name__ == "__main__":
    main()
