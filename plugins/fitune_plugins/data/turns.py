"""Turns of a conversation: what a row holds as messages, checked and brought into the form that chat templates take.

Every function here raises `DataError` in one line: the row, what is wrong there, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fitune import Conversation, Origin, Row, nearest
from fitune_plugins.data import loss_keys
from fitune_plugins.data.row import bad, shown, text, unpacked
from fitune_plugins.data.tool_calls import calls

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

TRAINED = "trained"
"""Key of a turn, while a row is read, under which its own word on whether it is trained on stands, as a bool."""


THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
"""Keys under which an answer may hold what the model thinks before it."""


def turns(value: object, origin: Origin, what: str, *, loss: bool = True) -> list[Turn]:
    """OpenAI's messages as templates take them: contents as text, arguments of tool calls as objects.

    They may come as JSON. Without `loss`, keys by which messages say whether they are trained on are passed over.
    """
    value = unpacked(value, origin, what, "a list of messages")
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        wanted = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
        raise bad(origin, f"{what} is not a list of messages", f"It takes: {wanted}")
    return [_turn(item, origin, f"message {number}", loss=loss) for number, item in enumerate(value, 1)]


def _turn(item: object, origin: Origin, where: str, *, loss: bool) -> Turn:
    if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
        has = f"It has: {', '.join(map(str, item))}" if isinstance(item, Mapping) and item else ""
        raise bad(origin, f"{where} is not an object with a role and a content", has)
    role = item["role"]
    if role not in ROLES:
        raise bad(origin, f'{where} has the role "{role}"', nearest(role, ROLES))
    turn = {str(key): part for key, part in item.items() if part is not None}  # null is written for what is not there
    turn["role"] = ROLES[role]
    where = f"{where} ({role})"
    turn = with_word(turn, origin, where, loss=loss)
    if "function_call" in turn:  # OpenAI's earlier form of one tool call
        turn["tool_calls"] = [{"type": "function", "function": turn.pop("function_call")}]
    called = calls(turn.pop("tool_calls", None) or [], origin, where)
    if called:
        turn = {"content": "", **turn, "tool_calls": called}
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


def with_word(turn: Turn, origin: Origin, where: str, *, loss: bool) -> Turn:
    """The turn with its own word on whether it is trained on under `TRAINED`, and without the keys that say it."""
    word = loss_keys.of_message(turn, origin, where, answer=turn["role"] == "assistant") if loss else None
    kept = {key: part for key, part in turn.items() if not loss_keys.is_one(key)}
    return kept if word is None else {**kept, TRAINED: word}


def is_empty(answer: Mapping[str, Any]) -> bool:
    """Whether an answer says, calls and thinks nothing, so that all it would teach is to end at once."""
    parts = (answer.get(key) for key in ("content", "tool_calls", *THOUGHTS))
    return not any(part.strip() if isinstance(part, str) else part for part in parts)


def conversation(
    messages: list[Turn],
    row: Row,
    described: tuple[Mapping[str, Any], ...] = (),
    *,
    asked: int = 0,
    word: bool | None = None,
) -> Conversation:
    """The row's conversation, which needs an answer to be trained on.

    Of its messages the first so many are what is `asked`; `word` is what the row as a whole says of being trained on.
    An empty answer is not trained on.
    """
    answers = [at for at, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not answers or answers[-1] < asked:
        roles = ", ".join(sorted({turn["role"] for turn in messages[asked:]}))
        raise bad(row.origin, f'no message has the role "assistant", so there is nothing to train on. Roles: {roles}')
    return Conversation(
        messages=tuple({key: part for key, part in turn.items() if key != TRAINED} for turn in messages),
        origin=row.origin,
        tools=described,
        untrained=frozenset(
            at for at in answers if False in (word, messages[at].get(TRAINED)) or is_empty(messages[at])
        ),
        asked=asked,
    )
