"""What a template leaves out of what a row says: an error, or, where it is the template's own way, a note."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fitune_plugins.data.chat_template import Messages, Refused, Template
from fitune_plugins.data.parts import Part, free
from fitune_plugins.data.reading import Reading
from fitune_plugins.data.shapes import ASKED

THOUGHTS_LEFT_OUT = "thoughts that the template leaves out of all turns but the last"

SCHEMAS_LEFT_OUT = "rows whose tools the template describes in part"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Something that a row says and its text does not."""

    message: int | None
    """Counted from 0; None for the row's tools."""
    what: str


class Presence:
    """Judges whether all that rows say is in their text."""

    def __init__(self, template: Template, count: Callable[[str], None]) -> None:
        self.template, self.count = template, count

    def lost(self, reading: Reading) -> Iterator[Lost]:
        """What is lost; what the template leaves out by its own design is counted."""
        for part in reading.found.lost:
            if part.start == part.end:  # a blank answer
                continue
            if part.kind == "thought" and self._last_thought(part):
                self.count(THOUGHTS_LEFT_OUT)
            else:
                yield Lost(message=part.message, what=part.what)
        if reading.tools or any(turn.get("tool_calls") for turn in reading.messages):
            yield from self._renamed(reading)

    def _last_thought(self, part: Part) -> bool:
        """Whether the template writes thoughts of this form in the last turn."""
        return self._inline_thoughts if part.path == ("content",) else self._own_thoughts

    @cached_property
    def _inline_thoughts(self) -> bool:
        return self._writes({"content": "<think>\nreflected\n</think>\n\nanswered"})

    @cached_property
    def _own_thoughts(self) -> bool:
        return self._writes({"content": "answered", "reasoning_content": "reflected"})

    def _writes(self, answer: Mapping[str, Any]) -> bool:
        try:
            return "reflected" in self.template.render([ASKED, {"role": "assistant", **answer}])
        except Refused:
            return False

    def _renamed(self, reading: Reading) -> Iterator[Lost]:
        """What is lost of tools and of arguments that are no texts, by rendering them under names of their own."""
        names = _Names(reading.text)
        tools = [_tool(tool, names) for tool in reading.tools]
        messages = _calls(reading.messages, names)
        try:
            text = self.template.render(messages, tools)
        except Refused:
            text = reading.text
        in_part = False
        for given in names.given:
            if given.mark in text or (given.may_stand and _stands(given, reading)):
                continue
            if given.needed and not (given.names_tool and self._told(given.literal, reading)):
                yield given.lost
            else:
                in_part = True
        if in_part:
            self.count(SCHEMAS_LEFT_OUT)

    def _told(self, tool: str, reading: Reading) -> bool:
        """Whether a tool that is not named is told of in another way: by a call of it, or by tools being there."""
        calls = (call for turn in reading.messages for call in turn.get("tool_calls") or ())
        if any(call["function"]["name"] == tool for call in calls):
            return True
        try:
            return self.template.render(reading.messages) != reading.text
        except Refused:
            return True


def _stands(given: _Given, reading: Reading) -> bool:
    """Whether what is sought stands in the text as it is: behind the message's beginning, if it is of one."""
    message = given.lost.message
    begin = 0 if message is None else reading.bodies.get(message, (0, 0))[0]
    return given.literal in reading.text[begin:]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """Something that is rendered under another name."""

    mark: str
    literal: str
    """What the mark stands for."""
    lost: Lost
    """What is lost if it is not in the text."""
    needed: bool = True
    """Whether that is an error."""
    names_tool: bool = False

    @property
    def may_stand(self) -> bool:
        """Whether it may be there as it is: templates may write those arguments alone that a tool's description has."""
        return self.lost.message is not None


class _Names:
    """Names and numbers that a text does not hold, and what they stand for."""

    def __init__(self, text: str) -> None:
        self._free = free(text)
        self._number = 7_310_000_000
        self.given: list[_Given] = []

    def text(self, value: str, lost: Lost, *, needed: bool = True, names_tool: bool = False) -> str:
        """The text with a mark; as it is, if marks have run out."""
        mark = next(self._free, "")
        if mark and value.strip():
            literal = value.strip()
            self.given.append(_Given(mark=mark, literal=literal, lost=lost, needed=needed, names_tool=names_tool))
        return value + mark

    def number(self, value: float, lost: Lost) -> float:
        """Another number in its place, which is not in the text."""
        self._number += 1
        self.given.append(_Given(mark=str(self._number), literal=json.dumps(value), lost=lost))
        return self._number if isinstance(value, int) else float(self._number)


def _tool(tool: Mapping[str, Any], names: _Names) -> Mapping[str, Any]:
    """A tool's description with marks at its name, its description and its parameters."""
    inner = tool.get("function", tool)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        return tool
    of = f'its tools: "{inner["name"]}"'
    lost = Lost(message=None, what=of)
    marked = {**inner, "name": names.text(inner["name"], lost, names_tool=True)}
    if isinstance(inner.get("description"), str):
        marked["description"] = names.text(inner["description"], Lost(message=None, what=f"{of}: its description"))
    schema = inner.get("parameters")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if isinstance(schema, Mapping) and isinstance(properties, Mapping):
        described = {
            names.text(str(key), Lost(message=None, what=f'{of}: its parameter "{key}"')): _described(
                value, names, lost
            )
            for key, value in properties.items()
        }
        marked["parameters"] = {**schema, "properties": described}
    return marked if inner is tool else {**tool, "function": marked}


def _described(schema: Any, names: _Names, lost: Lost) -> Any:
    """A parameter's schema with a mark at its description: templates that leave it out describe the tool in part."""
    if isinstance(schema, Mapping) and isinstance(schema.get("description"), str):
        return {**schema, "description": names.text(schema["description"], lost, needed=False)}
    return schema


def _calls(messages: Messages, names: _Names) -> Messages:
    """The messages with marks at the names of their calls' arguments, and other numbers in them."""
    marked: list[Mapping[str, Any]] = []
    for at, turn in enumerate(messages):
        calls = turn.get("tool_calls") or ()
        marked.append({**turn, "tool_calls": [_call(call, at, names) for call in calls]} if calls else turn)
    return marked


def _call(call: Mapping[str, Any], at: int, names: _Names) -> Mapping[str, Any]:
    function = call["function"]
    lost = Lost(message=at, what=f'arguments of its call of the tool "{function["name"]}"')
    return {**call, "function": {**function, "arguments": _argument(function["arguments"], lost, names)}}


def _argument(value: Any, lost: Lost, names: _Names) -> Any:
    if isinstance(value, Mapping):
        return {names.text(str(key), lost): _argument(inner, lost, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_argument(inner, lost, names) for inner in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return names.number(value, lost)
    return value
