"""`nf4` quantises the base model's linear layers and nothing else; adapters on it get the gradients of that model."""

from __future__ import annotations

import importlib.metadata
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, name2qmap
from bitsandbytes.nn.modules import Linear4bit
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from fitune import ModelError, Plan, RecipeError
from fitune.compose.model import adapted, built, planned
from fitune.plugin.model import unwrapped
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune_plugins.memory.nf4 import Nf4, Nf4Options
from support.architectures import CONFIGS
from support.tiny import assert_close, gradients, losses, parts_of, train, with_lora

NF4 = 'memory.strategy=[{use="nf4"}]'
DOUBLE = 'memory.strategy=[{use="nf4", double_quantization=true}]'
ALL_LINEAR = 'adapter.targets="all-linear"'
LAYERS = 2
LINEARS = 7 * LAYERS


def _layers(model: torch.nn.Module) -> dict[str, Linear4bit]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def _dequantized(layer: Linear4bit) -> Tensor:
    weight: Any = layer.weight
    return dequantize_4bit(weight.data, weight.quant_state)


def _write_dequantized(recipe: Path, strategy: str) -> Path:
    """The recipe again, its model's weights replaced by what is left of them in 4 bits."""
    layers = _layers(unwrapped(parts_of(recipe, strategy).run.model))
    again = write_recipe(recipe.parent.parent / "dequantized")
    file = again.parent / "model" / "model.safetensors"
    weights = load_file(file)
    for name, layer in layers.items():
        key = f"{name.removesuffix('.base_layer')}.weight"
        assert not torch.equal(weights[key], _dequantized(layer))
        weights[key] = _dequantized(layer)
    save_file(weights, file, metadata={"format": "pt"})
    return again


@pytest.mark.parametrize("strategy", [NF4, DOUBLE])
def test_gradients_are_those_of_the_dequantized_model(recipe_path: Path, strategy: str) -> None:
    found = gradients(recipe_path, strategy, ALL_LINEAR)
    expected = gradients(_write_dequantized(recipe_path, f"{strategy}"), ALL_LINEAR)
    assert len(found) == 3
    for step, other in zip(found, expected, strict=True):
        assert len(step) == 2 * LINEARS
        assert_close(step, other, relative=1e-4)


@pytest.mark.parametrize("strategy", [NF4, DOUBLE])
def test_linear_layers_alone_are_quantized(recipe_path: Path, strategy: str) -> None:
    model = unwrapped(parts_of(recipe_path, strategy, "model.dtype='bfloat16'").run.model)
    layers = _layers(model)
    assert len(layers) == LINEARS
    for layer in layers.values():
        weight: Any = layer.weight
        assert (weight.dtype, weight.numel()) == (torch.uint8, layer.in_features * layer.out_features // 2)
        assert (weight.quant_state.quant_type, weight.quant_state.blocksize) == ("nf4", 64)
        assert weight.quant_state.nested is (strategy == DOUBLE)
        assert layer.compute_dtype == torch.bfloat16
    others = {name: p.dtype for name, p in model.named_parameters() if "lora_" not in name and "proj" not in name}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} < others.keys()
    assert set(others.values()) == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", ["base", "float32"])
@pytest.mark.parametrize("targets", ['"all-linear"', '["q_proj", "v_proj"]'])
def test_adapters_have_the_type_that_is_asked_for(recipe_path: Path, dtype: str, adapter: str, targets: str) -> None:
    options = [f"model.dtype='{dtype}'", f"adapter.dtype='{adapter}'", f"adapter.targets={targets}"]
    trainables = parts_of(recipe_path, NF4, *options).step.trainables
    wanted = getattr(torch, dtype if adapter == "base" else adapter)
    assert {p.dtype for p in trainables.parameters} == {wanted}
    assert {p.dtype for p in trainables.masters} == {torch.float32}
    assert len(trainables.parameters) == (2 * LINEARS if "all" in targets else 4 * LAYERS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_learns(recipe_path: Path, tmp_path: Path, dtype: str) -> None:
    train(recipe_path, tmp_path / "run", NF4, ALL_LINEAR, "train.steps=20", f"model.dtype='{dtype}'")
    found = losses(tmp_path / "run")
    assert found[0] == pytest.approx(5.8, abs=0.1)
    assert found[-1] < 0.7 * found[0]


@pytest.mark.parametrize("other", ['{use="gradient-checkpointing"}', '{use="chunked-loss", tokens=5}'])
def test_beside_other_strategies(recipe_path: Path, other: str) -> None:
    plain = gradients(recipe_path, NF4, ALL_LINEAR)
    for strategies in (f'{other}, {{use="nf4"}}', f'{{use="nf4"}}, {other}'):
        found = gradients(recipe_path, f"memory.strategy=[{strategies}]", ALL_LINEAR)
        for step, expected in zip(found, plain, strict=True):
            assert_close(step, expected, relative=1e-5)


def test_an_evaluation_changes_no_step(recipe_path: Path, tmp_path: Path) -> None:
    """On a CPU with AVX-512 BF16 bitsandbytes repacks weights in evaluation, for good, and layers lose gradients."""
    train(recipe_path, tmp_path / "plain", NF4, ALL_LINEAR)
    evaluation = 'eval={every=1, source=[{use="jsonl", path="data.jsonl"}]}'
    held_out = recipe_path.parent / "data.jsonl"
    train(recipe_path, tmp_path / "run", NF4, ALL_LINEAR, evaluation.replace("data.jsonl", str(held_out)))
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")


def test_the_adapter_loads_on_plain_peft(recipe_path: Path, tmp_path: Path) -> None:
    model = train(recipe_path, tmp_path / "run", DOUBLE, ALL_LINEAR).model.eval()
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    load: Any = AutoModelForCausalLM.from_pretrained
    base = load(recipe_path.parent / "model", quantization_config=quantization, dtype=torch.float32, device_map="cpu")
    for layer in _layers(base).values():
        layer.support_avx512bf16_for_cpu = False  # its kernel is made for larger layers
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        expected = cast(Any, model)(input_ids=ids).logits
        untrained = base(input_ids=ids).logits
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            trained = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter"))
        found = trained.eval()(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert not torch.allclose(untrained, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("change", ["missing", "of another shape"])
def test_a_weight_that_is_not_there_is_still_refused(recipe_path: Path, change: str) -> None:
    file = recipe_path.parent / "model" / "model.safetensors"
    weights = load_file(file)
    weight = weights.pop("model.layers.1.mlp.up_proj.weight")
    if change != "missing":
        weights["model.layers.1.mlp.up_proj.weight"] = weight[:, :8].contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 of its weights .* e\.g\. model\.layers\.1\.mlp\.up_proj\.weight"):
        parts_of(recipe_path, NF4)


def test_what_stays_in_the_models_own_type_is_told(recipe_path: Path) -> None:
    parts = parts_of(recipe_path, NF4, "model.dtype='bfloat16'")
    left = [p for n, p in unwrapped(parts.run.model).named_parameters() if "lora_" not in n and "proj" not in n]
    (line,) = [line for line in parts.run.told if line.startswith("nf4: ")]
    size = sum(p.numel() * 2 for p in left) / 2**20
    assert line.startswith(
        f"nf4: {size:.2f} MiB stay in bfloat16: embeddings 0.02 MiB, head 0.02 MiB, norms and others "
    )


def test_experts_are_told_with_their_size() -> None:
    config = AutoConfig.for_model("qwen3_moe", **CONFIGS["qwen3_moe"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    (line,) = Nf4(Nf4Options()).told(model.requires_grad_(False))
    experts = 2 * 4 * 3 * 64 * 32 * 2 / 2**20  # layers, experts, matrices, hidden, intermediate, bytes
    assert f"routed experts {experts:.2f} MiB" in line


def test_shapes_alone(recipe_path: Path) -> None:
    """A forecast builds the model on the meta device; there, everything has the size and type that loading gives it."""

    def figures(model: PreTrainedModel) -> dict[str, Any]:
        states: dict[str, Any] = {name: cast(Any, layer.weight).quant_state for name, layer in _layers(model).items()}
        states |= {f"{name}.state2": state.state2 for name, state in states.items() if state.nested}
        inside = {f"{name}.{key}": t for name, state in states.items() for key, t in vars(state).items()}
        tensors = {name: t for name, t in inside.items() if isinstance(t, Tensor)}
        plain = {name: value for name, value in inside.items() if isinstance(value, (int, str, torch.dtype))}
        return plain | {n: (t.shape, t.dtype) for n, t in {**tensors, **dict(model.named_parameters())}.items()}

    read = read_recipe(recipe_path, open_registry(), ["model.dtype='bfloat16'"])
    for double in (False, True):
        nf4 = Nf4(Nf4Options(double_quantization=double))
        build, load = read.model.record.build_model, read.model.record.load_quantized
        assert build is not None
        assert load is not None
        built = nf4.loaded(build(read.model.options))
        quantization = nf4.plan(Plan()).quantization
        assert quantization is not None
        expected = nf4.loaded(load(read.model.options, torch.device("cpu"), quantization))
        assert {p.device.type for p in built.parameters()} == {"meta"}
        assert figures(built) == figures(expected)
        layer = with_lora(built, "all-linear").get_submodule("base_model.model.model.layers.0.mlp")
        layer(torch.empty(1, 3, 32, dtype=torch.bfloat16, device="meta")).sum().backward()
        assert sum(p.grad is not None for p in layer.parameters()) == 6


def _refused(recipe: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as raised:
        read_recipe(recipe, open_registry(), overrides)
    return raised.value.message


def test_full_fine_tuning_is_refused(tmp_path: Path) -> None:
    strategy = {"memory": {"strategy": [{"use": "nf4"}]}, "adapter": {"use": "none"}}
    message = _refused(write_recipe(tmp_path / "recipe", strategy))
    assert '[memory.strategy] use: "nf4" cannot be used with "none": it trains every weight' in message
    assert "and 4-bit ones have no gradient. Remove one of the two" in message


def test_a_loader_that_cannot_quantize_is_refused(recipe_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    message = _refused(recipe_path, NF4, f'model={{use="gguf", path="{tmp_path / "a.gguf"}"}}')
    assert 'the model loader "gguf" cannot quantise, as the strategy "nf4" asks. Load with use = "hf"' in message


@pytest.mark.parametrize(
    ("version", "words"),
    [(None, "the package bitsandbytes is not installed"), ("0.49.2", "bitsandbytes 0.49.2 is too old: 0.50 is needed")],
)
def test_without_bitsandbytes(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, words: str
) -> None:
    installed = importlib.metadata.version

    def find(name: str) -> str:
        if name != "bitsandbytes":
            return installed(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", find)
    message = _refused(recipe_path, NF4)
    assert f"{words}. Install it: pip install 'fitune[bitsandbytes]'" in message


def test_a_second_quantization_is_refused() -> None:
    nf4 = Nf4(Nf4Options())
    with pytest.raises(ModelError, match=r"nf4: .* quantises the model already"):
        nf4.plan(nf4.plan(Plan()))


def test_a_model_that_was_not_quantized_is_refused(recipe_path: Path) -> None:
    model = parts_of(recipe_path).run.model
    with pytest.raises(ModelError, match="nf4: LlamaForCausalLM has no linear layer that could be quantised"):
        Nf4(Nf4Options()).loaded(unwrapped(model))


def test_the_plan() -> None:
    quantization = Nf4(Nf4Options()).plan(Plan()).quantization
    assert isinstance(quantization, BitsAndBytesConfig)
    assert (quantization.load_in_4bit, quantization.bnb_4bit_use_double_quant) == (True, False)


def test_a_model_without_values_leaves_no_table_without_values(recipe_path: Path) -> None:
    """bitsandbytes keeps the first table that it makes: a real model after a forecast would get it."""
    recipe = read_recipe(recipe_path, open_registry(), ['memory.strategy=[{use="nf4", double_quantization=true}]'])
    name2qmap.pop("dynamic", None)
    adapted(recipe, planned(recipe, gpu=True)[0], built(recipe))
    assert not any(table.is_meta for table in name2qmap.values())
