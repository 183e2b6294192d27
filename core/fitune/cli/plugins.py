"""`ft plugins`: what is installed, and the options of each."""

from __future__ import annotations

import click

from fitune.cli.own_plugins import check, new
from fitune.cli.printing import say, say_json
from fitune.cli.settings import Settings, switches
from fitune.errors import PluginError, nearest
from fitune.plugin.options import describe
from fitune.plugin.provided import Plugin, Provided
from fitune.plugin.registry import KINDS, Registry
from fitune.runs.history.words import aligned


@click.group("plugins", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@switches
@click.pass_context
def plugins_command(context: click.Context, as_json: bool) -> None:
    """List the plugins that are installed and what they provide."""
    if context.invoked_subcommand is not None:
        return
    registry = context.ensure_object(Settings).registry()
    if as_json:
        say_json(rows(registry))
    else:
        say(table(registry))


@plugins_command.command()
@click.argument("name")
@switches
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show the options of every provider called NAME, or of a plugin of that name: types, defaults, meaning."""
    registry = settings.registry()
    found: list[Provided] = [p for p in registry.provided if name in (p.record.name, p.plugin)]
    if not found and name in registry.plugins:
        cause = registry.plugins[name].cause
        raise PluginError(f'the plugin "{name}" is broken: {cause}' if cause else f'"{name}" has no options to show')
    if not found:
        raise PluginError(f'no plugin provides "{name}". {nearest(name, {p.record.name for p in registry.provided})}')
    say("\n\n".join(details(provided) for provided in found))


plugins_command.add_command(new)
plugins_command.add_command(check)


def rows(registry: Registry) -> list[dict[str, object]]:
    """One entry a provider, and one for each plugin that provides nothing, broken ones included."""
    found: list[dict[str, object]] = []
    for plugin in registry.plugins.values():
        provided = [p for p in registry.provided if p.plugin == plugin.name]
        found += [_row(plugin, p, registry.name_of(p)) for p in provided] or [_row(plugin, None, None)]
    kinds = list(KINDS.values())
    return sorted(found, key=lambda r: (kinds.index(str(r["kind"])) if r["kind"] else len(kinds), str(r["name"])))


def table(registry: Registry) -> str:
    """The same for people: a line a provider; below them the broken plugins, with their causes."""
    entries = rows(registry)
    good = [e for e in entries if e["status"] == "ok"]
    lines = aligned(
        [("KIND", "NAME", "PLUGIN", "VERSION", "SUMMARY")]
        + [(str(e["kind"] or "events"), str(e["name"] or "-"), str(e["plugin"]), str(e["version"] or "-"),
            str(e["summary"] or ", ".join(_hooks(e)))) for e in good]
    )  # fmt: skip
    bad = [e for e in entries if e["status"] != "ok"]
    if bad:
        causes = [(str(e["name"] or e["plugin"]), str(e["version"] or "-"), str(e["status"])) for e in bad]
        lines += ["", "BROKEN", *aligned(causes)]
    return "\n".join(lines)


def details(provided: Provided) -> str:
    """A provider with all of its options."""
    record = provided.record
    lines = [f"{record.name} ({provided.kind}, plugin {provided.plugin})", f"  {record.summary}"]
    options = describe(record.options)
    for option in options:
        default = "required" if option.default is None else f"default {option.default}"
        lines += ["", f"  {option.name}: {option.type}; {default}"]
        if option.doc:
            lines.append(f"      {option.doc}")
    return "\n".join(lines if options else [*lines, "", "  no options"])


def _row(plugin: Plugin, provided: Provided | None, use: str | None) -> dict[str, object]:
    status = "ok" if plugin.cause is None else f"broken: {plugin.cause}"
    return {
        "name": provided.record.name if provided else None,
        "use": use,
        "kind": provided.kind if provided else None,
        "summary": provided.record.summary if provided else None,
        "plugin": plugin.name,
        "origin": plugin.origin,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "path": plugin.path,
        "hooks": list(plugin.hooks),
        "status": status,
    }


def _hooks(entry: dict[str, object]) -> list[str]:
    hooks = entry["hooks"]
    return [str(hook) for hook in hooks] if isinstance(hooks, list) else []
