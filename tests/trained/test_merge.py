"""`ft merge`: the model that is written is the one that was trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fitune import ModelError, RunError
from fitune.checkpoint.manifest import write_manifest
from fitune.testing import open_registry, write_recipe
from fitune.trained.merge import Merge, merge
from fitune.trained.open import Trained, find, open_base, open_run
from support.after_runs import evaluations, finished, ft, without

IDS = torch.arange(1, 60)[None]
TIE = "tie_word_embeddings"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("merge"), "eval.exact_match=false")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nf4 = ["memory.strategy=[{use='nf4'}, {use='gradient-checkpointing'}]", "model.dtype='bfloat16'"]
    return finished(tmp_path_factory.mktemp("nf4"), "eval.exact_match=false", *nf4)


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found.float()


def _plain(directory: Path) -> PreTrainedModel:
    load: Any = AutoModelForCausalLM.from_pretrained
    model: PreTrainedModel = load(directory)
    return model


def _found(run: Path) -> Trained:
    return find(run, open_registry())


def _delta(run: Path, name: str) -> Tensor:
    """What the adapter adds to a weight, in float64: alpha / r times B A."""
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    one, other = (saved[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "BA")
    return 2.0 * one @ other


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_merged_model_says_what_was_trained(run: Path, tmp_path: Path, dtype: str) -> None:
    to = tmp_path / "merged"
    out, _ = ft("merge", run, "--to", to, "--dtype", dtype)
    figures = json.loads((to / "parity.json").read_text(encoding="utf-8"))
    assert figures["wrong"] is None
    assert (figures["rows"], figures["source"], figures["dtype"]) == (4, "held-out data", dtype)
    assert figures["loss_adapter"] == pytest.approx(evaluations(run)[-1]["loss"], rel=1e-5)
    assert figures["loss_base"] == pytest.approx(evaluations(run)[0]["loss"], rel=1e-5)
    assert abs(figures["loss_merged"] - figures["loss_adapter"]) < 0.02 * figures["loss_base"]
    assert figures["effect"] > 0.1
    assert figures["share"] == pytest.approx(1, abs=0.002)
    assert f"of {figures['largest_logit']:.3g}; relative {figures['relative_difference']:.3g}" in out
    assert out.endswith(f"merged {to}\n")
    model = _plain(to)
    assert model.dtype == getattr(torch, dtype)
    expected = _logits(open_run(_found(run)).model)
    torch.testing.assert_close(_logits(model), expected, rtol=0, atol=10 * figures["largest_difference"])
    assert (
        AutoTokenizer.from_pretrained(to).chat_template == AutoTokenizer.from_pretrained(run / "adapter").chat_template
    )


def test_weights_are_rounded_once(tmp_path: Path) -> None:
    """peft's own merge of a bfloat16 model rounds B A first: here every weight is the nearest to the exact sum."""
    run = finished(tmp_path, "model.dtype='bfloat16'", "train.learning_rate=1e-3", "eval.exact_match=false")
    ft("merge", run, "--to", tmp_path / "merged", "--dtype", "bfloat16")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    plain: Any = _plain(tmp_path / "recipe" / "model")
    base = plain.to(torch.bfloat16).state_dict()
    changed = 0
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        exact = base[f"{name}.weight"].double() + _delta(run, name)
        nearest = exact.bfloat16()
        assert (merged[f"{name}.weight"] != nearest).float().mean() < 1e-3  # float32 may tell a tie another way
        changed += int((nearest != base[f"{name}.weight"]).sum())
    assert changed > 100
    untouched = [name for name in base if "proj" not in name]
    assert len(untouched) == 7
    assert all(torch.equal(merged[name], base[name]) for name in untouched)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_nf4_base_is_merged_into_what_is_left_of_it(quantized: Path, tmp_path: Path, dtype: str) -> None:
    ft("merge", quantized, "--to", tmp_path / "merged", "--dtype", dtype)
    config = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    base = open_base(_found(quantized)).model
    name = "model.layers.0.mlp.up_proj"
    layer: Any = base.get_submodule(name)
    assert isinstance(layer, Linear4bit)
    weight: Any = layer.weight
    trained_on = dequantize_4bit(weight.data, weight.quant_state)
    assert trained_on.dtype == torch.bfloat16
    original = _plain(quantized.parent / "recipe" / "model").state_dict()[f"{name}.weight"].double()
    delta = _delta(quantized, name)
    found = merged[f"{name}.weight"].double()
    off = (found - (trained_on.double() + delta)).abs().max()
    assert off <= (1e-6 if dtype == "float32" else 2**-8) * found.abs().max()
    assert (found - (original + delta)).abs().max() > 5 * off
    expected = _logits(open_run(_found(quantized)).model)
    again = _logits(_plain(tmp_path / "merged"))
    torch.testing.assert_close(again, expected, rtol=0, atol=0.03 * float(expected.abs().max()))
    figures = json.loads((tmp_path / "merged" / "parity.json").read_text(encoding="utf-8"))
    assert figures["trained_dtype"] == "bfloat16"
    assert (figures["cast_difference"] is None) == (dtype == "bfloat16")
    assert (figures["cast_difference"] or 0) < 1e-5


def test_a_merge_to_float32_is_compared_without_the_rounding_of_training(quantized: Path, tmp_path: Path) -> None:
    """One weight is wrong by too little for the types, but not for a float32 model beside itself."""
    trained = _found(quantized)
    use = trained.recipe.adapter
    right = use.record.merge
    assert right is not None

    def spoiled(model: Any, dtype: torch.dtype) -> Any:
        merged: Any = right(model, dtype)
        merged.get_submodule("model.layers.1.mlp.up_proj").weight.data *= 1.003
        return merged

    record = replace(use.record, merge=spoiled)
    trained = replace(trained, recipe=replace(trained.recipe, adapter=replace(use, record=record)))
    merge(trained, Merge(to=tmp_path / "coarse", dtype=torch.bfloat16))
    with pytest.raises(RunError, match=r"the relative difference from the adapter cast to float32 is .*, over 0.0001"):
        merge(trained, Merge(to=tmp_path / "fine", dtype=torch.float32))


def test_a_fully_trained_model(tmp_path: Path) -> None:
    full = ["adapter={use='none'}", "train.learning_rate=0.003", "model.dtype='bfloat16'", "eval.exact_match=false"]
    run = finished(tmp_path, *full)
    ft("merge", run, "--to", tmp_path / "merged", "--dtype", "bfloat16")
    merged, saved = (load_file(place / "model.safetensors") for place in (tmp_path / "merged", run / "model"))
    assert merged.keys() == saved.keys()
    assert all(torch.equal(merged[name], saved[name]) for name in saved)
    figures = json.loads((tmp_path / "merged" / "parity.json").read_text(encoding="utf-8"))
    assert figures["largest_difference"] == 0
    assert figures["share"] == pytest.approx(1)


def test_a_damaged_full_model_is_refused(tmp_path: Path) -> None:
    run = finished(tmp_path, "adapter={use='none'}", "train.steps=1", "eval.exact_match=false")
    file = run / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"model\.safetensors has \d+ bytes of \d+"):
        _found(run)
    (run / "model" / "manifest.json").unlink()
    write_manifest(run / "model", 1)  # as if that were what was trained
    with pytest.raises(ModelError, match=r"1 of its weights are not in its files.*model\.norm\.weight"):
        open_run(_found(run))


# -------------------------------------------------------------------------------------------------------- other models


@pytest.mark.parametrize("targets", ["['lm_head', 'q_proj']", "['embed_tokens']", "['embed_tokens', 'lm_head']"])
def test_tied_embeddings_are_untied_where_one_of_them_is_adapted(tmp_path: Path, targets: str) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    model = _plain(recipe.parent / "model")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    shutil.copy(recipe.parent / "model" / "tokenizer.json", tmp_path / "tied")
    shutil.copy(recipe.parent / "model" / "tokenizer_config.json", tmp_path / "tied")
    shutil.copy(recipe.parent / "model" / "chat_template.jinja", tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    run = finished(
        tmp_path, f"model.path='{tmp_path / 'tied'}'", f"adapter.targets={targets}", "eval.exact_match=false"
    )
    ft("merge", run, "--to", tmp_path / "merged", "--dtype", "float32")
    config = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert config[TIE] is False
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert not torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])


def test_a_named_template_and_its_end_go_with_the_model(tmp_path: Path) -> None:
    run = finished(tmp_path, "data.stage=[{use='chat', template='chatml'}]", "train.steps=1", "eval.exact_match=false")
    ft("merge", run, "--to", tmp_path / "merged", "--dtype", "float32", "--shard-size", "20KB")
    template = AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert template == AutoTokenizer.from_pretrained(run / "adapter").chat_template
    assert "<|im_start|>" in template
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["eos_token_id"] == 257


def test_rows_of_training_where_none_are_held_out(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    without(copy / "recipe.toml", "eval")
    out, _ = ft("merge", copy, "--to", tmp_path / "merged", "--rows", 5)
    assert "parity on 5 rows of training data" in out
    out, _ = ft("merge", copy, "--to", tmp_path / "m2", "--data", run.parent / "recipe" / "held_out.jsonl")
    assert "parity on 4 rows of the file" in out
