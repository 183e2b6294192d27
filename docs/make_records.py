"""Writes docs/records.md from the docstrings of what plugins give and are told, so that it cannot differ from the code.

python docs/make_records.py            writes it
python docs/make_records.py --check    exits with 1 if it is not up to date
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import fitune
from fitune.plugin.deprecation import Marked
from fitune.plugin.relations import Related

PAGE = Path(__file__).with_name("records.md")
HEAD = """\
# Records, one by one

<!-- Made by docs/make_records.py from the docstrings in core/fitune/plugin: change it there. -->

Every class that a plugin gives, is given or is told of, with each field and method, its type, and what it must keep to.
`O` is the class of a plugin's options. What has no default must be given. [plugins.md](plugins.md) tells how to write a
plugin, [hooks.md](hooks.md) where each record is handed over, and [api.md](api.md) has the functions beside them.

"""
GROUPS: Mapping[str, tuple[str, ...]] = {
    "What a plugin offers": (
        "ModelLoader",
        "Adapter",
        "Objective",
        "MemoryStrategy",
        "DataStage",
        "Listener",
        "Launcher",
        "TaskSuite",
        "MemoryTwin",
        "Lever",
        "Fit",
        "Dialogue",
        "Problem",
        "Deprecation",
        "Formerly",
    ),
    "What a memory strategy does": (
        "Strategy",
        "Plan",
        "OptimizerSettings",
        "GradientOwner",
        "MicroBatch",
        "Recorder",
        "StoredQuantization",
    ),
    "What an objective does": ("Criterion", "Outcome", "Scores"),
    "What flows through data stages": (
        "Flow",
        "Takes",
        "Stage",
        "DataContext",
        "Origin",
        "Row",
        "Conversation",
        "Preference",
        "Document",
        "Example",
        "Batch",
    ),
    "What is told of a run": (
        "Recipe",
        "Run",
        "StopRequest",
        "StepReport",
        "MemoryReport",
        "MemoryForecast",
        "RehearsalReport",
        "EvalReport",
        "Answer",
        "CheckpointReport",
        "Recovery",
        "Notice",
    ),
    "What a launcher and a task suite deal with": (
        "Machine",
        "Price",
        "Job",
        "JobState",
        "JobStatus",
        "TaskRequest",
        "TaskScores",
    ),
}
"""The headings of the page, each with the names below it."""

EACH = "what-each-record-has"
"""The anchor of the section of what is common to records."""

ELSEWHERE = frozenset({"NoOptions", "CannotRecord"})
"""Public classes without a field or a method: api.md says what they are."""


@cache
def parsed(module: str) -> ast.Module:
    """The source of a module."""
    return ast.parse(inspect.getsource(importlib.import_module(module)))


def modules() -> dict[str, str]:
    """By each public name, the module that `fitune` has it from."""
    found = (node for node in parsed("fitune").body if isinstance(node, ast.ImportFrom))
    return {alias.name: str(node.module) for node in found for alias in node.names}


def described() -> set[str]:
    """The public names that belong on the page: classes that are no errors, and names of types."""
    values = {name: getattr(fitune, name) for name in fitune.__all__ if name[0].isupper() and not name.isupper()}
    errors = {name for name, v in values.items() if isinstance(v, type) and issubclass(v, BaseException)}
    return set(values) - errors - ELSEWHERE


def section(name: str) -> str:
    """A class or a type's part of the page."""
    module = modules()[name]
    value = getattr(importlib.import_module(module), name)
    if not inspect.isclass(value):
        return _alias(name, module)
    entries = list(_entries(value))
    if issubclass(value, Related):
        entries.append(f"- and what [each record has](#{EACH})")
    elif issubclass(value, Marked):
        entries += _fields(Marked)
    return f"### `{name}`\n\n{_text(inspect.getdoc(value))}\n\n" + "\n".join(entries)


def of_each() -> str:
    """What every record that is named behind `use` has beside its own fields."""
    fields = "\n".join(_fields(Related) + _fields(Marked))
    return f"### What each record has\n\nThose that recipes name, from `ModelLoader` to `Listener`.\n\n{fields}"


def _fields(of: type[Any]) -> list[str]:
    return list(_entries(of, methods=False))


def _alias(name: str, module: str) -> str:
    body = parsed(module).body
    for number, node in enumerate(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if name in [one.id for one in targets if isinstance(one, ast.Name)] and isinstance(value, ast.expr):
            inside = value.value if isinstance(value, ast.Constant) else None
            text = inside if isinstance(inside, str) else ast.unparse(value)
            return f"### `{name}`\n\n`{text}`\n\n{_text(_string(body, number + 1))}"
    raise ValueError(f"{module} has no type {name}")


def _entries(of: type[Any], *, methods: bool = True) -> Iterator[str]:
    (node,) = (n for n in parsed(of.__module__).body if isinstance(n, ast.ClassDef) and n.name == of.__name__)
    for number, part in enumerate(node.body):
        if isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_"):
            yield _entry(ast.unparse(part), _string(node.body, number + 1))
        elif methods and isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
            yield _entry(_signature(part), ast.get_docstring(part))


def _signature(function: ast.FunctionDef) -> str:
    """A method as it is called; a property as the field that it looks like."""
    returns = ast.unparse(function.returns) if function.returns is not None else "None"
    if any(isinstance(one, ast.Name) and one.id == "property" for one in function.decorator_list):
        return f"{function.name}: {returns}"
    arguments = ast.unparse(function.args).removeprefix("self").removeprefix(", ")
    return f"{function.name}({arguments}) -> {returns}"


def _string(body: list[ast.stmt], number: int) -> str | None:
    """The docstring that stands behind a field."""
    node = body[number] if number < len(body) else None
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return inspect.cleandoc(node.value.value)
    return None


def _entry(code: str, text: str | None) -> str:
    code = " ".join(code.split()).replace("field(default_factory=dict)", "{}")
    what = _text(text).replace("\n\n", "\n\n  ")
    return f"- `{code}`" + (f": {what}" if what else "")


def _text(text: str | None) -> str:
    """Paragraphs, each in a line; a class without words of its own has none."""
    paragraphs = (text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def page() -> str:
    """The whole page. Raises `ValueError` for a public name that stands under no heading."""
    listed = {name for names in GROUPS.values() for name in names}
    if listed != described():
        raise ValueError(f"these differ from what fitune exports: {sorted(listed ^ described())}")
    parts = [f"## {heading}\n\n" + "\n\n".join(map(section, names)) for heading, names in GROUPS.items()]
    parts[0] += "\n\n" + of_each()
    return HEAD + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(None if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE} is out of date: run {sys.argv[0]}")
    PAGE.write_text(page(), encoding="utf-8")
