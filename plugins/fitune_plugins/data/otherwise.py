"""What a template makes of messages otherwise than they say, or than a model is asked: no error, but told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fitune_plugins.data.chat_template import Refused, Template
from fitune_plugins.data.parts import text_at
from fitune_plugins.data.reading import Reading
from fitune_plugins.data.shapes import Shapes
from fitune_plugins.data.turns import THOUGHTS

CHANGED = "messages whose words the template writes in another way"

READ = ("role", "content", "tool_calls", "tool_call_id", "id", "type", "index", *THOUGHTS)
"""Keys of messages that are looked for elsewhere, or say nothing."""

MOST = 20
"""Keys that are told of by name."""


class Otherwise:
    """Tells of messages that the text does not show as they are."""

    def __init__(self, template: Template, shapes: Shapes, count: Callable[[str], None]) -> None:
        self.template, self.count = template, count
        self.unread: dict[str, bool] = {}
        self.asked = _asked(shapes)

    def tell(self, reading: Reading) -> None:
        """Count what is otherwise in a conversation."""
        for part, (start, end) in reading.found.places.items():
            if part.kind in ("content", "thought"):
                said, written = text_at(reading.messages[part.message], part), reading.text[start:end]
                if said != written and written not in _escaped(said):
                    self.count(CHANGED)
        for at, turn in enumerate(reading.messages):
            for key in self._unread(reading, at, turn):
                self.count(f'messages with a "{key}", which the template does not read')

    def tell_asked(self) -> None:
        """Count an answer at the end of a conversation, where the model is asked for it in another way."""
        if self.asked:
            self.count(self.asked)

    def _unread(self, reading: Reading, at: int, turn: Mapping[str, Any]) -> Iterator[str]:
        """Keys with a value that the template does not read of messages: neither by name nor with all others."""
        for key, value in turn.items():
            if key in READ or value in (None, "", [], {}) or (key == "name" and turn["role"] == "tool"):
                continue
            if key not in self.unread:
                self.unread[key] = key not in self.template.named and self._without(reading, at, key) == reading.text
            if self.unread[key]:
                known = [one for one, unread in self.unread.items() if unread]
                yield key if key in known[:MOST] else "key of another kind"

    def _without(self, reading: Reading, at: int, key: str) -> str | None:
        """The text of a conversation without a key of one of its messages; None where the template refuses that."""
        messages = list(reading.messages)
        messages[at] = {name: value for name, value in messages[at].items() if name != key}
        try:
            return self.template.render(messages, reading.tools)
        except Refused:
            return None


def _asked(shapes: Shapes) -> str:
    """What is told where the last answer does not stand behind all of the prompt that the model is given for one."""
    if shapes.last is None or shapes.prompt == shapes.last.header or not shapes.prompt.startswith(shapes.last.header):
        return ""
    rest = json.dumps(shapes.prompt[len(shapes.last.header) :], ensure_ascii=False)
    return f"answers written without {rest}, in which the template's prompt for an answer ends"


def _escaped(text: str) -> tuple[str, ...]:
    """A text as it stands within JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]
