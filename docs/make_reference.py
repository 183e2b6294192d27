"""Writes docs/reference.md: every command, every key of a recipe, every option of the built-in plugins.

python docs/make_reference.py            writes it
python docs/make_reference.py --check    exits with 1 if it is not up to date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from fitune.cli.main import cli
from fitune.cli.settings import Settings
from fitune.plugin.options import describe
from fitune.plugin.provided import Provided, ages
from fitune.plugin.recipe import Checkpoint, Data, Evaluation, General, Memory, NewTokens, Train, Weight
from fitune.plugin.registry import KINDS, Registry
from fitune.recipe.renamed import LISTENERS, REMOVED_IN, SINCE, are_gone

PAGE = Path(__file__).with_name("reference.md")
HEAD = """\
# Reference

<!-- Made by docs/make_reference.py from the code: change it there. -->
"""
TABLES: dict[str, tuple[type, str]] = {
    "above the first table": (General, ""),
    "`[model]`, beside the plugin's own options": (NewTokens, ""),
    "`[memory]`": (Memory, "Beside these, `[[memory.strategy]]`, each served by the plugin it names."),
    "`[data]`": (Data, "Beside these, `[[data.source]]` and `[[data.stage]]`, each served by the plugin it names."),
    "`[[data.source]]`, beside the plugin's own options": (Weight, ""),
    "`[train]`": (Train, ""),
    "`[eval]`": (Evaluation, "Beside these, `[[eval.source]]`. The stages are those of `[data]`."),
    "`[checkpoint]`": (Checkpoint, ""),
}
"""The tables that the core reads: `[model]`, `[adapter]`, `[[memory.strategy]]` and `[[listener]]` are all the
plugins' own."""


def options(dataclass: type) -> Iterator[str]:
    """A line for each option."""
    for option in describe(dataclass):
        default = "**required**" if option.default is None else f"default `{option.default}`"
        aged = f" **Deprecated**: it {option.deprecated}." if option.deprecated else ""
        aged += f" Formerly {', '.join(f'`{name}`' for name in option.formerly)}." if option.formerly else ""
        yield f"- `{option.name}`: {option.type}; {default}. {option.doc}".rstrip() + aged


def deprecated_keys() -> Iterator[str]:
    """A line for each key of 0.1 that is an option of a listener now."""
    for (table, key), (listener, option) in LISTENERS.items():
        place = f"`{option}` of the listener `{listener}`"
        yield f"- `[{table}] {key}`: since {SINCE}, gone in {REMOVED_IN}; in its place {place}."


def ages_of(registry: Registry, provided: Provided) -> list[str]:
    """What is deprecated of a provider itself, as a paragraph; nothing where that is nothing."""
    told = list(ages(provided, registry.plugins[provided.plugin]))
    return [f"**Deprecated**: {'. '.join(told)}.", ""] if told else []


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Each command's full name and its help."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            yield from commands(inner, click.Context(inner, info_name=name, parent=context))


def page() -> str:
    """The whole page."""
    registry = Registry.open(third_party=False)
    parts = [HEAD, "## Commands\n"]
    # A width of its own, so that the page does not depend on the terminal, and no plugin that happens to be here.
    context = click.Context(
        cli, info_name="ft", obj=Settings(third_party=False), terminal_width=100, **cli.context_settings
    )
    parts += [f"### `{path}`\n\n```text\n{text}\n```\n" for path, text in commands(cli, context)]
    parts.append("## Recipe\n")
    for title, (dataclass, note) in TABLES.items():
        parts.append("\n".join([f"### {title}", "", *([note, ""] if note else []), *options(dataclass), ""]))
    if not are_gone():
        parts.append("\n".join(["### Deprecated keys", "", *deprecated_keys(), ""]))
    parts.append("## Built-in plugins\n")
    for kind in KINDS.values():
        for provided in sorted((p for p in registry.provided if p.kind == kind), key=lambda p: p.record.name):
            lines = list(options(provided.record.options)) or ["No options."]
            title = f"### `{provided.record.name}` ({kind})"
            parts.append(
                "\n".join([title, "", f"{provided.record.summary}.", "", *ages_of(registry, provided), *lines, ""])
            )
    return "\n".join(parts)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(None if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE} is out of date: run {sys.argv[0]}")
    PAGE.write_text(page(), encoding="utf-8")
