"""Plugins as a table, as JSON and in full, for `ft plugins`."""

from __future__ import annotations

from collections.abc import Sequence

from fitune.options import describe
from fitune.registry import KINDS, Plugin, Provided, Registry


def rows(registry: Registry) -> list[dict[str, object]]:
    """One entry a provider, and one for each plugin that provides nothing, broken ones included."""
    found: list[dict[str, object]] = []
    for plugin in registry.plugins.values():
        provided = [p for p in registry.provided if p.plugin == plugin.name]
        found += [_row(plugin, p, registry.conflicts(p)) for p in provided] or [_row(plugin, None, [])]
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


def _row(plugin: Plugin, provided: Provided | None, conflicts: Sequence[str]) -> dict[str, object]:
    status = "ok"
    if plugin.cause is not None:
        status = f"broken: {plugin.cause}"
    elif conflicts:
        status = f"name taken: {' and '.join([plugin.name, *conflicts])} provide it"
    return {
        "name": provided.record.name if provided else None,
        "kind": provided.kind if provided else None,
        "summary": provided.record.summary if provided else None,
        "plugin": plugin.name,
        "origin": plugin.origin,
        "version": plugin.version,
        "path": plugin.path,
        "hooks": list(plugin.hooks),
        "status": status,
    }


def _hooks(entry: dict[str, object]) -> list[str]:
    hooks = entry["hooks"]
    return [str(hook) for hook in hooks] if isinstance(hooks, list) else []


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
