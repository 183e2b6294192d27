"""`ft merge` refuses a model that is not what was trained, and what is in its way."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from fitune import ModelError, RunError
from fitune.testing import open_registry
from fitune.trained.merge import Merge, merge
from fitune.trained.open import Trained, find, open_base, with_trained
from support.after_runs import finished, ft, refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("merge"), "eval.exact_match=false")


def _found(run: Path) -> Trained:
    return find(run, open_registry())


def _wrong_scaling(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] *= 1.5


def _missing_layer(model: Any) -> None:
    module = model.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
    module.lora_B["default"].weight.data.zero_()


def _wrong_base(model: Any) -> None:
    module = model.get_submodule("base_model.model.model.layers.0.self_attn.v_proj.base_layer")
    module.weight.data = module.weight.data.roll(1, 0)


def _no_numbers(model: Any) -> None:
    module = model.get_submodule("base_model.model.model.layers.0.self_attn.v_proj.base_layer")
    module.weight.data[0, 0] = torch.inf


@pytest.mark.parametrize("wrong", [_wrong_scaling, _missing_layer, _wrong_base])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_merge_is_refused(run: Path, tmp_path: Path, wrong: Any, dtype: str) -> None:
    trained, to = _found(run), tmp_path / "merged"
    use = trained.recipe.adapter
    right = use.record.merge
    assert right is not None

    def spoiled(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
        wrong(model)
        return right(model, dtype)

    record = replace(use.record, merge=spoiled)
    trained = replace(trained, recipe=replace(trained.recipe, adapter=replace(use, record=record)))
    with pytest.raises(RunError) as raised:
        merge(trained, Merge(to=to, dtype=getattr(torch, dtype)))
    assert raised.value.message.startswith("the merged model is not what was trained: ")
    assert f"All figures: {run / 'merge-refused.json'}. Nothing is left at {to}" in raised.value.message
    figures = json.loads((run / "merge-refused.json").read_text(encoding="utf-8"))
    assert figures["wrong"] in raised.value.message
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"] or not any("merged" in p.name for p in tmp_path.iterdir())


def test_an_adapter_without_merge_is_named(run: Path, tmp_path: Path) -> None:
    trained = _found(run)
    use = trained.recipe.adapter
    record = replace(use.record, merge=None)
    trained = replace(trained, recipe=replace(trained.recipe, adapter=replace(use, record=record)))
    with pytest.raises(ModelError, match=r'the adapter "lora" cannot be merged: its plugin gives no "merge"'):
        merge(trained, Merge(to=tmp_path / "merged", dtype=torch.float32))


def test_a_limit_of_ones_own(run: Path, tmp_path: Path) -> None:
    said = refused("merge", run, "--to", tmp_path / "merged", "--limit", 1e-9)
    assert "over 1e-09" in said
    assert not (tmp_path / "merged").exists()
    ft("merge", run, "--to", tmp_path / "merged", "--limit", 1e-9, "--dtype", "float32", "--limit", 0.5)


def test_what_is_there_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert "is there already, and not empty" in refused("merge", run, "--to", tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["file"]
    assert "cannot be made" in refused("merge", run, "--to", tmp_path / "mine" / "file" / "under")


def test_numbers_that_are_none_are_refused(run: Path, tmp_path: Path) -> None:
    trained = _found(run)
    model: Any = with_trained(open_base(trained)).model
    _no_numbers(model)
    with pytest.raises(ModelError, match=r"the adapter of .*v_proj cannot be merged: NaNs detected"):
        trained.recipe.adapter.record.merge(model, torch.float32)  # type: ignore[misc]


def test_what_float16_cannot_hold_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent, tmp_path / "all")
    file = tmp_path / "all" / "recipe" / "model" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] = 1e6
    save_file(weights, file, metadata={"format": "pt"})
    recipe = tmp_path / "all" / "run" / "recipe.toml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace(str(run.parent), str(tmp_path / "all")), encoding="utf-8")
    identity = recipe.parent / "identity.json"  # as if that were what was trained on
    identity.write_text(json.dumps({**json.loads(identity.read_text(encoding="utf-8")), "base": None}))
    said = refused("merge", tmp_path / "all" / "run", "--to", tmp_path / "merged", "--dtype", "float16")
    assert said == (
        "the merged weight model.norm.weight holds what is no number in float16. Merge to bfloat16 or float32"
    )
    assert not (tmp_path / "merged").exists()
