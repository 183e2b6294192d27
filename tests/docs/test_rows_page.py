"""The rows that docs/data.md shows are read as it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fitune.plugin.records import DataStage
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from support.paths import ROOT


def shown() -> list[tuple[str, dict[str, Any]]]:
    """Each format of the page with its row."""
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    return [
        (name, json.loads(row)) for name, row in re.findall(r"^\| `([\w-]+)` \| `(\{.+\})` \|$", page, re.MULTILINE)
    ]


def test_each_is_told_by_its_columns(tmp_path: Path) -> None:
    from fitune.data.prepare import context_of
    from fitune.data.tokenizer import tokenizer_of

    registry, found = open_registry(), shown()
    assert [name for name, _ in found] == ["messages", "sharegpt", "prompt-completion", "alpaca"]
    recipe_path = write_recipe(tmp_path, {})
    recipe = read_recipe(recipe_path, registry)
    context = context_of(recipe, tokenizer_of(recipe))
    source, detect = registry.find(DataStage, "jsonl"), registry.find(DataStage, "detect")
    for name, row in found:
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(row) + "\n", encoding="utf-8")
        rows = source.make(source.options(path=file), context)(iter(()))
        (read,) = detect.make(detect.options(), context)(rows)
        assert [message["content"] for message in read.messages][-1] == "1", name
        assert "Count" in read.messages[0]["content"], name
