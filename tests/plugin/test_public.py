"""What `fitune` exports: named here, documented, light to import."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fitune
from support.paths import ROOT

PUBLIC = (
    "IGNORED", "Adapter", "Answer", "Batch", "CannotRecord", "CheckpointReport", "Conversation", "Criterion",
    "DataContext", "DataError", "DataStage", "Deprecation", "Dialogue", "Document", "EvalReport", "Example",
    "Fit", "Flow", "Formerly", "FtDeprecationWarning", "FtError", "GradientOwner", "Interrupted", "Job",
    "JobState", "JobStatus", "Launcher", "Lever", "Listener", "Machine", "MemoryForecast", "MemoryReport",
    "MemoryStrategy", "MemoryTwin", "MicroBatch", "ModelError", "ModelLoader", "NoOptions", "Notice",
    "Objective", "OptimizerSettings", "Origin", "Outcome", "Plan", "Preference", "PluginError", "Price",
    "Problem", "Recipe", "RecipeError", "Recorder", "Recovery", "RehearsalReport", "Row", "Run", "RunError",
    "Scores", "Stage", "StepReport", "StopRequest", "StoredQuantization", "Strategy", "Takes", "TaskRequest",
    "TaskScores", "TaskSuite", "__version__", "added_modules", "added_tokens", "buckets", "decay_groups",
    "deprecated", "former_names", "has_values", "hookimpl", "mapped_weights", "mend_generation_config",
    "nearest", "one_line", "run", "sentences", "standing_for", "unwrapped",
)  # fmt: skip
"""A name that is added is promised to every plugin; one that is taken away breaks somebody's: CHANGELOG.md says so."""

TEXT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
LIGHT = {
    "fitune": {"annotated_types", "fitune", "pluggy", "typing_extensions"},
    "fitune.testing": {"annotated_types", "fitune", "pluggy", "typing_extensions"},
    "fitune.cli": {"annotated_types", "click", "fitune", "pluggy", "tomli", "typing_extensions"},
}
"""What each imports beside the standard library: no torch, no transformers, no pydantic, no rich."""

every_name = pytest.mark.parametrize("name", PUBLIC)


def documentation(name: str) -> str:
    """What is written at an exported name: its docstring, or the string below its assignment."""
    value = getattr(fitune, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        text = value.__doc__ or ""
        return "" if text.startswith(f"{name}(") else text  # what dataclass writes itself says nothing
    body = ast.parse(inspect.getsource(importlib.import_module(source_of(name)))).body
    for statement, below in itertools.pairwise(body):
        if name in {target.id for target in ast.walk(statement) if isinstance(target, ast.Name) and is_set(target)}:
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    return text
    return ""


def is_set(name: ast.Name) -> bool:
    """Whether a name is assigned to where it stands."""
    return isinstance(name.ctx, ast.Store)


def source_of(name: str) -> str:
    """The module that an exported name is imported from."""
    nodes = ast.parse(inspect.getsource(fitune)).body
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    (module,) = [str(node.module) for node in imports for alias in node.names if alias.name == name]
    return module


def test_the_public_names_are_these() -> None:
    assert sorted(fitune.__all__) == sorted(PUBLIC)
    assert len(set(fitune.__all__)) == len(fitune.__all__)
    missing = [name for name in fitune.__all__ if not hasattr(fitune, name)]
    assert missing == []


@every_name
def test_a_public_name_says_what_it_is(name: str) -> None:
    if name != "__version__":
        assert len(documentation(name)) > 20, name


@every_name
def test_a_public_name_is_in_the_documentation(name: str) -> None:
    assert re.search(rf"(^- |^### |[ ,;(])`{name}`", TEXT, re.MULTILINE), f"docs/api.md does not explain {name}"


@pytest.mark.parametrize("name", [n for n in PUBLIC if inspect.isfunction(getattr(fitune, n))])
def test_a_function_has_an_example_of_its_own_and_types(name: str) -> None:
    _, _, section = TEXT.partition(f"\n### `{name}`\n")
    section = section.partition("\n### ")[0].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    calls = [node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert name in {function.id for function in calls if isinstance(function, ast.Name)}
    function = getattr(fitune, name)
    parameters = inspect.signature(function).parameters
    assert set(function.__annotations__) == {*parameters, "return"}


@pytest.mark.parametrize("name", [n for n in PUBLIC if dataclasses.is_dataclass(getattr(fitune, n))])
def test_a_record_is_frozen_slotted_and_keyword_only(name: str) -> None:
    record: Any = getattr(fitune, name)
    assert record.__dataclass_params__.frozen
    assert "__slots__" in vars(record)
    assert all(field.kw_only for field in dataclasses.fields(record))


def test_the_page_names_nothing_that_is_not_exported() -> None:
    explained = set(re.findall(r"^- `(\w+)`:", TEXT, re.MULTILINE)) | set(re.findall(r"^### `(\w+)`", TEXT, re.M))
    assert explained <= set(PUBLIC)
    assert len(explained) > 40


@pytest.mark.parametrize("module", LIGHT)
def test_its_import_stays_light(module: str, tmp_path: Path) -> None:
    code = f"import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {name.partition(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names)
    assert {name for name in found if not name.endswith("__mypyc")} <= LIGHT[module]


def test_loading_all_plugins_stays_light(tmp_path: Path) -> None:
    code = "import sys\nfrom fitune.cli import main\ntry:\n    main(['plugins'])\nfinally:\n    print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "memory strategies" in done.stdout, done.stderr
    loaded = set(done.stdout.split())
    assert "fitune_plugins.memory.nf4" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "peft", "accelerate", "datasets", "pydantic", "numpy", "rich"})
