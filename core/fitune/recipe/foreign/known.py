"""All keys of other tools that are known, tool by tool, and what an error says of each."""

from __future__ import annotations

from fitune.recipe.foreign import keys_data, keys_model, keys_run, keys_train
from fitune.recipe.foreign.key import Known, Tool

TABLES = (keys_train, keys_model, keys_data, keys_run)

TRAINER: dict[str, Known] = {name: key for table in TABLES for name, key in table.TRAINER.items()}
"""Keys of transformers' TrainingArguments, which all three have, axolotl but in part."""

OWN: dict[Tool, dict[str, Known]] = {
    "trl": {name: key for table in TABLES for name, key in table.TRL.items()},
    "axolotl": {name: key for table in TABLES for name, key in table.AXOLOTL.items()},
    "llama-factory": {name: key for table in TABLES for name, key in table.LLAMA_FACTORY.items()},
}
"""Keys of each tool's own."""

OTHERS: dict[str, Known] = {name: key for table in TABLES for name, key in table.OTHERS.items()}
"""Keys of Unsloth, ms-swift and others."""

SETS: dict[str, Known] = keys_data.AXOLOTL_SET
"""Keys of one of axolotl's `datasets`."""


def keys_of(tool: Tool) -> dict[str, Known]:
    """All that one tool has."""
    return {**TRAINER, **OWN[tool]}


ALL: dict[str, Known] = {**OTHERS, **OWN["llama-factory"], **OWN["axolotl"], **OWN["trl"], **TRAINER}
"""All by name. Where two tools mean something else by a name, the later counts."""
