"""Of a configuration: the adapter, and the weights that are packed beneath it."""

from __future__ import annotations

from typing import Any

from fitune.recipe.draft import Draft
from fitune.recipe.foreign.source import Source, shown

OF_LORA = (
    "lora_r", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "lora_target_modules", "lora_target_linear",
    "lora_modules_to_save", "additional_target", "use_rslora", "use_dora", "peft_use_rslora", "peft_use_dora",
    "lora_task_type", "lora_fan_in_fan_out", "lora_rank_pattern", "lora_alpha_pattern", "peft_layers_to_transform",
)  # fmt: skip
"""Keys that say nothing where every weight trains."""

INT8 = 'weights stay in [model] dtype: [[memory.strategy]] use = "nf4" packs them, or take a checkpoint in 8 bits'


def adapter(source: Source, draft: Draft, options: frozenset[str]) -> None:
    """Fill in `[adapter]` and `nf4`; `options` are those that `lora` takes here."""
    if _trains_all(source):
        draft.set("adapter", "use", "none", "full fine-tuning: every weight trains")
        for key in OF_LORA:
            source.needless(key, "every weight trains")
    else:
        _lora(source, draft, options)
    _start(source)
    _quantised(source, draft)


def _trains_all(source: Source) -> bool:
    """Whether every weight trains; says what became of the key that tells it."""
    if source.tool == "trl":
        lora = bool(source.get("use_peft", bool))
        source.converted("use_peft", f'[adapter] use = "{"lora" if lora else "none"}"')
        return not lora
    key = "adapter" if source.tool == "axolotl" else "finetuning_type"
    said = source.get(key, str)
    if said in ("lora", "qlora"):
        source.converted(key, '[adapter] use = "lora"')
    elif said in (None, "full"):
        source.converted(key, '[adapter] use = "none"')
        return True
    else:
        source.could_not(key, f'no adapter here is like {said}: the recipe has "lora"')
    return False


def _lora(source: Source, draft: Draft, options: frozenset[str]) -> None:
    draft.set("adapter", "use", "lora")
    rank_key = "lora_rank" if source.tool == "llama-factory" else "lora_r"
    rank = source.get(rank_key, int) or 8
    draft.set("adapter", "r", rank, "" if rank_key in source.given else f"the default of {source.tool}")
    source.converted(rank_key, "[adapter] r")
    alpha = source.get("lora_alpha", float)
    told = "" if "lora_alpha" in source.given else f"the default of {source.tool}"
    draft.set("adapter", "alpha", 2.0 * rank if alpha is None else alpha, told)
    source.converted("lora_alpha", "[adapter] alpha")
    draft.set("adapter", "targets", _targets(source, draft))
    layers = source.values.get("peft_layers_to_transform")
    if isinstance(layers, list) and layers:
        draft.set("adapter", "layers", layers)
        source.converted("peft_layers_to_transform", "[adapter] layers")
    _ranks(source, draft)
    _init(source, draft)
    for key in ("lora_modules_to_save", "additional_target"):
        saved = _names(source.values.get(key))
        if saved and "modules_to_save" in options:
            draft.set("adapter", "modules_to_save", saved)
            source.converted(key, "[adapter] modules_to_save")
        elif saved:
            source.could_not(key, "adapters train, and no whole layer beside them")


def _init(source: Source, draft: Draft) -> None:
    """What the adapters begin with."""
    if source.get("pissa_init", bool):
        draft.set("adapter", "init", "pissa")
        source.converted("pissa_init", '[adapter] init = "pissa"')
    said = source.values.get("peft_init_lora_weights")
    name = str(said).partition("_niter_")[0]
    if name in ("gaussian", "orthogonal", "pissa", "olora"):
        draft.set("adapter", "init", name)
        source.converted("peft_init_lora_weights", "[adapter] init")
    elif said is True:
        source.needless("peft_init_lora_weights", "it is the default")
    elif said is not None:
        known = "default, gaussian, orthogonal, pissa, olora, or, beside nf4, loftq"
        source.could_not("peft_init_lora_weights", f"[adapter] init is {known}")


def _names(value: object) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [str(one) for one in value] if isinstance(value, list) else []


def _targets(source: Source, draft: Draft) -> Any:
    """What `targets` is."""
    if source.get("lora_target_linear", bool) if source.tool == "axolotl" else False:
        for key in ("lora_target_linear", "lora_target_modules"):
            source.converted(key, '[adapter] targets = "all-linear"')
        return "all-linear"
    key = "lora_target" if source.tool == "llama-factory" else "lora_target_modules"
    said = source.values.get(key)
    names = _names(said)
    source.converted(key, "[adapter] targets")
    if said in ("all", "all-linear", ["all-linear"], ["all"]):
        return "all-linear"
    if isinstance(said, str) and source.tool != "llama-factory" and any(c in said for c in "|*\\([^$"):
        return said
    if names:
        return names
    draft.differs.append(
        f"[adapter] targets: the source names none, for which {source.tool} takes what peft knows of the family; "
        'the recipe has q_proj and v_proj; "all-linear" learns more'
    )
    return ["q_proj", "v_proj"]


def _ranks(source: Source, draft: Draft) -> None:
    """Other ranks of some layers."""
    ranks, alphas = (source.values.get(key) or {} for key in ("lora_rank_pattern", "lora_alpha_pattern"))
    if not isinstance(ranks, dict) or not isinstance(alphas, dict):
        return
    tables = [
        {"targets": [str(name)], "r": rank, **({"alpha": alphas[name]} if name in alphas else {})}
        for name, rank in ranks.items()
    ]
    if tables:
        draft.set("adapter", "ranks", tables)
        source.converted("lora_rank_pattern", "[adapter] ranks")
        if set(alphas) <= set(ranks):
            source.converted("lora_alpha_pattern", "[adapter] ranks")


def _start(source: Source) -> None:
    for key in ("lora_model_dir", "adapter_name_or_path"):
        if source.has(key):
            said = shown(source.values[key])
            source.could_not(
                key, f"[adapter] from goes on with a run of ft: {said} is of another tool; ft merge it first"
            )


def _quantised(source: Source, draft: Draft) -> None:
    """The weights beneath the adapter, in 4 bits."""
    if not _in_four_bits(source):
        for key in ("use_bnb_nested_quant", "double_quantization", "bnb_4bit_quant_type", "quantization_type"):
            source.needless(key, "weights are not packed")
        return
    if draft.value("adapter", "use") == "none":
        source.could_not("load_in_4bit", "every weight trains, and packed weights cannot")
        return
    _packed(source, draft)


def _in_four_bits(source: Source) -> bool:
    bits = source.get("quantization_bit", int)
    for key in ("load_in_8bit", "quantization_bit"):
        if source.has(key) and source.values[key] is not False and not (key == "quantization_bit" and bits == 4):
            source.could_not(key, INT8)
    quantised = source.get("adapter", str) == "qlora" and not source.has("load_in_4bit")
    return bool(source.get("load_in_4bit", bool)) or bits == 4 or quantised


def _packed(source: Source, draft: Draft) -> None:
    double = _double(source)
    draft.add("memory.strategy", {"use": "nf4", **({"double_quantization": True} if double else {})},
              "The base model's linear layers in 4 bits (QLoRA).")  # fmt: skip
    for key in ("load_in_4bit", "quantization_bit"):
        source.converted(key, '[[memory.strategy]] use = "nf4"')
    for key in ("use_bnb_nested_quant", "double_quantization", "bnb_config_kwargs"):
        source.converted(key, f'[[memory.strategy]] use = "nf4", double_quantization = {str(double).lower()}')
    for key in ("bnb_4bit_quant_type", "quantization_type"):
        if source.get(key, str) == "nf4":
            source.converted(key, '[[memory.strategy]] use = "nf4"')
        elif source.has(key):
            source.could_not(key, "4 bits are NF4 here")
    if source.has("quantization_method"):
        method = source.get("quantization_method", str)
        known = method in ("bitsandbytes", "bnb")
        (source.converted if known else source.could_not)("quantization_method", "4 bits are bitsandbytes' NF4 here")


def _double(source: Source) -> bool:
    """Whether scales are quantised too: LLaMA-Factory and axolotl do so where nothing else is said."""
    if source.tool == "trl":
        return bool(source.get("use_bnb_nested_quant", bool))
    if source.tool == "llama-factory":
        return source.get("double_quantization", bool) is not False
    said = source.values.get("bnb_config_kwargs")
    return not isinstance(said, dict) or said.get("bnb_4bit_use_double_quant", True) is not False
