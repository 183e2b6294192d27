"""Of a configuration: sources, formats, chat templates, what is trained on, how rows are cut, packed, held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fitune.recipe.draft import Draft
from fitune.recipe.foreign.source import Source
from fitune.recipe.foreign.to_sources import Rows, of_trl
from fitune.recipe.foreign.to_sources_axolotl import of_axolotl
from fitune.recipe.foreign.to_sources_llama_factory import of_llama_factory

TEMPLATES = {
    "chatml": "chatml", "llama3": "llama-3", "llama2": "llama-2", "gemma": "gemma", "gemma2": "gemma",
    "mistral": "mistral", "mistral_v1": "mistral", "phi_3": "phi-3", "phi_35": "phi-3", "phi": "phi-3",
    "qwen": "qwen", "qwen_25": "qwen", "vicuna": "vicuna", "zephyr": "zephyr", "deepseek": "deepseek-llm",
}  # fmt: skip
"""Chat templates of axolotl and LLaMA-Factory that are shipped here."""

LENGTHS = ("max_length", "max_seq_length", "sequence_len", "cutoff_len", "eval_sequence_len", "model_max_length")

PAIRED = ("dpo", "ipo", "orpo", "simpo", "cpo", "reward")
"""Objectives a row of which holds both answers."""

TRL_LOSS = (
    "loss: of rows of messages TRL trains on all tokens, unless assistant_only_loss is true; here on answers alone: "
    '[[data.stage]] use = "chat", loss = "all" does as TRL'
)


def data(source: Source, draft: Draft, objective: str, beside: Path, info: Path | None) -> bool:
    """Fill in `[data]` and `[eval]`'s sources, and `[train] length`; gives whether rows are held out."""
    if source.tool == "trl":
        rows, held_out = of_trl(source, beside)
    elif source.tool == "axolotl":
        rows, held_out = of_axolotl(source, draft, beside)
    else:
        rows, held_out = of_llama_factory(source, beside, info)
    told = ""
    if not rows:
        rows, told = (
            [Rows(table={"use": "jsonl", "path": "train.jsonl"})],
            "The configuration names none: put yours here.",
        )
        draft.differs.append(
            "[[data.source]]: no data set was named that could be converted; the recipe has a place for one"
        )
    for one in rows:
        draft.add("data.source", one.table, told)
    for one in held_out:
        draft.add("eval.source", one.table)
    plain = (source.tool == "llama-factory" and source.get("stage", str) == "pt") or all(one.plain for one in rows)
    if source.get("dataset_text_field", str) and "dataset_text_field" in source.given:
        plain = True
        rows[0].format = {"text": source.get("dataset_text_field", str)}
        source.converted("dataset_text_field", '[[data.stage]] use = "plain-text", text')
    _stages(source, draft, rows, plain=plain, objective=objective)
    _length(source, draft, objective)
    return _share(source, draft) or bool(held_out)


def _stages(source: Source, draft: Draft, rows: list[Rows], *, plain: bool, objective: str) -> None:
    formats = [one.format for one in rows if one.format and not one.plain]
    if plain:
        draft.add("data.stage", {"use": "plain-text", **rows[0].format})
        for key in ("train_on_inputs", "train_on_prompt", "mask_history", "chat_template", "template"):
            source.needless(key, "whole texts are trained on")
    else:
        if formats:
            draft.add("data.stage", formats[0])
        if any(one != formats[0] for one in formats) or (formats and len(formats) < len(rows)):
            draft.differs.append(
                "[[data.stage]]: sources are of several formats, and one stage reads them all: ft data tells"
            )
        draft.add("data.stage", _chat(source, draft, rows))
    _cut_and_packed(source, draft, plain=plain, objective=objective)


def _cut_and_packed(source: Source, draft: Draft, *, plain: bool, objective: str) -> None:
    pack = any(source.values.get(key) not in (None, False) for key in ("packing", "sample_packing", "neat_packing"))
    if objective != "sft" and pack:
        source.could_not("packing", "answers that are compared are not packed")
        source.could_not("sample_packing", "answers that are compared are not packed")
        pack = False
    policy = _policy(source, plain=plain)
    if pack or policy != "right":
        if objective == "sft":
            draft.add("data.stage", {"use": "tokenize"})
        draft.add("data.stage", {"use": "truncate", **({"policy": policy} if policy != "right" else {})})
    if pack:
        draft.add("data.stage", {"use": "pack"}, "Several rows to one of `length` tokens, none of which sees another.")
    for key in ("packing", "sample_packing", "neat_packing", "max_packed_sequence_len"):
        if pack and source.has(key) and source.values[key] is not False:
            source.converted(key, '[[data.stage]] use = "pack"')


def _policy(source: Source, *, plain: bool) -> str:
    """What becomes of long rows."""
    if source.tool == "axolotl":
        said = source.get("excess_length_strategy", str) or "drop"
        source.converted("excess_length_strategy", '[[data.stage]] use = "truncate", policy')
        return "split" if plain else "right" if said == "truncate" else "drop"
    if source.has("truncation_mode"):
        source.converted("truncation_mode", '[[data.stage]] use = "truncate", policy')
    if plain and source.tool == "llama-factory":
        return "split"
    return "left" if source.get("truncation_mode", str) == "keep_end" else "right"


def _chat(source: Source, draft: Draft, rows: list[Rows]) -> dict[str, Any]:
    """The table of the stage `chat`."""
    table: dict[str, Any] = {"use": "chat", **_template(source, draft, rows)}
    everything = any(one.everything for one in rows)
    for key in ("train_on_inputs", "train_on_prompt"):
        if source.get(key, bool):
            everything = True
            source.converted(key, 'loss = "all"')
    if everything:
        table["loss"] = "all"
    elif source.get("mask_history", bool):
        table["loss"] = "completion"
        source.converted("mask_history", 'loss = "completion"')
    _trl_loss(source, draft)
    for key in ("default_system_message", "default_system"):
        if (system := source.get(key, str)) is not None:
            table["system"] = system
            source.converted(key, '[[data.stage]] use = "chat", system')
    variables = source.values.get("chat_template_kwargs")
    if isinstance(variables, dict) and variables:
        table["variables"] = variables
        source.converted("chat_template_kwargs", '[[data.stage]] use = "chat", variables')
    if source.has("enable_thinking"):
        source.could_not(
            "enable_thinking", 'variables = { enable_thinking = false } of "chat", where the template has it'
        )
    return table


def _trl_loss(source: Source, draft: Draft) -> None:
    """What TRL trains on, beside what is trained on here."""
    if source.tool == "trl" and not source.get("assistant_only_loss", bool) and "objective" not in draft.tables:
        draft.differs.append(TRL_LOSS)
        source.needless("assistant_only_loss", "answers alone are trained on, which is told as different")
    elif source.has("assistant_only_loss"):
        source.converted("assistant_only_loss", 'loss = "assistant", as is the default')
    if source.has("completion_only_loss"):
        right = source.get("completion_only_loss", bool)
        (source.converted if right else source.could_not)("completion_only_loss", "only answers are trained on")


def _template(source: Source, draft: Draft, rows: list[Rows]) -> dict[str, Any]:
    key = "template" if source.tool == "llama-factory" else "chat_template"
    jinja = source.get("chat_template_jinja", str)
    said = source.get(key, str) or next((one.template for one in rows if one.template), "")
    if (path := source.get("chat_template_path", str)) is not None:
        source.converted("chat_template_path", "template_file, where it is a file")
        return {"template_file": path} if Path(path).suffix in (".jinja", ".j2", ".jinja2") else {}
    if jinja or "{%" in said or "{{" in said:
        text, name = jinja or said, f"{draft.value('', 'name')}.jinja"
        draft.files[name] = text
        for one in (key, "chat_template_jinja"):
            source.converted(one, f'[[data.stage]] use = "chat", template_file = "{name}"')
        return {"template_file": name}
    if said in TEMPLATES:
        source.converted(key, f'[[data.stage]] use = "chat", template = "{TEMPLATES[said]}"')
        return {"template": TEMPLATES[said]}
    source.converted(key, "the tokenizer's own template, as is the default")
    if said and not said.startswith("tokenizer_default"):
        draft.differs.append(f'chat: no template "{said}" is shipped; the tokenizer\'s own is taken')
    return {}


def _length(source: Source, draft: Draft, objective: str) -> None:
    paired = objective in PAIRED
    for key in LENGTHS:
        length = source.get(key, int)
        if length is None:
            continue
        if not draft.says("train", "length"):
            comment = "both answers of a pair, with their prompt" if paired else ""
            told = "" if key in source.given else f"the default of {source.tool}"
            draft.set("train", "length", 2 * length if paired else length, "; ".join(filter(None, (comment, told))))
            source.converted(key, "[train] length" + (", twice: a row holds both answers" if paired else ""))
        else:
            source.needless(key, "[train] length is for all rows")


def _share(source: Source, draft: Draft) -> bool:
    """Held-out rows as a share of all; gives whether there are some."""
    mixture = source.values.get("dataset_mixture")
    inner = mixture.get("test_split_size") if isinstance(mixture, dict) else None
    if isinstance(inner, (int, float)) and 0 < inner < 1:
        draft.set("eval", "fraction", float(inner))
        return True
    for key in ("val_set_size", "val_size", "test_split_size"):
        share = source.get(key, float)
        if share is not None and 0 < share < 1:
            draft.set("eval", "fraction", share)
            source.converted(key, "[eval] fraction")
            return True
        if share:
            source.could_not(key, "[eval] fraction is a share of the rows, not a number of them")
        elif share == 0:
            source.needless(key, "no rows are held out")
    return False
