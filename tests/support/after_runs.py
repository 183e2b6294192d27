"""Finished runs of the tiny model, for the tests of what comes after training."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w

from fitune.cli.main import main
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe, write_tiny_data
from fitune.train.run import run

TRAINED: dict[str, object] = {
    "adapter": {"use": "lora", "targets": "all-linear"},
    "train": {"steps": 6, "learning_rate": 0.05},
    "data": {"cache": False},
}
"""Changes to the tiny recipe after which the adapter does something, and nothing is kept outside of the run."""


def finished(directory: Path, *overrides: str, **changes: object) -> Path:
    """Train in `directory/run` as `ft run` does; gives the run's directory. The data lie in `directory/recipe`.

    Evaluated on four rows of their own: loss, and answers of at most eight tokens.
    """
    recipe = write_recipe(directory / "recipe", {**TRAINED, **changes})
    held_out = write_tiny_data(directory / "recipe" / "held_out.jsonl", rows=4)
    inside = f'eval={{exact_match=true, max_new_tokens=8, source=[{{use="jsonl", path="{held_out}"}}]}}'
    registry = open_registry()
    out = directory / "run"
    out.mkdir()
    run(read_recipe(recipe, registry, [inside, *overrides]), registry, out)
    return out


def without(recipe: Path, table: str) -> None:
    """Take a table out of a recipe that a run has written."""
    values = tomli.loads(recipe.read_text(encoding="utf-8"))
    del values[table]
    recipe.write_text(tomli_w.dumps(values), encoding="utf-8")


def evaluations(directory: Path) -> list[dict[str, Any]]:
    """What a run found on its held-out data, before and after training."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == "evaluation"]


def ft(*arguments: object, stdin: str | None = None) -> tuple[str, str]:
    """What `ft` prints, on standard output and standard error."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr(sys, "stdin", StringIO(stdin or ""))
        main([*map(str, arguments), "--no-third-party"])
    return out.getvalue(), err.getvalue()


def refused(*arguments: object, stdin: str | None = None) -> str:
    """The one line with which `ft` refuses."""
    err = StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", err)
        patch.setattr(sys, "stdin", StringIO(stdin or ""))
        with pytest.raises(SystemExit) as raised:
            main([*map(str, arguments), "--no-third-party"])
    assert raised.value.code == 2
    (line,) = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")
