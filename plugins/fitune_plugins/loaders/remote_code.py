"""What a model's repository may run: nothing, unless it is trusted; and then code of one commit, which is named.

Beside Python code (`auto_map`), a configuration can name a compiled kernel of the hub as its attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fitune import ModelError, Problem
from fitune_plugins.text_files import json_of

COMMIT = re.compile(r"[0-9a-f]{40}")

NEEDED = (
    'it needs Python code of its own, which is not run. If you trust that code: use = "hf", trust_remote_code = true, '
    "a commit as its revision, and --trust-remote-code on the command line"
)

FLASH = "flash_attention"
"""What names of attention begin with for which transformers takes a kernel of the hub where the package `kernels` is
installed, and flash-attn is not, or not for this model."""

KERNEL = "implementation"
"""What every key has in its name that names what computes attention or experts: `attn_implementation`,
`_attn_implementation_internal`, `experts_implementation` ..."""

ALIASES = "attribute_map"
"""The key under which a configuration may give its keys other names."""


def code_problems(
    id: str | None, path: Path | None, revision: str, code_revision: str | None, trust: bool
) -> Iterable[Problem]:
    """What must be pinned before code of a repository may run."""
    if not trust:
        if code_revision is not None:
            what = '"code_revision" has no effect without trust_remote_code'
            yield Problem(key="code_revision", what=what, fix="Remove it")
        return
    fix = "Name a commit, with all 40 digits: a branch or a tag may be another tomorrow"
    if path is None and id is not None and not COMMIT.fullmatch(revision):
        yield Problem(key="revision", what=f'code of {id} would run, and "{revision}" is no commit', fix=fix)
    if code_revision is not None and not COMMIT.fullmatch(code_revision):
        yield Problem(key="code_revision", what=f'"{code_revision}" is no commit', fix=fix)
    elsewhere = sorted(_repositories(path)) if path is not None and code_revision is None else []
    if elsewhere:
        yield Problem(key="path", what=f"its code is that of {elsewhere[0]}", fix=f"Set code_revision. {fix}")


def code_arguments(path: Path | None, revision: str, code_revision: str | None, trust: bool) -> dict[str, Any]:
    """What transformers is told of it. Code that another repository holds is looked for by the same commit, where no
    other is given, and so is not found rather than taken as it is today.
    """
    if not trust:
        return {}
    pinned = code_revision or (None if path is not None else revision)
    return {"trust_remote_code": True, **({} if pinned is None else {"code_revision": pinned})}


def must_name_no_kernel(source: str, arguments: Mapping[str, Any]) -> None:
    """Raise `ModelError` if a model's configuration names code of the hub in place of an attention."""
    from transformers import PreTrainedConfig

    if "gguf_file" in arguments or arguments.get("trust_remote_code"):
        return
    try:
        values, _ = PreTrainedConfig.get_config_dict(source, **arguments)
    except Exception:  # whoever loads it says what is wrong with it
        return
    for key, value in _named_kernels(values):
        raise ModelError(
            f'the model {source} cannot be loaded: its config.json has {key} = "{value}", which is code of the hub '
            "and is not run. Remove it from there"
        )


def _named_kernels(values: Any) -> Iterator[tuple[str, str]]:
    """Kernels of the hub that a configuration names, at any depth: for the whole model, for parts of it, in tables and
    lists, and under a key that stands for another. Each as (key, what it says).
    """
    from transformers.utils.import_utils import is_kernels_available

    flash: bool = is_kernels_available()
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            for name, inner in value.items():
                if key == ALIASES and isinstance(inner, str) and KERNEL in inner.lower():
                    yield f"{ALIASES}.{name}", inner
                named = key if KERNEL in key.lower() else str(name)  # what is inside of such a table is of that table
                waiting.append((named, inner))
        elif isinstance(value, list | tuple):
            waiting += [(key, inner) for inner in value]
        elif isinstance(value, str) and KERNEL in key.lower() and ("/" in value or (flash and FLASH in value)):
            yield key, value


def _repositories(path: Path) -> set[str]:
    """Other repositories that the configuration in a directory takes code from, as "owner/name--module.Class"."""
    found: set[str] = set()
    for name in ("config.json", "tokenizer_config.json"):
        try:
            values = json_of(path / name)
        except (OSError, ValueError):
            continue
        classes = values.get("auto_map", {}) if isinstance(values, dict) else {}
        listed = classes.values() if isinstance(classes, dict) else [classes]
        for one in listed:
            for text in one if isinstance(one, list) else [one]:
                if isinstance(text, str) and "--" in text:
                    found.add(text.partition("--")[0])
    return found
