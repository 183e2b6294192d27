"""What ends a turn that calls a tool, which templates may end in another way than an answer: gpt-oss by "<|call|>",
Llama 3.1 by "<|eom_id|>" where code is called. It is learned from probes, as the shapes of answers are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fitune_plugins.data.chat_template import Messages, Refused
from fitune_plugins.data.frames import Frames
from fitune_plugins.data.masks import Inexact, Masker
from fitune_plugins.data.reading import Reading
from fitune_plugins.data.rendering import written
from fitune_plugins.data.shapes import ASKED

ID = "a1b2c3d4e"
"""Of the call; some templates want nine letters and digits."""

TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Looks a word up",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "The word"}}},
    },
}

CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "id": ID, "function": {"name": "lookup", "arguments": {"word": "probe"}}}],
}

SAID = {"role": "tool", "name": "lookup", "tool_call_id": ID, "content": "found"}

PROBES: tuple[Messages, ...] = ([ASKED, CALL], [ASKED, CALL, SAID, {"role": "assistant", "content": "answer"}])
"""The call as the last message, and with its result behind it."""


def call_ends(masker: Masker) -> Iterator[str]:
    """Special tokens that end a call of a tool, and what ends the other turns of a template made for tools; nothing
    where the template knows none.
    """
    yield from masker.shapes.marks(last=True)
    for messages in PROBES:
        for probe in (messages, [written(turn) for turn in messages]):
            try:
                reading = Reading(masker.template, probe, [TOOL], masker.template.render(probe, [TOOL]), Frames())
                found = next(iter(masker.answers(reading, [1])), None)
            except (Refused, Inexact):
                continue
            if found is not None and found.ends == "mark" and 1 in reading.bodies:
                behind = reading.text[reading.bodies[1][1] : found.span[1]]
                special = [match for match in masker.template.special.finditer(behind) if match.end() == len(behind)]
                yield from (match.group() for match in special)
            break
