"""The table that `ft plugins` prints, no wider than the terminal: by kind, each with what it is and who brought it."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import click

from fitune.errors import FtError
from fitune.plugin.provided import Plugin, Provided
from fitune.plugin.registry import KINDS, Registry

COMMAND = "command"
"""The kind of what `ft_commands` adds."""

NARROWEST, WIDEST = 60, 120
"""Columns that lines are made for, at least and at most."""

NAMES = 24
"""Columns that names have at most, before what stands behind them begins on a line of its own."""

Entry = Mapping[str, object]


def rows(registry: Registry) -> list[dict[str, object]]:
    """One entry a provider and command, and one for each plugin that has neither, broken ones included."""
    found: list[dict[str, object]] = []
    for plugin in registry.plugins.values():
        provided = [one for one in registry.provided if one.plugin == plugin.name]
        own = [_row(plugin, one, registry.name_of(one)) for one in provided]
        own += _commands(registry, plugin)
        found += own or [_row(plugin, None, None)]
    kinds = [*KINDS.values(), COMMAND]
    return sorted(found, key=lambda r: (kinds.index(str(r["kind"])) if r["kind"] else len(kinds), str(r["name"])))


def table(registry: Registry) -> str:
    """The same for people."""
    entries = rows(registry)
    lines: list[str] = []
    for kind in [*KINDS.values(), COMMAND, None]:
        good = [entry for entry in entries if entry["kind"] == kind and not _is_broken(entry)]
        if good:
            lines += ["", _several(kind) if kind else "events"]
            for entry in good:
                said = entry["summary"] if kind else ", ".join(_texts(entry, "hooks"))
                said = (
                    f"{said}{_whose(entry)}" if entry["status"] == "ok" else f"{said}{_whose(entry)}; {entry['status']}"
                )
                lines += _lines(str(entry["use"] or entry["plugin"]), said)
    told = dict.fromkeys((entry["plugin"], text) for entry in entries for text in _texts(entry, "notices"))
    if told:
        lines += ["", "DEPRECATED, and used by plugins"]
        for plugin, text in told:
            lines += _lines(str(plugin), text)
    bad = [entry for entry in entries if _is_broken(entry)]
    if bad:
        lines += ["", "BROKEN"]
        for entry in bad:
            version = f"{entry['version']}: " if entry["version"] else ""
            lines += _lines(str(entry["name"] or entry["plugin"]), f"{version}{entry['status']}")
    return "\n".join(lines[1:])


def wrapped(text: str, indent: int) -> list[str]:
    """A text as lines of the terminal's width, all but the first indented."""
    width = max(NARROWEST, min(shutil.get_terminal_size((80, 24)).columns, WIDEST))
    return textwrap.wrap(
        text, width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False
    ) or [text]  # fmt: skip


def _lines(name: str, text: str) -> Iterator[str]:
    """A name, and behind it, or below it, what it is."""
    indent = NAMES + 4
    if len(name) > NAMES:
        yield f"  {name}"
        yield from (line for line in wrapped(f"{' ' * indent}{text}", indent))
    else:
        yield from wrapped(f"  {name.ljust(NAMES)}  {text}", indent)


def _whose(entry: Entry) -> str:
    """Who brought it, where it does not come with fitune."""
    if entry["origin"] == "built-in":
        return ""
    return f" ({' '.join(str(entry[key]) for key in ('distribution', 'version') if entry[key]) or entry['plugin']})"


def _several(kind: str) -> str:
    return f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"


def _commands(registry: Registry, plugin: Plugin) -> list[dict[str, object]]:
    """What a plugin adds to `ft`."""
    group = click.Group("ft")
    try:
        registry.call_of(plugin.name, "ft_commands", cli=group)
    except FtError as error:
        return [{**_row(plugin, None, None), "kind": COMMAND, "status": f"broken: {error.message}"}]
    return [
        {
            **_row(plugin, None, None),
            "kind": COMMAND,
            "name": name,
            "use": name,
            "summary": command.get_short_help_str(200),
        }
        for name, command in sorted(group.commands.items())
    ]


def _row(plugin: Plugin, provided: Provided | None, use: str | None) -> dict[str, object]:
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
        "notices": list(plugin.notices),
        "formerly": [mark.name for mark in provided.record.formerly] if provided else [],
        "status": _status(plugin, provided),
    }


def _status(plugin: Plugin, provided: Provided | None) -> str:
    """ "ok", or how it is broken or deprecated."""
    if plugin.cause is not None:
        return f"broken: {plugin.cause}"
    if provided is None or provided.record.deprecated is None:
        return "ok"
    return provided.record.deprecated.told("", plugin.release).sentence().strip().removeprefix("is ")


def _is_broken(entry: Entry) -> bool:
    return str(entry["status"]).startswith("broken: ")


def _texts(entry: Entry, key: str) -> Sequence[str]:
    found = entry[key]
    return [str(text) for text in found] if isinstance(found, list) else []
