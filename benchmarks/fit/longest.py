"""The longest rows that a 7B model trains on within an A10G's memory, in bfloat16 and on a base in NF4.

    python benchmarks/fit/longest.py --model DIR --out benchmarks/fit/longest.json

DIR holds a checkpoint of DeepSeek-LLM 7B's shape, whose number of positions is raised in a copy of its configuration.
LoRA r = 4 on all linear layers, one row to a step, two steps, 21.8 GiB of allocator (an A10G's 22.30 GiB less its CUDA
context). The strategies are those that `[memory] fit = "a10g"` may take with `allow = ["offload-checkpoints",
"host-embeddings"]`, for the second run `"nf4"` too; each row holds what was forecast for the card it ran on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from measure import Json, circumstances

from runs import measure_all, recipe, rows, write_model

GIB = 2**30
SAVING: list[Json] = [
    {"use": "expandable-segments"},
    {"use": "fused-rms-norm"},
    {"use": "fused-lora"},
    {"use": "chunked-loss", "tokens": 128},
    {"use": "gradient-checkpointing"},
    {"use": "offload-checkpoints"},
    {"use": "host-embeddings"},
    {"use": "tiled-mlp"},
]
CASES: dict[str, tuple[list[Json], int]] = {
    "bfloat16": (SAVING, 81920),
    "NF4": ([{"use": "nf4"}, *SAVING], 131072),
}


def main() -> None:
    """Forecast and measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--gib", type=float, default=21.8)
    parser.add_argument("--forecast-only", action="store_true", help="which needs no card")
    parser.add_argument("--only", default="", help="one of the two cases")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        model = write_model(home / "model")
        for weights in arguments.model.glob("*safetensors*"):
            (model / weights.name).symlink_to(weights.resolve())
        recipes = {
            f"{name}, {length} tokens": recipe(model, strategies, length=length, steps=2, loader="hf")
            for name, (strategies, length) in CASES.items()
            if name.startswith(arguments.only)
        }
        found = {name: {"forecast": forecast_of(table, home)} for name, table in recipes.items()}
        if not arguments.forecast_only:
            for name, figures in measure_all(recipes, home, arguments.gib, at_once=1):
                found[name]["measured"] = figures
                print(name, json.dumps(figures), flush=True)
    command = "python benchmarks/fit/longest.py --model DIR --out FILE"
    whole = {**circumstances(arguments.gib, command), "runs": found}
    arguments.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    for name, case in found.items():
        sizes = [f"{key} {value['reserved'] / GIB:.3f} GiB" for key, value in case.items() if "reserved" in value]
        print(f"{name}: {', '.join(sizes)} {case.get('measured', {}).get('failed', '')}")


def forecast_of(table: Json, home: Path) -> Json:
    """What a run takes of an A10G, by forecast; sizes are bytes."""
    import tomli_w

    from fitune.memory.cards.cards import find_card
    from fitune.memory.forecast import forecast
    from fitune.memory.shapes import of_recipe
    from fitune.plugin.registry import Registry
    from fitune.recipe.reader import read_recipe

    (home / "data.jsonl").write_text(json.dumps(rows(8, 1)[0]) + "\n")
    sourced = {**table["data"], "source": [{"use": "jsonl", "path": "data.jsonl"}]}
    path = home / "recipe.toml"
    path.write_text(tomli_w.dumps({**table, "data": sourced}), encoding="utf-8")
    read = read_recipe(path, Registry.open(third_party=False))
    found = forecast(read, of_recipe(read), find_card("a10g"))
    return {
        "allocated": found.allocated,
        "reserved": found.reserved,
        "needed": found.needed,
        "margin": found.margin,
        "passes": found.passes,
    }


if __name__ == "__main__":
    main()
