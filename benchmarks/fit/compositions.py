"""Every composition that a fit considered: forecast beside measured, in memory and in time.

    python benchmarks/fit/compositions.py --plan plan.json                      (needs no card)
    python benchmarks/fit/compositions.py --measure plan.json --out benchmarks/fit/compositions.json

Two runs of DeepSeek-LLM 7B's shape are fitted to an A10G: the founding case (LoRA r = 8 on q and v, 1 x 2048), and LoRA
r = 4 on all linear layers at 1 x 4096. What the search looked at closely is forecast in full depth for the card that it
is measured on; the chosen one and the usual recipe (all layers checkpointed) are measured within 21.8 GiB of allocator,
the others with room to spare, so that those that do not fit show by how much. The random weights are made on the card.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import MEMORY, Json, circumstances

from runs import measure_all, recipe, write_model

sys.path.insert(0, str(MEMORY))

GIB = 2**30
LIMIT, ROOM = 21.8, 45.0
"""GiB of allocator: an A10G's less its context, and more than any composition needs."""
STEPS = 8
USUAL: list[Json] = [{"use": "gradient-checkpointing"}, {"use": "chunked-loss"}, {"use": "expandable-segments"}]
"""What is done about memory where nothing is fitted."""
FUSED: list[Json] = [{"use": "fused-rms-norm"}, {"use": "fused-lora"}]
CASES: dict[str, Json] = {
    "founding: r=8 on q and v, 1 x 2048": {"length": 2048, "targets": ["q_proj", "v_proj"], "r": 8, "alpha": 16},
    "r=4 on all linear layers, 1 x 4096": {"length": 4096, "targets": "all-linear", "r": 4, "alpha": 8},
}


def main() -> None:
    """Plan, or measure what was planned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, help="write here what is to be measured")
    parser.add_argument("--card", default="h200", help="by name, the card that it is measured on")
    parser.add_argument("--measure", type=Path, help="measure what is planned here")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--at-once", type=int, default=2, help="runs that get ready at once")
    arguments = parser.parse_args()
    if arguments.plan:
        with tempfile.TemporaryDirectory() as home:
            planned = {name: plan(case, Path(home), arguments.card) for name, case in CASES.items()}
        arguments.plan.write_text(json.dumps(planned, indent=1) + "\n", encoding="utf-8")
    if arguments.measure:
        planned = json.loads(arguments.measure.read_text(encoding="utf-8"))
        found = {name: {row: {"forecast": told} for row, told in rows.items()} for name, rows in planned.items()}
        command = "python benchmarks/fit/compositions.py --plan plan.json; ... --measure plan.json --out FILE"
        for name, rows in found.items():
            for _ in measured(rows, CASES[name], arguments.at_once):
                whole = {**circumstances(LIMIT, command), "cases": found}  # after each: a run that is cut short counts
                arguments.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        for name, case in found.items():
            print_table(name, case)


def plan(case: Json, home: Path, card: str) -> Json:
    """What the search considers, and what is forecast of each; the first is the chosen one."""
    import forecast_rows
    import tomli_w

    from fitune.memory.cards.cards import find_card
    from fitune.memory.fit.choices import composed
    from fitune.memory.fit.resolve import fit
    from fitune.memory.forecast import forecast
    from fitune.memory.shapes import of_recipe
    from fitune.plugin.registry import Registry
    from fitune.recipe.reader import read_recipe

    registry = Registry.open(third_party=False)
    registry.register(forecast_rows, "shape")
    table = recipe(write_model(home / "model"), [], steps=STEPS, **case)
    (home / "data.jsonl").write_text('{"text": "a"}\n')
    table["data"]["source"] = [{"use": "jsonl", "path": "data.jsonl"}]
    path = home / "recipe.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    read = read_recipe(path, registry)
    found = fit(read, registry, of_recipe, find_card("a10g"))
    asked = [("chosen", found.chosen), *((f"considered {at}", one) for at, one in enumerate(found.others, start=1))]
    rows: dict[str, Json] = {
        name: {"strategies": [dict(t) for t in one.tables], "fits": one.fits, "seconds_on_a10g": one.seconds}
        for name, one in asked
    }
    rows["all layers checkpointed"] = {"strategies": USUAL}
    rows["all layers checkpointed, fused"] = {"strategies": [*FUSED, *USUAL]}
    for row in rows.values():
        made = composed(read, registry, row["strategies"], 1, None)
        told = forecast(made, of_recipe(made), find_card(card))
        work = told.trace.work.seconds(find_card(card), traced=1, accumulation=1)
        row |= {"allocated": told.allocated, "reserved": told.reserved, "seconds": round(work.step, 4)}
    return rows


def measured(rows: dict[str, Json], case: Json, at_once: int) -> Iterator[str]:
    """Add to the planned rows what is measured, and name each."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        model = write_model(home / "model")
        for limit, names in ((LIMIT, within(rows)), (ROOM, [name for name in rows if name not in within(rows)])):
            runs = {name: recipe(model, rows[name]["forecast"]["strategies"], steps=STEPS, **case) for name in names}
            for name, found in measure_all(runs, home / str(limit), limit, at_once=at_once):
                rows[name] |= {"measured": found, "limit_gib": limit}
                print(name, {key: found.get(key) for key in ("failed", "tokens_per_second", "reserved")}, flush=True)
                yield name


def within(rows: dict[str, Json]) -> list[str]:
    """Those that are measured within an A10G's memory."""
    return [name for name in rows if name == "chosen" or name.startswith("all layers")]


def print_table(name: str, rows: dict[str, Any]) -> None:
    """What was found, a line each; last what the chosen one gains."""
    print(name)
    for row, found in rows.items():
        told, real = found["forecast"], found.get("measured", {"failed": "not measured"})
        if "failed" in real:
            print(f"  {row}: {real['failed']}")
            continue
        errors = [100 * (told[key] / real[key] - 1) for key in ("allocated", "reserved", "seconds")]
        sizes = f"{real['allocated'] / GIB:7.3f} {errors[0]:+6.2f} %  {real['reserved'] / GIB:7.3f} {errors[1]:+6.2f} %"
        print(f"  {sizes}  {real['tokens_per_second']:6d} tok/s {errors[2]:+6.1f} %  {row}")
    speed = {row: found.get("measured", {}).get("tokens_per_second", 0) for row, found in rows.items()}
    for usual in ("all layers checkpointed", "all layers checkpointed, fused"):
        if speed.get(usual):
            print(f"  chosen / {usual}: {speed['chosen'] / speed[usual]:.3f}")


if __name__ == "__main__":
    main()
