"""Of a configuration: batches, rates, schedules, the optimizer, and what keeps activations small."""

from __future__ import annotations

from fitune.plugin.recipe import Schedule
from fitune.recipe.draft import Draft
from fitune.recipe.foreign.source import Source

SCHEDULES: dict[str, Schedule] = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant_with_warmup",
    "inverse_sqrt": "inverse_sqrt",
}

EIGHT_BITS = ("adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit", "ao_adamw_8bit", "paged_adamw_8bit")

OTHERS = {"adafactor": "adafactor", "muon": "muon", "lion_32bit": "lion", "schedule_free_adamw": "schedule-free"}
"""Optimizers that strategies may make, where they are installed."""

KERNELS: dict[str, str] = {
    "use_liger_kernel": "chunked-loss",
    "enable_liger_kernel": "chunked-loss",
    "liger_fused_linear_cross_entropy": "chunked-loss",
    "liger_cross_entropy": "chunked-loss",
    "chunked_cross_entropy": "chunked-loss",
    "cut_cross_entropy": "chunked-loss",
    "liger_rms_norm": "fused-rms-norm",
    "lora_mlp_kernel": "fused-lora",
    "lora_qkv_kernel": "fused-lora",
    "lora_o_kernel": "fused-lora",
    "tiled_mlp": "tiled-mlp",
    "fp8": "fp8",
    "dataloader_pin_memory": "pinned-memory",
}
"""Keys that switch on what is a memory strategy here."""

FIT = (
    "In place of these strategies, micro_batch and accumulation: fit = true chooses what fits this machine's GPU and "
    'is fastest, or fit = "rtx 4090"; with [train] batch_tokens, rows of a step too. ft plan --fit shows it.'
)


def train(source: Source, draft: Draft, strategies: frozenset[str]) -> None:
    """Fill in `[train]` and `[[memory.strategy]]`; `strategies` are those that are installed."""
    _rounds(source, draft)
    _schedule(source, draft)
    _optimizer(source, draft, strategies)
    _checkpointing(source, draft)
    for key, name in KERNELS.items():
        if source.has(key) and source.values[key] is not False and key in source.given:
            if name in ("fused-lora", "fp8") and draft.value("adapter", "use") != "lora":
                source.could_not(key, f"every weight trains, and {name} is for a frozen base")
                continue
            draft.add("memory.strategy", {"use": name, **({"enabled": True} if name == "pinned-memory" else {})})
            source.converted(key, f'[[memory.strategy]] use = "{name}"')
    draft.comments["memory"] = FIT


def _rounds(source: Source, draft: Draft) -> None:
    """Rows of a step, and how many steps."""
    total, rows = source.get("batch_size", int), source.get("micro_batch_size", int) or 1
    if total and source.tool == "axolotl" and not source.has("gradient_accumulation_steps"):
        draft.set("train", "accumulation", max(1, total // rows))
        source.converted("batch_size", "[train] accumulation, as batch_size / micro_batch_size on one card")
    steps = source.get("max_steps", int)
    if steps is not None and steps > 0:
        draft.set("train", "steps", steps)
        source.converted("max_steps", "[train] steps")
        for key in ("num_train_epochs", "num_epochs"):
            source.needless(key, "max_steps says how long it trains")
    elif steps is not None:
        source.needless("max_steps", "it says nothing: epochs count")
    if source.get("auto_find_batch_size", bool):
        source.could_not("auto_find_batch_size", "[memory] fit with [train] batch_tokens chooses micro_batch")
    seed = source.get("data_seed", int)
    if seed is not None:
        same = seed == (source.get("seed", int) or 42)
        (source.converted if same else source.could_not)(
            "data_seed", "one seed is for all: seed, above the first table"
        )


def _schedule(source: Source, draft: Draft) -> None:
    key = "lr_scheduler" if source.tool == "axolotl" else "lr_scheduler_type"
    said = source.get(key, str) or "linear"
    if said in SCHEDULES:
        name = SCHEDULES[said]
        source.converted(key, "[train] schedule")
    else:
        name = "cosine"
        source.could_not(key, f"[train] schedule has no {said}: the recipe has cosine")
    warm = source.get("warmup_steps", float), source.get("warmup_ratio", float)
    if warm[0] is not None and 0 < warm[0] < 1:  # transformers 5 takes it for a share
        warm = (None, warm[0])
        draft.set("train", "warmup_ratio", warm[1])
        source.converted("warmup_steps", "[train] warmup_ratio")
    if any(warm) and name == "constant":
        for one in ("warmup_steps", "warmup_ratio"):
            source.needless(one, "a constant rate has no warm-up, there as here")
    elif warm[0] and warm[1]:
        source.needless("warmup_ratio", "warmup_steps counts")
    elif not warm[1]:
        source.needless("warmup_ratio", "there is no warm-up")
    draft.set("train", "schedule", name, "" if key in source.given else f"the default of {source.tool}")


def _optimizer(source: Source, draft: Draft, strategies: frozenset[str]) -> None:
    key = "optimizer" if source.tool == "axolotl" else "optim"
    said = (source.get(key, str) or "adamw_torch").lower()
    if source.get("use_muon", bool):
        key, said = "use_muon", "muon"
    other = OTHERS.get(said)
    if said in EIGHT_BITS:
        paged = said.startswith("paged")
        draft.add("memory.strategy", {"use": "adamw-8bit", **({"paged": True} if paged else {})})
        source.converted(key, '[[memory.strategy]] use = "adamw-8bit"' + (", paged = true" if paged else ""))
    elif other in strategies and other is not None:
        draft.add("memory.strategy", {"use": other, **_betas(source, other)})
        source.converted(key, f'[[memory.strategy]] use = "{other}"')
        if other == "schedule-free":
            warm = any(source.get(one, float) for one in ("warmup_steps", "warmup_ratio"))
            draft.set(
                "train", "schedule", "constant_with_warmup" if warm else "constant", "it averages weights instead"
            )
    elif said in ("paged_adamw_32bit", "paged_adamw"):
        source.converted(key, "AdamW, as is the default")
        draft.differs.append(f"{key}: AdamW's state is not paged; adamw-8bit with paged = true may be")
    elif said in ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw", "adamw_apex_fused", "adamw_anyprecision"):
        source.converted(key, "AdamW, as is the default")
    else:
        source.could_not(key, f"no optimizer here is like {said}: the recipe trains with AdamW")


def _checkpointing(source: Source, draft: Draft) -> None:
    keys = ("gradient_checkpointing", "activation_checkpointing")
    on = any(str(source.values.get(key)).lower() not in ("none", "false", "") for key in keys)
    if source.tool == "llama-factory":
        on = not source.get("disable_gradient_checkpointing", bool)
        source.converted("disable_gradient_checkpointing", '[[memory.strategy]] use = "gradient-checkpointing"')
    selective = source.values.get("selective_checkpointing")
    offloads = bool(source.values.get("activation_offloading") or source.get("use_unsloth_gc", bool))
    if on or selective or offloads:
        told = "" if any(key in source.given for key in keys) else f"the default of {source.tool}"
        keep = {"keep": "attention"} if selective else {}
        comment = f"Layers are computed again in the backward pass{': ' + told if told else ''}."
        draft.add("memory.strategy", {"use": "gradient-checkpointing", **keep}, comment)
    if offloads:
        draft.add("memory.strategy", {"use": "offload-checkpoints"})
    for key in (*keys, "selective_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if source.has(key) and source.values[key] is not False:
            source.converted(key, '[[memory.strategy]] use = "gradient-checkpointing"')
    for key in ("activation_offloading", "use_unsloth_gc"):
        if offloads:
            source.converted(key, '[[memory.strategy]] use = "offload-checkpoints"')


def _betas(source: Source, optimizer: str) -> dict[str, float]:
    """AdamW's settings, where another optimizer has them of its own, or has none."""
    found: dict[str, float] = {}
    for key, name in (("adam_beta1", "beta1"), ("adam_beta2", "beta2"), ("adam_epsilon", "epsilon")):
        value = source.get(key, float)
        if value is None or optimizer not in ("adafactor", "lion"):
            continue
        if optimizer == "lion" and name != "epsilon":
            found[name] = value
            source.converted(key, f"[[memory.strategy]] {name}")
        else:
            source.needless(key, f"{optimizer} has none")
    return found
