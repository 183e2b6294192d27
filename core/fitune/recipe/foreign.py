"""Keys that other tools have, and keys that stand in the wrong table: what a recipe calls them, and where they go.

The names are those of transformers' TrainingArguments, TRL's configurations, axolotl, LLaMA-Factory, Unsloth and
ms-swift, by their documentation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from fitune.errors import Problem
from fitune.plugin.recipe import Checkpoint, Data, Evaluation, General, Memory, Train
from fitune.plugin.registry import Registry

CORE: dict[str, type] = {
    "": General,
    "memory": Memory,
    "data": Data,
    "train": Train,
    "eval": Evaluation,
    "checkpoint": Checkpoint,
}
"""The core's own tables."""

TABLES = {
    "model loader": "[model]",
    "adapter": "[adapter]",
    "objective": "[objective]",
    "memory strategy": "[[memory.strategy]]",
    "data stage": "[[data.stage]]",
    "listener": "[[listener]]",
}
"""Where the providers of a kind are named."""


def _strategy(name: str, more: str = "") -> str:
    return f'[[memory.strategy]] use = "{name}"{more}'


_RATE, _ROWS, _LENGTH = "[train] learning_rate", "[train] micro_batch", "[train] length"
_ACCUMULATION = "[train] accumulation"
_CHECKPOINTING, _PACK = _strategy("gradient-checkpointing"), '[[data.stage]] use = "pack"'
_NF4, _DATA = _strategy("nf4"), "[[data.source]]"
_TRACKER, _TEMPLATE = '[[listener]] use = "tracker", name = "..."', '[[data.stage]] use = "chat", template = "..."'
_KEPT, _STEPS = "[checkpoint] keep", "[checkpoint] steps"
_FIT = "nothing: [memory] fit finds out what fits and is fastest"

MEANT: dict[str, str] = {
    "lr": _RATE,
    "base_lr": _RATE,
    "lr_scheduler": "[train] schedule",
    "lr_scheduler_type": "[train] schedule",
    "warmup_ratio": "[train] warmup_steps, a number of steps",
    "warmup": "[train] warmup_steps",
    "num_warmup_steps": "[train] warmup_steps",
    "adam_beta1": "[train] beta1",
    "adam_beta2": "[train] beta2",
    "adam_epsilon": "[train] epsilon",
    "wd": "[train] weight_decay",
    "gradient_clipping": "[train] max_grad_norm",
    "max_gradient_norm": "[train] max_grad_norm",
    "grad_clip": "[train] max_grad_norm",
    "batch_size": f"{_ROWS}; rows of a step are that times accumulation",
    "micro_batch_size": _ROWS,
    "per_device_train_batch_size": _ROWS,
    "train_batch_size": _ROWS,
    "per_device_eval_batch_size": "[eval] micro_batch",
    "eval_batch_size": "[eval] micro_batch",
    "auto_find_batch_size": "[train] batch_tokens with [memory] fit",
    "gradient_accumulation_steps": _ACCUMULATION,
    "gradient_accumulation": _ACCUMULATION,
    "accumulation_steps": _ACCUMULATION,
    "num_train_epochs": "[train] epochs",
    "num_epochs": "[train] epochs",
    "max_steps": "[train] steps",
    "num_steps": "[train] steps",
    "max_seq_length": _LENGTH,
    "max_seq_len": _LENGTH,
    "max_length": _LENGTH,
    "sequence_len": _LENGTH,
    "cutoff_len": _LENGTH,
    "block_size": _LENGTH,
    "packing": _PACK,
    "sample_packing": _PACK,
    "pad_to_sequence_len": "nothing: rows are padded to the longest of their batch",
    "group_by_length": _PACK,
    "gradient_checkpointing": _CHECKPOINTING,
    "use_gradient_checkpointing": _CHECKPOINTING,
    "activation_checkpointing": _CHECKPOINTING,
    "gradient_checkpointing_kwargs": _CHECKPOINTING,
    "load_in_4bit": _NF4,
    "load_in_8bit": f"{_NF4}, or a checkpoint that is in 8 bits",
    "bnb_4bit_quant_type": _NF4,
    "bnb_4bit_compute_dtype": "[model] dtype",
    "quantization_bit": _NF4,
    "quant_bits": _NF4,
    "bf16": '[model] dtype = "bfloat16"',
    "fp16": '[model] dtype = "float16"',
    "tf32": "nothing: products of float32 are exact",
    "torch_dtype": "[model] dtype",
    "optim": "[train] learning_rate, weight_decay, beta1, beta2; AdamW in 8 bits: " + _strategy("adamw-8bit"),
    "optimizer": "AdamW is the default; in 8 bits: " + _strategy("adamw-8bit"),
    "paged_adamw": _strategy("adamw-8bit", ", paged = true"),
    "dataloader_pin_memory": _strategy("pinned-memory"),
    "pin_memory": _strategy("pinned-memory"),
    "lora_r": "[adapter] r",
    "lora_rank": "[adapter] r",
    "rank": "[adapter] r",
    "lora_alpha": "[adapter] alpha",
    "lora_dropout": "[adapter] dropout",
    "target_modules": "[adapter] targets",
    "lora_target": "[adapter] targets",
    "lora_target_modules": "[adapter] targets",
    "lora_target_linear": '[adapter] targets = "all-linear"',
    "finetuning_type": '[adapter] use = "lora" or "none"',
    "peft": "[adapter]",
    "lora": '[adapter] use = "lora"',
    "base_model": "[model] id, or path",
    "model_name_or_path": "[model] id, or path",
    "model_name": "[model] id, or path",
    "pretrained_model_name_or_path": "[model] id, or path",
    "tokenizer": "nothing: the model's own is taken",
    "chat_template": _TEMPLATE,
    "dataset": _DATA,
    "datasets": _DATA,
    "dataset_name": f'{_DATA} use = "hf-dataset", id = "..."',
    "train_file": "[data] path",
    "data_path": "[data] path",
    "dataset_path": "[data] path",
    "dataset_text_field": '[[data.stage]] use = "plain-text"',
    "train_on_inputs": '[[data.stage]] use = "chat", loss = "all"',
    "train_on_prompt": '[[data.stage]] use = "chat", loss = "all"',
    "completion_only_loss": "nothing: only answers are trained on",
    "assistant_only_loss": "nothing: only answers are trained on",
    "val_set_size": "[eval] fraction",
    "test_size": "[eval] fraction",
    "eval_steps": "[eval] every",
    "evals_per_epoch": "[eval] every, a number of steps",
    "eval_strategy": "[eval] every",
    "evaluation_strategy": "[eval] every",
    "save_steps": _STEPS,
    "save_strategy": _STEPS,
    "saves_per_epoch": f"{_STEPS}, a number of steps",
    "save_total_limit": _KEPT,
    "load_best_model_at_end": "[checkpoint] best, and --checkpoint best of ft generate, eval and merge",
    "resume_from_checkpoint": "ft run RUN, with the directory of the run",
    "output_dir": "ft run RECIPE --out DIR",
    "run_name": "name, above the first table",
    "logging_steps": '[[listener]] use = "metrics", every = N',
    "report_to": _TRACKER,
    "wandb": _TRACKER,
    "wandb_project": _TRACKER,
    "random_seed": "seed, above the first table",
    "data_seed": "seed, above the first table",
    "flash_attention": "nothing: torch takes the fastest attention that suits",
    "attn_implementation": "nothing: torch takes the fastest attention that suits",
    "deepspeed": _FIT,
    "device_map": "nothing: the model is loaded on the run's GPU",
    "max_memory": '[memory] fit = "22GiB"',
    "shuffle": "nothing: each epoch has an order of its own, by seed",
    "streaming": "nothing: rows are prepared once, and mapped from disk",
}
"""What other tools call it: what a recipe says in its place."""


def told_better(problem: Problem, at: str, registry: Registry) -> Problem:
    """The problem of a key that nobody knows, with what it may have been meant to be: a key of another table, or what
    another tool calls so. `at` is the table, e.g. "[train]". Others stay as they are.
    """
    name = problem.key.rpartition(".")[2]
    if problem.what not in (f'unknown key "{name}"', f'unknown table "{name}"'):
        return problem
    if (meant := MEANT.get(name.lower())) is not None:
        return replace(problem, fix=f"What other tools call so is here: {meant}")
    places = list(_core(name))
    if not places and not problem.fix.startswith("Did you"):
        places = list(_served(name, registry))
    others = [place for place in places if place != at][:3]
    return replace(problem, fix=f'"{name}" is a key of {" and of ".join(others)}') if others else problem


def _core(name: str) -> Iterator[str]:
    """The core's own tables that have a key of this name."""
    for table, options in CORE.items():
        if name in _keys(options):
            yield f"[{table}]" if table else "the part above the first table"


def _served(name: str, registry: Registry) -> Iterator[str]:
    """The tables of plugins that have a key of this name."""
    for provided in registry.provided:
        if provided.kind in TABLES and name in _keys(provided.record.options):
            kind = "[[data.source]]" if getattr(provided.record, "takes", "") == "nothing" else TABLES[provided.kind]
            yield f'{kind} use = "{provided.record.name}"'


def _keys(options: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cast(Any, options))}
