"""A run on a checkpoint in GPTQ or AWQ is merged into the model that merging what is left of its weights gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fitune.recipe.reader import read_recipe
from fitune.runs.layout import IDENTITY
from fitune.testing import open_registry
from fitune.train.run import run
from support.after_runs import ft, refused
from support.packers import dequantize_checkpoint, pack_checkpoint
from support.quantized import WEIGHTS, held_out, write

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gptq": ("gptq", {}),
    "gptq of 8 bits, dealt out, not symmetric": ("gptq", {"bits": 8, "shuffled": True, "symmetric": False}),
    "gptq, version 2": ("gptq", {"version": 2, "symmetric": False, "lowest": 0}),
    "awq": ("awq", {}),
}


@pytest.fixture(scope="module", params=KINDS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The kind of a checkpoint, and a run whose base it is: trained on its weights, dequantised by hand, which
    need no package.

    Beside the run are its merged model, "by_hand", and both models.
    """
    directory = tmp_path_factory.mktemp("packed")
    method, how = KINDS[request.param]
    recipe = write(directory / "recipe", "plain")
    model = recipe.parent / "model"
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copytree(model, directory / "packed")
    pack_checkpoint(directory / "packed", method, **how)
    dequantize_checkpoint(model, method, **how)
    out, registry = directory / "run", open_registry()
    out.mkdir()
    run(read_recipe(recipe, registry, [held_out(recipe)]), registry, out)
    ft("merge", out, "--to", directory / "by_hand", "--dtype", "float32")
    shutil.rmtree(model)
    shutil.copytree(directory / "packed", model)
    identity = json.loads((out / IDENTITY).read_text(encoding="utf-8"))
    del identity["base"]  # as in runs that were made before it was kept
    (out / IDENTITY).write_text(json.dumps(identity), encoding="utf-8")
    return request.param, out


def test_the_merged_model_is_that_of_the_weights_dequantised_by_hand(
    finished: tuple[str, Path], tmp_path: Path
) -> None:
    _, out = finished
    said, _ = ft("merge", out, "--to", tmp_path / "merged", "--dtype", "float32")
    config = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    one, other = (load_file(place / WEIGHTS) for place in (tmp_path / "merged", out.parent / "by_hand"))
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name
    figures, before = (
        json.loads((place / "parity.json").read_text(encoding="utf-8"))
        for place in (tmp_path / "merged", out.parent / "by_hand")
    )
    assert figures["loss_merged"] == before["loss_merged"]
    assert figures["wrong"] is None
    assert abs(figures["loss_base"] - figures["loss_merged"]) > 0.05
    assert "not run  layers of" in said
    assert "is not installed: their weights, dequantised, are what is compared with" in said
    assert before["unrun"] == ""


def test_the_other_verbs_say_which_package_runs_its_layers(finished: tuple[str, Path]) -> None:
    kind, out = finished
    said = refused("generate", out, "--prompt", "Count.")
    name, package = ("AWQ", "gptqmodel") if kind == "awq" else ("GPTQ", "optimum")
    assert f"quantised by {name}, and the package {package} is not installed. Install it: pip install {package}" in said
