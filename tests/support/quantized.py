"""Checkpoints of the tiny model that are quantised: by bitsandbytes, as FP8, as MXFP4, and some that only say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig

from fitune.testing import write_recipe, write_tiny_data

TRAINED: dict[str, object] = {
    "adapter": {"use": "lora", "targets": ["q_proj", "v_proj"]},
    "train": {"steps": 6, "learning_rate": 0.05},
    "data": {"cache": False},
}

WEIGHTS = "model.safetensors"

BLOCK = 16
"""Rows and columns that share a scale in FP8."""


def write(directory: Path, kind: str) -> Path:
    """A recipe whose model's checkpoint is of this kind, e.g. "4bit"; gives its path. Four rows are held out."""
    recipe = write_recipe(directory, TRAINED)
    write_tiny_data(directory / "held_out.jsonl", rows=4)
    model = recipe.parent / "model"
    if kind == "fp8":
        _as_fp8(model)
    elif kind == "mxfp4":
        _as_mxfp4(model)
    elif kind in BITSANDBYTES:
        _by_bitsandbytes(model, BitsAndBytesConfig(**BITSANDBYTES[kind]))
    else:
        say(model, quant_method=kind, bits=4, group_size=128)
    return recipe


BITSANDBYTES: dict[str, dict[str, Any]] = {
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "8bit": {"load_in_8bit": True},
}


def held_out(recipe: Path) -> str:
    """An override that evaluates on the rows that are held out."""
    return f'eval.source=[{{use="jsonl", path="{recipe.parent / "held_out.jsonl"}"}}]'


def say(model: Path, **values: object) -> None:
    """Let a checkpoint's configuration say that it is quantised."""
    file = model / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "quantization_config": values}), encoding="utf-8")


def _by_bitsandbytes(model: Path, quantization: BitsAndBytesConfig) -> None:
    load: Any = AutoModelForCausalLM.from_pretrained
    made = load(model, quantization_config=quantization, dtype=torch.float32, device_map="cpu")
    (model / WEIGHTS).unlink()
    made.save_pretrained(model)


def _as_fp8(model: Path) -> None:
    stored: dict[str, Tensor] = {}
    for name, weight in load_file(model / WEIGHTS).items():
        stored[name] = weight
        if "_proj.weight" in name:
            rows, columns = weight.shape
            blocks = weight.float().view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
            scales = blocks.abs().amax((1, 3)) / 448
            stored[name] = (blocks / scales[:, None, :, None]).view(rows, columns).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scales
    save_file(stored, model / WEIGHTS, metadata={"format": "pt"})
    say(model, quant_method="fp8", activation_scheme="dynamic", weight_block_size=[BLOCK, BLOCK])


def _as_mxfp4(model: Path) -> None:
    """Experts of a small gpt-oss: 32 values share a scale, two stand in a byte."""
    old = json.loads((model / "config.json").read_text(encoding="utf-8"))
    ids: dict[str, Any] = {
        key: old[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id") if key in old
    }
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads: dict[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    config = GptOssConfig(**ids, **sizes, **heads, rope_parameters=rope, max_position_embeddings=512)
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM.from_config(config)
    (model / WEIGHTS).unlink()
    made.save_pretrained(model)
    stored: dict[str, Tensor] = {}
    for name, weight in load_file(model / WEIGHTS).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = weight.shape
            stored[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
            stored[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 122, dtype=torch.uint8)
        else:
            stored[name] = weight
    save_file(stored, model / WEIGHTS, metadata={"format": "pt"})
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    say(model, quant_method="mxfp4", modules_to_not_convert=plain)
