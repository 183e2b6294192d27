"""Turns of a conversation: what a row holds as messages, checked and brought into the form that chat templates take.

Every function here raises `DataError` in one line: the row, what is wrong there, and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fitune import Conversation, DataError, Origin, Row, nearest, sentences

Turn = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's later name for it; templates know the old one
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",  # OpenAI's earlier name for it
}
"""Roles of messages, and what templates call them."""

SHOWN = 60
"""Most characters of a wrong value that an error repeats."""


def bad(origin: Origin, what: str, fix: str = "") -> DataError:
    """The error of a row: where, what is wrong, and what to do."""
    return DataError(f"{origin}: {sentences(what, fix)}")


def shown(value: object) -> str:
    """A value as JSON, cut to what fits an error."""
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def column(row: Row, name: str, option: str) -> Any:
    """The value of a column that has to be there; `option` is the stage's option that names it."""
    if name in row.values:
        return row.values[name]
    fix = f"Name the column in the stage's table: {option} = ..."
    raise bad(row.origin, f'no column "{name}"', sentences(nearest(name, row.values), fix))


def text(value: object, origin: Origin, what: str) -> str:
    """The value, which has to be a text that a tokenizer takes."""
    if not isinstance(value, str):
        raise bad(origin, f"{what} is {shown(value)}, not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a pair of surrogates, which no tokenizer takes
            raise bad(origin, f"{what} holds half a character (at {error.start})", "Leave it out") from error
    return value


def turns(value: object, origin: Origin, what: str) -> list[Turn]:
    """OpenAI's messages as templates take them: contents as text, arguments of tool calls as objects."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        wanted = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
        raise bad(origin, f"{what} is not a list of messages", f"It takes: {wanted}")
    return [_turn(item, origin, f"message {number}") for number, item in enumerate(value, 1)]


def _turn(item: object, origin: Origin, where: str) -> Turn:
    if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
        has = f"It has: {', '.join(map(str, item))}" if isinstance(item, Mapping) and item else ""
        raise bad(origin, f"{where} is not an object with a role and a content", has)
    role = item["role"]
    if role not in ROLES:
        raise bad(origin, f'{where} has the role "{role}"', nearest(role, ROLES))
    turn = {
        str(key): part for key, part in item.items() if part is not None
    }  # Parquet writes null for what is not there
    turn["role"] = ROLES[role]
    where = f"{where} ({role})"
    if "function_call" in turn:  # OpenAI's earlier form of one tool call
        turn["tool_calls"] = [{"type": "function", "function": turn.pop("function_call")}]
    if turn.get("tool_calls"):
        turn["tool_calls"] = _calls(turn["tool_calls"], origin, where)
        turn.setdefault("content", "")
    else:
        turn.pop("tool_calls", None)
    turn["content"] = _content(turn.get("content"), origin, f'{where}: "content"')
    return turn


def _content(value: object, origin: Origin, what: str) -> str:
    """A content: a text, or a list of parts of text, which are joined."""
    if not isinstance(value, list):
        return text(value, origin, what)
    parts: list[str] = []
    for part in value:
        if not isinstance(part, Mapping) or part.get("type", "text") != "text":
            kind = shown(part.get("type")) if isinstance(part, Mapping) else shown(part)
            raise bad(origin, f"{what} has a part {kind}", "Leave it out: text alone is trained on")
        parts.append(text(part.get("text"), origin, f"{what}: a part of it"))
    return "".join(parts)


def _calls(value: object, origin: Origin, where: str) -> list[Turn]:
    """Tool calls with their arguments as objects: templates write them as JSON themselves."""
    if not isinstance(value, list):
        raise bad(origin, f'{where}: "tool_calls" is {shown(value)}, not a list')
    return [_call(call, origin, where) for call in value]


def _call(call: object, origin: Origin, where: str) -> Turn:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        wanted = '{"function": {"name": "...", "arguments": {}}}'
        raise bad(origin, f"{where}: a tool call is {shown(call)}", f"It takes: {wanted}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            what = f'{where}: the arguments of "{function["name"]}" are not JSON: {shown(arguments)}'
            raise bad(origin, what, "Write an object") from error
    if not isinstance(arguments, Mapping):
        what = f'{where}: the arguments of "{function["name"]}" are {shown(arguments)}'
        raise bad(origin, what, "Write an object")
    rest = {key: part for key, part in call.items() if key not in ("function", "name", "arguments", "type")}
    return {"type": "function", **rest, "function": {"name": function["name"], "arguments": dict(arguments)}}


def tools(value: object, origin: Origin, what: str) -> tuple[Mapping[str, Any], ...]:
    """Descriptions of tools, given as a list or as JSON; none where the value is empty."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise bad(origin, f"{what} is not JSON: {shown(value)}", "Write a list of tools") from error
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise bad(origin, f"{what} is {shown(value)}", "Write a list of tools, each an object")
    return tuple(value)


def conversation(messages: list[Turn], row: Row, described: tuple[Mapping[str, Any], ...] = ()) -> Conversation:
    """The row's conversation, which needs an answer to be trained on."""
    if not any(turn["role"] == "assistant" for turn in messages):
        roles = ", ".join(sorted({turn["role"] for turn in messages}))
        raise bad(row.origin, f'no message has the role "assistant", so there is nothing to train on. Roles: {roles}')
    return Conversation(messages=tuple(messages), origin=row.origin, tools=described)
