"""LoRA's relations: rank-stabilised, weight-decomposed, of some layers, of several ranks; trained, resumed, merged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fitune import ModelError, RecipeError, RunError, run
from fitune.cli.main import main
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import forecast
from fitune.memory.shapes import of_recipe
from fitune.plugin.options import parse
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe, write_tiny_model
from fitune_plugins.adapters import lora_peft
from fitune_plugins.adapters.lora import LoraOptions, ft_adapters

KINDS: dict[str, dict[str, object]] = {
    "rslora": {"rslora": True, "r": 16},
    "dora": {"dora": True, "targets": "all-linear"},
    "some layers": {"layers": [-1], "targets": "all-linear"},
    "several ranks": {
        "targets": "all-linear",
        "ranks": [{"targets": "down_proj", "r": 2}, {"targets": "layers.1.mlp.down_proj", "r": 6, "alpha": 3.0}],
    },
    "pissa": {"init": "pissa", "targets": "all-linear"},
    "a whole head": {"modules_to_save": ["lm_head"]},
}


def options(**changes: object) -> LoraOptions:
    value, problems = parse(LoraOptions, changes)
    assert value is not None, problems
    return value


def attached(directory: Path, **changes: object) -> Any:
    from transformers import AutoModelForCausalLM

    (record,) = ft_adapters()
    model = AutoModelForCausalLM.from_pretrained(write_tiny_model(directory))
    return record.attach(options(**changes), model)


def adapters(model: Any) -> dict[str, Any]:
    from peft.tuners.lora.layer import LoraLayer

    found = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {name.removeprefix("base_model.model.model."): module for name, module in found.items()}


def test_rslora_scales_by_the_root_of_the_rank(tmp_path: Path) -> None:
    (_, layer), *_ = adapters(attached(tmp_path, rslora=True, r=16, alpha=8)).items()
    assert layer.scaling["default"] == pytest.approx(8 / math.sqrt(16))


def test_dora_trains_a_number_for_each_row(tmp_path: Path) -> None:
    model = attached(tmp_path, dora=True)
    layer = adapters(model)["layers.0.self_attn.q_proj"]
    rows = layer.lora_magnitude_vector["default"].weight
    assert rows.requires_grad
    assert torch.allclose(rows, layer.base_layer.weight.norm(dim=1))


@pytest.mark.parametrize(("numbers", "names"), [([0], {"0"}), ([-1], {"1"}), ([1, 0], {"0", "1"})])
def test_only_these_layers_are_adapted(tmp_path: Path, numbers: list[int], names: set[str]) -> None:
    found = adapters(attached(tmp_path, layers=numbers))
    assert {name.split(".")[1] for name in found} == names
    assert len(found) == 2 * len(names)


def test_the_last_rank_that_names_a_layer_counts(tmp_path: Path) -> None:
    found = adapters(attached(tmp_path, r=4, alpha=8, **KINDS["several ranks"]))
    ranks = {name: (layer.r["default"], layer.scaling["default"]) for name, layer in found.items()}
    assert ranks["layers.0.mlp.down_proj"] == (2, 4.0)
    assert ranks["layers.1.mlp.down_proj"] == (6, 0.5)
    assert ranks["layers.1.mlp.up_proj"] == (4, 2.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": [2]}, r"layers: there is no layer 2\. The model has 2, from 0 on"),
        ({"layers": [-3]}, r"layers: there is no layer -3\. The model has 2"),
        ({"layers": [0], "targets": ["lm_head"]}, r"layers: none of \[0\] has a layer that targets names"),
        ({"ranks": [{"targets": "k_proj", "r": 2}]}, r'ranks: no adapted layer is called "k_proj"\. Did you mean'),
    ],
)
def test_what_no_layer_has_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        attached(tmp_path, **changes)


@pytest.mark.parametrize("layers", [[], [1, 1]])
def test_layers_are_named_once(tmp_path: Path, layers: list[int]) -> None:
    with pytest.raises(RecipeError, match=r'\[adapter\] layers: "layers" is '):
        read_recipe(write_recipe(tmp_path, {"adapter": {"layers": layers}}), open_registry())


@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_experts_have_no_dora(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        num_local_experts=2,
    )
    (record,) = ft_adapters()
    model = AutoModelForCausalLM.from_config(config)
    wanted = options(**{kind: True}, targets="all-linear")
    if kind == "dora":
        with pytest.raises(ModelError, match=r"dora: .* is a tensor of experts"):
            record.attach(wanted, model)
    else:
        record.attach(wanted, model)


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_resumes_to_the_bit_opens_and_merges(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: Mapping[str, object] = {"adapter": KINDS[kind], "checkpoint": {"steps": 1}}
    recipe = write_recipe(tmp_path, changes)
    whole = run(recipe, tmp_path / "whole", registry=open_registry())
    halved = run(recipe, tmp_path / "halved", overrides=["train.steps=1"], registry=open_registry())
    main(["run", str(halved), "--set", "train.steps=3", "--allow-changed", "train.steps", "--no-third-party"])
    one, other = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (whole, halved))
    assert one.keys() == other.keys()
    assert any("magnitude" in name for name in one) == (kind == "dora")
    main(["merge", str(whole), "--to", str(tmp_path / "merged"), "--no-third-party"])
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    capsys.readouterr()


def test_resuming_with_the_same_steps_is_equal_to_the_bit(tmp_path: Path) -> None:
    plugin = tmp_path / "stops.py"
    plugin.write_text(
        "from fitune import hookimpl\n\n\n@hookimpl\ndef ft_step_done(run, step):\n"
        "    if step.step == 1 and run.resumed is None:\n        run.stop.ask('as the test wants')\n",
        encoding="utf-8",
    )
    changes = {"adapter": KINDS["dora"], "plugins": ["stops.py"]}
    stopped = write_recipe(tmp_path, changes)
    with pytest.raises(RunError):
        run(stopped, tmp_path / "stopped", registry=open_registry())
    run(tmp_path / "stopped", registry=open_registry())
    whole = run(stopped, tmp_path / "whole", overrides=["plugins=[]"], registry=open_registry())
    one, other = (load_file(p / "adapter" / "adapter_model.safetensors") for p in (whole, tmp_path / "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


@pytest.mark.parametrize("kind", ["rslora", "dora", "several ranks"])
def test_an_adapter_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"adapter": {**KINDS[kind], "r": 4}})
    directory = run(recipe, tmp_path / "run", registry=open_registry())
    saved = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    (record,) = ft_adapters()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert record.load is not None
    with pytest.raises(ModelError, match=r"(was trained with|is not of this recipe's \[adapter\])"):
        record.load(options(targets=saved["target_modules"], r=4), model, directory / "adapter")


def test_fused_lora_leaves_dora_alone(tmp_path: Path) -> None:
    recipe = read_recipe(
        write_recipe(tmp_path, {"adapter": KINDS["dora"], "memory": {"strategy": [{"use": "fused-lora"}]}}),
        open_registry(),
    )
    with pytest.raises(ModelError, match=r"its adapters are of another kind than LoRA's own, e\.g\. DoRA"):
        forecast(recipe, of_recipe(recipe), find_card("a10g"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategies", [[], [{"use": "fast-layers"}]], ids=["plain", "fast"])
def test_it_is_forecast(kind: str, strategies: list[dict[str, str]], tmp_path: Path) -> None:
    changes = {"adapter": KINDS[kind], "memory": {"strategy": strategies}}
    recipe = read_recipe(write_recipe(tmp_path, changes), open_registry())
    assert forecast(recipe, of_recipe(recipe), find_card("a10g")).passes


def test_peft_is_asked_of_each_kind_of_layer_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model of 30 layers it took three seconds of each start."""
    asked: list[str] = []
    whole = lora_peft._is_misread

    def counted(name: str, model: Any) -> bool:
        asked.append(name)
        return whole(name, model)

    monkeypatch.setattr(lora_peft, "_is_misread", counted)
    attached(tmp_path, targets="all-linear")
    assert len(asked) == 7
    assert {name.split(".")[-1] for name in asked} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
