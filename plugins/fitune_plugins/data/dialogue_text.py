"""Texts of dialogues in which a line says who speaks, as Anthropic's HH-RLHF writes them, to messages.

The form is `\\n\\nHuman: ...\\n\\nAssistant: ...` (arXiv 2204.05862).
"""

from __future__ import annotations

import re

from fitune_plugins.data.turns import Turn

ROLES = {"Human": "user", "Assistant": "assistant"}

SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")
"""What stands before what somebody says."""


def is_dialogue(text: str) -> bool:
    """Whether a text begins with what a human says, and an assistant's turn follows."""
    found = [match.group(1) for match in SPEAKER.finditer(text)]
    first = SPEAKER.search(text)
    return first is not None and not text[: first.start()].strip() and found[0] == "Human" and "Assistant" in found


def messages_of(text: str) -> list[Turn]:
    """The messages of a dialogue."""
    marks = list(SPEAKER.finditer(text))
    ends = [match.start() for match in marks[1:]] + [len(text)]
    said = [(ROLES[mark.group(1)], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]
    turns: list[Turn] = [{"role": role, "content": content} for role, content in said]
    return turns


def without_open_turn(turns: list[Turn]) -> list[Turn]:
    """The messages of a prompt: without the assistant's turn that is to be answered."""
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns
