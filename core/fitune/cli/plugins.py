"""`ft plugins`: what is installed, where each comes from and what it changes, and the options of each."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from fitune.cli.list_plugins import rows, table, wrapped
from fitune.cli.own_plugins import check, json_option, new
from fitune.cli.printing import say, say_json
from fitune.cli.settings import RecipePath, Settings, loading_switches, switches
from fitune.errors import PluginError, nearest
from fitune.plugin.options import Option, describe
from fitune.plugin.provided import Provided, ages, gone_as, meant
from fitune.plugin.registry import Registry


@click.group("plugins", invoke_without_command=True)
@json_option
@click.option("--why", metavar="NAME", help="Tell where NAME comes from, which keys it owns, and what it changes.")
@click.option("--recipe", type=RecipePath(), metavar="RECIPE", help="The run in which --why tells what it changes.")
@loading_switches
@click.pass_context
def plugins_command(context: click.Context, as_json: bool, why: str | None, recipe: Path | None) -> None:
    """List the plugins that are installed and what they provide."""
    if context.invoked_subcommand is not None:
        _must_be_unset(context.invoked_subcommand, {"--json": as_json, "--why": why, "--recipe": recipe})
        return
    registry = context.ensure_object(Settings).registry()
    if why is not None:
        _tell_why(registry, why, recipe, as_json=as_json)
        return
    _must_be_unset("", {"--recipe": recipe})
    if as_json:
        say_json(rows(registry))
    else:
        say(table(registry))


def _must_be_unset(command: str, options: dict[str, object]) -> None:
    """Raise `PluginError` if an option is given that would have no effect."""
    for option, value in options.items():
        if value not in (None, False):
            fix = f"Write: ft plugins {command} ... {option}" if option == "--json" else "It is for --why NAME"
            raise PluginError(f"{option} has no effect there. {fix}")


def _tell_why(registry: Registry, name: str, recipe: Path | None, *, as_json: bool) -> None:
    from fitune.cli.why_plugin import lines, why

    found = why(registry, name, recipe)
    if as_json:
        say_json([asdict(one) for one in found])
    else:
        say("\n\n".join("\n".join(lines(one)) for one in found))


@plugins_command.command()
@click.argument("name")
@json_option
@switches
@click.pass_obj
def show(settings: Settings, name: str, as_json: bool) -> None:
    """Show the options of every provider called NAME, or of a plugin of that name: types, defaults, meaning."""
    registry = settings.registry()
    found: list[Provided] = [p for p in registry.provided if name in (p.record.name, registry.name_of(p), p.plugin)]
    found = found or meant(registry.provided, registry.plugins, name)  # by a name that it had
    if not found and name in registry.plugins:
        cause = registry.plugins[name].cause
        raise PluginError(f'the plugin "{name}" is broken: {cause}' if cause else f'"{name}" has no options to show')
    if not found:
        names = {p.record.name for p in registry.provided}
        gone = gone_as(registry.gone, registry.plugins, name)
        raise PluginError(gone or f'no plugin provides "{name}". {nearest(name, names)}')
    if as_json:
        say_json([_values(registry, one) for one in found])
    else:
        say("\n\n".join(details(registry, one) for one in found))


plugins_command.add_command(new)
plugins_command.add_command(check)


def details(registry: Registry, provided: Provided) -> str:
    """A provider with all of its options."""
    record = provided.record
    head = f"{registry.name_of(provided)} ({provided.kind}, plugin {provided.plugin})"
    lines = [head, *wrapped(f"  {record.summary}", 2)]
    lines += [line for text in ages(provided, registry.plugins[provided.plugin]) for line in wrapped(f"  {text}", 2)]
    options = describe(record.options, registry.plugins[provided.plugin].release)
    for option in options:
        default = "required" if option.default is None else f"default {option.default}"
        lines += ["", *wrapped(f"  {option.name}: {option.type}; {default}", 6)]
        for text in (option.doc, option.deprecated, _former(option)):
            if text:
                lines += wrapped(f"      {text}", 6)
    return "\n".join(lines if options else [*lines, "", "  no options"])


def _values(registry: Registry, provided: Provided) -> dict[str, object]:
    """The same as plain values."""
    return {
        "use": registry.name_of(provided),
        "kind": provided.kind,
        "plugin": provided.plugin,
        "summary": provided.record.summary,
        "deprecated": list(ages(provided, registry.plugins[provided.plugin])),
        "options": [
            asdict(option) for option in describe(provided.record.options, registry.plugins[provided.plugin].release)
        ],
    }


def _former(option: Option) -> str:
    return f"formerly {', '.join(option.formerly)}" if option.formerly else ""
