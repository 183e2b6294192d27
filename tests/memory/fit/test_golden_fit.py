"""What a fit chooses for five models on eight cards, against `golden/fit.json`.

The values are forecasts: they were obtained on a CPU by `python tests/memory/fit/test_golden_fit.py --write`, with
the releases that the file names, and are compared with those alone. A few are checked at every run; with FT_GOLDEN=all
all are, which takes some ten minutes.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from fitune.errors import RunError
from fitune.memory.cards.cards import Card, find_card
from fitune.memory.fit import tracing
from fitune.memory.fit.resolve import fit
from fitune.plugin.options import toml_text
from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.paths import TESTS
from support.traces import SharedTraces, shapes

GOLDEN = TESTS / "golden" / "fit.json"
MIB = 2**20
RELEASES = {name: version(name) for name in ("torch", "transformers", "peft")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model by its configuration, as its owners publish it, and how it is trained."""

    config: dict[str, Any]
    length: int
    micro_batch: int = 1
    allow: tuple[str, ...] = ()
    own: str = '{use = "chunked-loss"}'
    """Strategies that the recipe names itself: what is named is not searched."""


def _llama(hidden: int, intermediate: int, layers: int, heads: int, groups: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    }


MODELS = {
    "deepseek-7b": Model(
        config={"model_type": "llama", **_llama(4096, 11008, 30, 32, 32, 102400)}, length=2048, own=""
    ),
    "llama-3-8b": Model(
        config={"model_type": "llama", **_llama(4096, 14336, 32, 32, 8, 128256)}, length=4096, allow=("nf4",)
    ),
    "qwen2.5-1.5b": Model(
        config={"model_type": "qwen2", **_llama(1536, 8960, 28, 12, 2, 151936), "tie_word_embeddings": True},
        length=4096,
        micro_batch=4,
    ),
    "gemma-2-2b": Model(
        config={
            "model_type": "gemma2",
            **_llama(2304, 9216, 26, 8, 4, 256000),
            "tie_word_embeddings": True,
            "head_dim": 256,
            "sliding_window": 4096,
        },
        length=4096,
        micro_batch=2,
    ),
    "phi-3-mini": Model(
        config={"model_type": "phi3", **_llama(3072, 8192, 32, 32, 32, 32064), "pad_token_id": 0},
        length=32768,
        allow=("offload-checkpoints",),
    ),
}
CARDS = ("A10G", "L4", "T4", "A100-40GB", "H100", "RTX 4090", "V100", "L40S")
USUALLY = (("deepseek-7b", "A10G"), ("llama-3-8b", "T4"), ("qwen2.5-1.5b", "L4"), ("phi-3-mini", "RTX 4090"))
"""What is checked at every run."""

RECIPE = """\
name = "golden"

[model]
use = "hf"
path = "model"
dtype = "{dtype}"

[adapter]
use = "lora"
r = 8
targets = "all-linear"

[memory]
fit = "{card}"
allow = {allow}
strategy = [{own}]

[[data.source]]
use = "jsonl"
path = "data.jsonl"

[[data.stage]]
use = "chat"

[train]
length = {length}
micro_batch = {rows}
steps = 10
"""


def recipe_of(directory: Path, name: str, card: Card) -> Recipe:
    """The recipe of one case, without weights and data."""
    model = MODELS[name]
    (directory / "model").mkdir(parents=True, exist_ok=True)
    (directory / "model" / "config.json").write_text(json.dumps(model.config), encoding="utf-8")
    (directory / "data.jsonl").write_text("{}\n", encoding="utf-8")
    text = RECIPE.format(
        dtype="bfloat16" if "bfloat16" in card.matmul else "float16",
        card=card.name,
        allow=json.dumps(list(model.allow)),
        own=model.own,
        length=model.length,
        rows=model.micro_batch,
    )
    (directory / "recipe.toml").write_text(text, encoding="utf-8")
    return read_recipe(directory / "recipe.toml", open_registry(), ())


def found(directory: Path, name: str, card: Card) -> dict[str, Any]:
    """What the fit chooses, or by how much nothing fits."""
    recipe = recipe_of(directory, name, card)
    try:
        fitted = fit(recipe, open_registry(), shapes, card)
    except RunError as error:
        return {"misses_gib": [float(size) for size in re.findall(r"nearest misses ([\d.]+) GiB", error.message)]}
    return {
        "strategies": [toml_text(use.table()) for use in fitted.recipe.strategies],
        "allocated_mib": round(fitted.forecast.allocated / MIB),
        "reserved_mib": round(fitted.forecast.reserved / MIB),
    }


@pytest.mark.parametrize(
    ("name", "card"),
    [(name, card) for name in MODELS for card in CARDS] if os.environ.get("FT_GOLDEN") == "all" else USUALLY,
)
def test_what_is_chosen(name: str, card: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if golden["releases"] != RELEASES:
        pytest.skip(f"the golden values are of {golden['releases']}")
    assert found(tmp_path, name, find_card(card)) == golden["chosen"][name][card]


def test_every_model_is_there_for_every_card() -> None:
    """And what is chosen differs: else the values would show nothing."""
    chosen = json.loads(GOLDEN.read_text(encoding="utf-8"))["chosen"]
    assert {name: tuple(by_card) for name, by_card in chosen.items()} == dict.fromkeys(MODELS, CARDS)
    for name, by_card in chosen.items():
        assert len({json.dumps(one.get("strategies")) for one in by_card.values()}) >= 3, name


def test_more_memory_of_the_same_kind_is_never_slower() -> None:
    """L4, RTX 4090 and L40S are of one capability, so their traces are the same: layers are checkpointed for room."""
    chosen = json.loads(GOLDEN.read_text(encoding="utf-8"))["chosen"]
    for name, by_card in chosen.items():
        small, large = (by_card[card] for card in ("L4", "L40S"))
        if "strategies" in small:
            assert _checkpointed(large) <= _checkpointed(small), name


def _checkpointed(one: dict[str, Any]) -> float:
    """Layers; a large number where it is all."""
    for table in one["strategies"]:
        if '"gradient-checkpointing"' in table:
            return float(table.split("layers = ")[1].split(",")[0].rstrip(" }")) if "layers = " in table else 1e3
    return 0.0


def write(names: list[str]) -> None:
    """Write the golden values, of these models or of all."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(tracing, "trace", SharedTraces())
        for name in names or MODELS:
            values: dict[str, Any] = {}
            for card in sorted(CARDS, key=lambda card: find_card(card).capability):
                values[card] = found(Path(directory), name, find_card(card))
                print(name, card, json.dumps(values[card]), flush=True)
            before = json.loads(GOLDEN.read_text(encoding="utf-8"))["chosen"] if GOLDEN.exists() else {}
            chosen = {**before, name: {card: values[card] for card in CARDS}}
            golden = {"releases": RELEASES, "chosen": {name: chosen[name] for name in MODELS if name in chosen}}
            GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--write" not in sys.argv:
        sys.exit("give --write, and names of models if it is not for all")
    write([name for name in sys.argv[1:] if name != "--write"])
