"""LoRA on tiny models of many families: what is adapted is what was asked, learns, and is the same for plain peft."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fitune import ModelError
from fitune_plugins.adapters.lora import LoraOptions, ft_adapters
from support.architectures import BASE, CONFIGS, EXPERTS, GROUPED, WIDE

MIXED = {
    **WIDE,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
STATES = {"mamba_d_state": 8, "mamba_d_head": 16, "mamba_n_groups": 1}

MORE: dict[str, dict[str, Any]] = {
    "glm4_moe": MIXED,
    "dots1": MIXED,
    "qwen3_next": {
        **WIDE,
        "num_hidden_layers": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "llama4_text": {
        **WIDE,
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "intermediate_size_mlp": 128,
        "interleave_moe_layer_step": 2,
    },
    "jamba": {
        **GROUPED,
        "num_hidden_layers": 4,
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "num_experts": 4,
        "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
    "falcon_h1": {**WIDE, **STATES, "mamba_d_ssm": 64, "mamba_n_heads": 4},
    "bamba": {**GROUPED, **STATES, "attn_layer_indices": [1], "mamba_n_heads": 8},
    "hunyuan_v1_moe": {**WIDE, "num_experts": 4, "moe_topk": 2},
    "granitemoe": {**GROUPED, **EXPERTS},
    "opt": {**BASE, "ffn_dim": 128, "word_embed_proj_dim": 64},
}
"""Families beside those of `architectures`, by transformers' `model_type`."""

FAMILIES = {**CONFIGS, **MORE}

IDS = torch.arange(5, 45).view(2, 20)

(LORA,) = ft_adapters()


def built(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = cast(PreTrainedModel, AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family])))
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.std() > 0.5:  # left empty, or too large to compare logits
            parameter.data.normal_(0, 0.02)
    model.eval()
    return model


def attached(family: str, targets: Any = "all-linear", **more: Any) -> PreTrainedModel:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of peft: nobody's recipe can mend one
        return LORA.attach(LoraOptions(targets=targets, **more), built(family))


def told(model: PreTrainedModel, targets: Any = "all-linear") -> list[str]:
    return list(LORA.told(LoraOptions(targets=targets), model))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, cast(Any, model)(input_ids=IDS, use_cache=False).logits)


def adapters(model: nn.Module) -> dict[str, LoraLayer]:
    """By the name of what they adapt, below the wrapper."""
    found = {}
    for name, module in cast(Any, model).get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            tensor = getattr(module, "parameter_name", "")
            found[".".join(filter(None, (name.replace(".base_layer", ""), tensor)))] = module
    return found


def trained(model: PreTrainedModel) -> PreTrainedModel:
    """A model whose adapters say something."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def linear(model: PreTrainedModel) -> set[str]:
    """What "all-linear" means, told another way: by the classes and shapes of a model without adapters."""
    found = set()
    for name, parameter in model.named_parameters():
        holder, _, own = name.rpartition(".")
        kind = type(model.get_submodule(holder)).__name__
        if kind in ("Linear", "Conv1D", "FalconLinear"):
            found.add(holder)
        elif "Expert" in kind and parameter.ndim == 3:
            found.add(f"{holder}.{own}")
    head = re.compile(r"lm_head|embed_out")
    router = re.compile(r"router|(mlp|feed_forward)\.gate(\.wg)?$")
    mixer = re.compile(r"(mamba|backbone\.layers\.\d+\.mixer)\.(out_proj|dt_proj)$")
    return {name for name in found if not any(part.search(name) for part in (head, router, mixer))}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_layers_are_adapted_and_learn(family: str) -> None:
    model = attached(family)
    assert {*adapters(model)} == linear(built(family))
    assert {layer.r["default"] for layer in adapters(model).values()} == {4}
    assert {layer.scaling["default"] for layer in adapters(model).values()} == {2.0}
    trained(model).train()
    cast(Any, model)(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_reads_it_as_it_is_and_so_does_a_merge(family: str, tmp_path: Path) -> None:
    model = trained(attached(family)).eval()
    wanted = logits(model)
    assert not torch.allclose(wanted, logits(built(family)), atol=1e-3)
    LORA.save(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # peft 0.21 asks transformers >= 5.20 by a name that it deprecates.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        plain = PeftModel.from_pretrained(cast(Any, built(family)), str(tmp_path)).eval()
    torch.testing.assert_close(logits(plain), wanted)
    assert LORA.load is not None
    assert LORA.merge is not None
    again = LORA.load(LoraOptions(targets="all-linear"), built(family), tmp_path)
    assert torch.equal(logits(again), wanted)
    merged = LORA.merge(again, torch.float32)
    torch.testing.assert_close(logits(merged), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "lines"),
    [
        ("llama", ["lora: attention in 2 of 2 layers, MLPs in 2 of 2 layers"]),
        (
            "deepseek_v3",
            [
                "lora: attention in 2 of 2 layers, MLPs in 1 of 1 layers, routed experts in 1 of 1 layers, "
                "shared experts in 1 of 1 layers"
            ],
        ),
        (
            "falcon_h1",
            [
                "lora: MLPs in 2 of 2 layers, state-space mixers in 2 of 2 layers, attention in 2 of 2 layers",
                "lora: left out, as no adapter works there: out_proj of the state-space mixers of 2 layers",
            ],
        ),
    ],
)
def test_what_all_linear_layers_were_is_told(family: str, lines: list[str]) -> None:
    assert told(attached(family)) == lines


def test_named_layers_are_told_with_those_that_have_none() -> None:
    asked = ("q_proj", "v_proj")
    assert told(attached("llama", asked), asked) == ["lora: q_proj in 2 of 2 layers, v_proj in 2 of 2 layers"]
    assert told(attached("qwen3_next", asked), asked) == [
        "lora: q_proj in 1 of 4 layers, v_proj in 1 of 4 layers; none in 3 layers, which have in_proj_qkvz, "
        "in_proj_ba, out_proj"
    ]


@pytest.mark.parametrize(
    ("family", "targets", "ends"),
    [
        ("llama", ("self_attn.q_proj",), {"q_proj"}),
        ("llama", r".*layers\.1\..*\.(k|v)_proj", {"k_proj", "v_proj"}),
        ("llama", ("attention", "lm_head"), {"q_proj", "k_proj", "v_proj", "o_proj", "lm_head"}),
        ("qwen3_moe", ("gate_proj", "up_proj", "down_proj"), {"gate_up_proj", "down_proj"}),
        ("mixtral", ("w1", "w2", "w3", "q_proj"), {"gate_up_proj", "down_proj", "q_proj"}),
        ("gpt_oss", ("experts.down_proj",), {"down_proj"}),
        ("qwen3_moe", r".*experts\.(gate|up)_proj", {"gate_up_proj"}),
        ("qwen3_moe", ("gate",), {"weight"}),
        ("llama4_text", ("router", "v_proj"), {"weight", "v_proj"}),
        ("phi3", "attention", {"qkv_proj", "o_proj"}),
        ("gpt2", "mlp", {"c_fc", "c_proj"}),
        ("deepseek_v2", ("mlp.down_proj", "shared_experts.down_proj"), {"down_proj"}),
        ("qwen3_next", "attention", {"q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkvz", "in_proj_ba", "out_proj"}),
    ],
)
def test_what_peft_takes_is_taken(family: str, targets: Any, ends: set[str], tmp_path: Path) -> None:
    model = trained(attached(family, targets)).eval()
    assert {name.rpartition(".")[2] for name in adapters(model)} == ends
    LORA.save(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # peft 0.21 asks transformers >= 5.20 by a name that it deprecates.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        plain = PeftModel.from_pretrained(cast(Any, built(family)), str(tmp_path)).eval()
    torch.testing.assert_close(logits(plain), logits(model))


@pytest.mark.parametrize(
    ("family", "targets", "message"),
    [
        ("qwen3_moe", ("gate_proj",), '"gate_proj" and "up_proj" of this model\'s experts are one tensor. Name both'),
        ("llama", r".*\.w_proj", 'no layer of the model is called as ".*\\.w_proj" says'),
        ("llama", r"(q_proj", '"(q_proj" is no regular expression'),
        ("mamba", ("q_proj",), 'the model has no layer "q_proj"'),
        ("mamba", ("out_proj",), "incompatible with Mamba-based models"),
        ("mamba", "attention", 'the model has no layer that "attention" means'),
        ("mixtral", ("experts",), '"experts" is no layer, but holds several. Name those: "down_proj", "gate_up_proj"'),
        (
            "llama",
            ("q_proj", "self_attn"),
            '"self_attn" is no layer, but holds several. Name those: "k_proj", "o_proj"',
        ),
    ],
)
def test_what_no_layer_is_called_is_an_error(family: str, targets: Any, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        attached(family, targets)
    assert message in caught.value.message
    assert caught.value.message.startswith("[adapter] ")
    assert "\n" not in caught.value.message


def test_one_name_is_no_word_for_several_layers() -> None:
    (problem,) = LORA.check(LoraOptions(targets="all-linaer"))
    assert problem.sentence() == (
        '"targets" is "all-linaer", which is no word for several layers. Did you mean "all-linear"? '
        'A layer of that name is named in a list: ["all-linaer"]'
    )
    assert not list(LORA.check(LoraOptions(targets=r".*q_proj")))


def test_dropout_of_experts_is_refused_in_words_and_that_of_layers_is_not() -> None:
    with pytest.raises(ModelError) as caught:
        attached("mixtral", dropout=0.1)
    assert caught.value.message == (
        "[adapter] dropout: model.layers.0.mlp.experts.gate_up_proj is a tensor of experts, whose inputs peft cannot "
        "drop. Set dropout = 0, or name targets without the experts"
    )
    model = attached("deepseek_v3", ("q_a_proj", "mlp.gate_proj", "shared_experts.up_proj"), dropout=0.1)
    drops = [cast(Any, layer).lora_dropout["default"].p for layer in adapters(model).values()]
    assert drops == [0.1] * 4


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_equal_adapters_are_written_alike(family: str, tmp_path: Path) -> None:
    """Whatever the order of `targets`, and of a set in this process, which peft would write as it comes."""
    written = []
    for number, targets in enumerate((["q_proj", "v_proj", "o_proj"], ["o_proj", "v_proj", "q_proj"])):
        model = attached(family, tuple(targets))
        config = cast(PeftModel, model).peft_config["default"].to_dict()
        assert not [name for name, value in config.items() if isinstance(value, set) and len(value) > 1]
        (record,) = ft_adapters()
        directory = tmp_path / str(number)
        record.save(model, directory)
        written.append((directory / "adapter_config.json").read_bytes())
    assert written[0] == written[1]
    assert json.loads(written[0])["target_modules"] == ["o_proj", "q_proj", "v_proj"]
