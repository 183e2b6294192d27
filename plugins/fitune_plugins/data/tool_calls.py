"""Tool calls and descriptions of tools, checked and brought into the form that chat templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fitune import Origin
from fitune_plugins.data.row import bad, parsed, shown, unpacked

VALUES = ("default", "const", "enum", "example", "examples")
"""Keys of a tool's JSON schema under which null is a value; under any other it says that nothing is there."""


class Arguments(dict[str, Any]):
    """The arguments of a call as an object, with their JSON text: some templates take the one, some the other."""

    def __init__(self, values: Mapping[str, Any], written: str | None = None) -> None:
        """`written` is the text where the row has them as text; it is kept as it stands there."""
        super().__init__(values)
        self.written = json.dumps(values, ensure_ascii=False) if written is None else written


def calls(value: object, origin: Origin, where: str) -> list[dict[str, Any]]:
    """The tool calls of a message, each with its `Arguments`."""
    value = unpacked(value, origin, f'{where}: "tool_calls"', "a list of calls")
    if not isinstance(value, list):
        raise bad(origin, f'{where}: "tool_calls" is {shown(value)}, not a list')
    return [_call(call, origin, where) for call in value]


def _call(call: object, origin: Origin, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        wanted = '{"function": {"name": "...", "arguments": {}}}'
        raise bad(origin, f"{where}: a tool call is {shown(call)}", f"It takes: {wanted}")
    taken = ("function", "name", "arguments", "type")
    rest = {key: part for key, part in call.items() if key not in taken and part is not None}
    arguments = _arguments(function, origin, where)
    return {"type": "function", **rest, "function": {"name": function["name"], "arguments": arguments}}


def _arguments(function: Mapping[str, Any], origin: Origin, where: str) -> Arguments:
    what = f'{where}: the arguments of "{function["name"]}"'
    given = function.get("arguments") or {}
    values = given
    if isinstance(given, str):
        try:
            values = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError) as error:
            raise bad(origin, f"{what} are not JSON: {shown(given)}", "Write an object") from error
    if not isinstance(values, Mapping):
        raise bad(origin, f"{what} are {shown(values)}", "Write an object")
    return Arguments(values, given if isinstance(given, str) and given.strip() else None)


def tools(value: object, origin: Origin, what: str) -> tuple[Mapping[str, Any], ...]:
    """Descriptions of tools, given as a list or as JSON; none where the value is empty."""
    value = parsed(value, origin, what, "a list of tools")
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise bad(origin, f"{what} is {shown(value)}", "Write a list of tools, each an object")
    return tuple(_stated(tool) for tool in value)


def _stated(schema: Any) -> Any:
    """A description without the nulls that stand for what it does not say."""
    if isinstance(schema, list):
        return [_stated(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: part if key in VALUES and not isinstance(part, Mapping) else _stated(part)
        for key, part in schema.items()
        if part is not None or key in VALUES
    }
