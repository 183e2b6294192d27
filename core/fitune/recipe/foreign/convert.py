"""A configuration of another tool as a recipe, with an account of each of its keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune.errors import RecipeError
from fitune.plugin.registry import Registry
from fitune.recipe.draft import Draft
from fitune.recipe.foreign.key import Known, Tool
from fitune.recipe.foreign.known import keys_of
from fitune.recipe.foreign.source import Account, Source, parse
from fitune.recipe.foreign.to_adapter import adapter
from fitune.recipe.foreign.to_data import data
from fitune.recipe.foreign.to_model import model
from fitune.recipe.foreign.to_objective import objective
from fitune.recipe.foreign.to_rest import cards, checkpoints, evaluation, listeners
from fitune.recipe.foreign.to_sources_llama_factory import INFO
from fitune.recipe.foreign.to_train import train

TRAINERS = ("sft", "dpo", "kto", "reward", "orpo", "cpo")
"""Of TRL."""

KINDS = ("axolotl", "llama-factory", *(f"trl-{trainer}" for trainer in TRAINERS))
"""What a configuration may be said to be of."""

OF_TRAINER = {"per_device_train_batch_size": 8, "num_train_epochs": 3.0, "per_device_eval_batch_size": 8,
              "learning_rate": 5e-5, "lr_scheduler_type": "linear", "save_steps": 500}  # fmt: skip
"""Defaults of transformers' TrainingArguments that are other than a recipe's."""

OF_TRL = {**OF_TRAINER, "gradient_checkpointing": True, "max_length": 1024, "lora_r": 16, "lora_alpha": 32,
          "lora_dropout": 0.05}  # fmt: skip

RATES = {"sft": 2e-5, "dpo": 1e-6, "kto": 1e-6, "reward": 1e-4, "orpo": 1e-6, "cpo": 1e-6}
"""Learning rates of TRL's trainers."""

DEFAULTS: dict[Tool, Mapping[str, Any]] = {
    "trl": OF_TRL,
    "axolotl": {"micro_batch_size": 1, "num_epochs": 1.0, "lr_scheduler": "cosine", "sequence_len": 512},
    "llama-factory": {**OF_TRAINER, "cutoff_len": 2048, "lora_rank": 8, "lora_target": "all", "finetuning_type": "lora",
                      "pref_loss": "sigmoid"},
}  # fmt: skip
"""What each tool does where nothing is said, where a recipe does another thing."""

PYTHON = (
    "Python is not run, since it may do anything: docs/migration.md says what each key of Unsloth, TRL and others is "
    "here; a notebook of LLaMA-Factory writes its arguments to a .json file, which can be converted"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What came of it."""

    kind: str
    """One of `KINDS`."""
    text: str
    """The recipe."""
    accounts: tuple[Account, ...]
    """What became of each key that the configuration has."""
    differs: tuple[str, ...]
    """What is different, in sentences without their full stop."""
    files: Mapping[str, str]
    """Files that are to stand beside the recipe."""


def kind_of(values: Mapping[str, Any]) -> str:
    """Which tool's a configuration is, by its keys. Raises `RecipeError` where they do not tell."""
    keys = set(values)
    if "base_model" in keys:
        return "axolotl"
    if keys & {"finetuning_type", "cutoff_len", "lora_target", "lora_rank"} or {"stage", "template"} <= keys:
        return "llama-factory"
    if "model_name_or_path" not in keys:
        raise RecipeError(
            ["neither base_model (axolotl) nor model_name_or_path (TRL and others) is there. Say whose it is: --from"]
        )
    if keys & {"desirable_weight", "undesirable_weight"}:
        return "trl-kto"
    if "center_rewards_coefficient" in keys:
        return "trl-reward"
    if keys & {"simpo_gamma", "cpo_alpha"}:
        return "trl-cpo"
    return "trl-dpo" if keys & {"beta", "precompute_ref_log_probs", "max_prompt_length", "rpo_alpha"} else "trl-sft"


def convert(
    text: str, path: Path, registry: Registry, *, kind: str = "", to: Path | None = None, info: Path | None = None
) -> Conversion:
    """A recipe of the configuration at a path, to be written to another. Raises `RecipeError` for what is none."""
    if path.suffix in (".py", ".ipynb"):
        raise RecipeError([f"{path}: {PYTHON}"])
    values = parse(text, str(path))
    kind = kind or kind_of(values)
    name, _, trainer = kind.partition("-") if kind.startswith("trl") else (kind, "", "sft")
    tool: Tool = "trl" if name == "trl" else "axolotl" if name == "axolotl" else "llama-factory"
    defaults = {**DEFAULTS[tool], **({"learning_rate": RATES[trainer]} if tool == "trl" else {})}
    if "max_seq_length" in values:
        defaults.pop("max_length", None)
    source = Source(tool=tool, values={**defaults, **values}, given=frozenset(values))
    draft = Draft()
    _fill(source, draft, registry, path, trainer, to or Path(path.name), info)
    draft.head = _head(path, kind, source, draft)
    return Conversion(
        kind=kind,
        text=draft.text(),
        accounts=tuple(source.accounts.values()),
        differs=tuple(draft.differs),
        files=draft.files,
    )


def _fill(
    source: Source, draft: Draft, registry: Registry, path: Path, trainer: str, to: Path, info: Path | None
) -> None:
    offered = {provided.record.name: provided.record for provided in registry.provided}
    lora = frozenset(offered["lora"].options.__dataclass_fields__) if "lora" in offered else frozenset()
    beside = to.absolute().parent
    run = source.get("run_name", str) or path.stem
    draft.set("", "name", re.sub(r"[^\w.-]+", "-", run).strip("-.") or "converted")
    source.converted("run_name", "name")
    model(source, draft, beside)
    adapter(source, draft, lora)
    name = objective(source, draft, trainer)
    held_out = data(source, draft, name, beside, info or _info(source, path))
    train(source, draft, frozenset(offered))
    evaluation(source, draft, held_out=held_out)
    checkpoints(source, draft)
    listeners(source, draft)
    cards(source, draft)
    known = keys_of(source.tool)
    _copy(source, draft, known, held_out=held_out)
    source.close(known)


def _info(source: Source, path: Path) -> Path | None:
    """LLaMA-Factory's list of data sets: seen from here, from the configuration, or from above it."""
    if source.tool != "llama-factory":
        return None
    place = source.get("dataset_dir", str) or "data"
    roots = [Path(), *path.absolute().parents[:5]]
    return next((found for root in roots if (found := root / place / INFO).is_file()), None)


def _copy(source: Source, draft: Draft, known: Mapping[str, Known], *, held_out: bool) -> None:
    """Copy the values of keys that a recipe has under another name."""
    for key, one in known.items():
        if one.to is None or not source.has(key) or (key in source.given and not source.is_open(key)):
            continue
        table, name = one.to
        if draft.says(table, name) and key not in source.given:
            continue
        if (table == "eval" and not held_out) or (table == "adapter" and draft.value("adapter", "use") != "lora"):
            continue
        if name == "epochs" and draft.says("train", "steps"):
            continue
        value = source.get(key, one.kind)
        if value is False or (not value and name in ("warmup_steps", "warmup_ratio")):
            source.needless(key, "it is off, as it is here")
            continue
        if draft.says(table, name) and draft.value(table, name) != value:
            source.could_not(key, f"another key says [{table}] {name} already")
            continue
        draft.set(table, name, value, "" if key in source.given else f"the default of {source.tool}")
        source.converted(key, one.says)


def _head(path: Path, kind: str, source: Source, draft: Draft) -> list[str]:
    """The recipe's first lines of comment."""
    lost = [f"  {one.key}: {one.says}" for one in source.accounts.values() if one.outcome == "could not"]
    differs = [f"  {text}" for text in draft.differs]
    return [
        f"{draft.value('', 'name')}, from {path.name} ({kind}) by ft convert.",
        *(["", "Could not be converted:", *lost] if lost else []),
        *(["", "Different:", *differs] if differs else []),
    ]


def numbers(accounts: Sequence[Account]) -> dict[str, int]:
    """How many keys had each outcome."""
    return {name: sum(one.outcome == name for one in accounts) for name in ("converted", "not needed", "could not")}
