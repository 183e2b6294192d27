"""A row of preferences to what is asked and the answers to it, in whichever form it has them.

What is asked may stand by itself, or be what both answers' conversations begin with. Every function here that raises
`DataError` does so in one line: the row, what is wrong there, and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fitune import Conversation, Origin, Preference, Row
from fitune_plugins.data import loss_keys
from fitune_plugins.data.dialogue_text import is_dialogue, messages_of, without_open_turn
from fitune_plugins.data.formats import UNTRAINED, ShareGptOptions, spoken, system_of, tools_of
from fitune_plugins.data.preference_columns import Columns
from fitune_plugins.data.row import bad, parsed, shown, text
from fitune_plugins.data.tool_calls import tools
from fitune_plugins.data.turns import TRAINED, Turn, conversation, is_empty, turns

EQUAL = "rows left out: chosen and rejected are equal"
EMPTY = "rows left out: an answer is empty"


class LeftOut(Exception):
    """A row that is no fault, and teaches nothing; its text is what it is counted as."""


class Reader:
    """Reads the rows of one file."""

    def __init__(self, columns: Columns, *, loss: bool) -> None:
        """Without `loss`, keys by which messages and rows say whether they are trained on are passed over."""
        self.columns, self.loss = columns, loss

    def pair(self, row: Row) -> Preference:
        """A row with two answers. Raises `DataError` or `LeftOut`."""
        names = (self.columns.chosen, self.columns.rejected)
        chosen, rejected = (self._said(row, name) for name in names)
        if isinstance(chosen, str) and isinstance(rejected, str):
            return self._texts(row, chosen, rejected)
        if isinstance(chosen, str) or isinstance(rejected, str):
            text_of, of_messages = names if isinstance(chosen, str) else names[::-1]
            what = f'column "{text_of}" is a text, but "{of_messages}" holds messages'
            raise bad(row.origin, what, "Write both in one form")
        if all(side[0]["role"] == "assistant" for side in (chosen, rejected)):
            return self._preference(row, self._asked(row), chosen, rejected)
        return self._whole(row, chosen, rejected)

    def judged(self, row: Row) -> Preference:
        """A row with one answer that is good or bad. Raises `DataError` or `LeftOut`."""
        good = _yes(row, self.columns.label)
        if not self.columns.answer:
            asked, answer = _last_answer(self._asked(row, answered=True), row, self.columns.prompt)
        else:
            said = self._said(row, self.columns.answer)
            asked = self._asked(row)
            answer = [{"role": "assistant", "content": said}] if isinstance(said, str) else said
        return self._preference(row, asked, answer if good else None, None if good else answer)

    # -------------------------------------------------------------------------------------------- forms of the answers

    def _texts(self, row: Row, chosen: str, rejected: str) -> Preference:
        if is_dialogue(chosen) and is_dialogue(rejected):
            return self._whole(row, messages_of(chosen), messages_of(rejected))
        if not self.columns.prompt:
            return self._gone_on(row, chosen, rejected)
        asked, prompt = self._asked(row), row.values[self.columns.prompt]
        if isinstance(prompt, str) and chosen.startswith(prompt) and rejected.startswith(prompt):
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]  # both begin by what was asked
        answers: list[list[Turn]] = [[{"role": "assistant", "content": side}] for side in (chosen, rejected)]
        return self._preference(row, asked, *answers)

    def _gone_on(self, row: Row, chosen: str, rejected: str) -> Preference:
        """Two texts that begin alike: what they share is what is asked, up to the last blank."""
        if chosen == rejected:
            raise LeftOut(EQUAL)
        shared = _common(chosen, rejected)
        shared = shared[: max((at + 1 for at, character in enumerate(shared) if character.isspace()), default=0)]
        if not shared.strip():
            what = f'no column says what is asked, and "{self.columns.chosen}" and "{self.columns.rejected}" do not '
            raise bad(row.origin, f"{what}begin alike", "Name the column with the question: prompt = ...")
        asked: list[Turn] = [{"role": "user", "content": shared.rstrip()}]
        sides = (side[len(asked[0]["content"]) :] for side in (chosen, rejected))
        answers: list[list[Turn]] = [[{"role": "assistant", "content": side}] for side in sides]
        return self._preference(row, asked, *answers, as_text=True)

    def _whole(self, row: Row, chosen: list[Turn], rejected: list[Turn]) -> Preference:
        """Two conversations that begin alike: what they share is what is asked."""
        shared = next((at for at, pair in enumerate(zip(chosen, rejected, strict=False)) if not _same(*pair)), None)
        if shared is None and len(chosen) == len(rejected):
            raise LeftOut(EQUAL)
        shared = min(len(chosen), len(rejected)) if shared is None else shared
        names = (self.columns.chosen, self.columns.rejected)
        for name, side in zip(names, (chosen, rejected), strict=True):
            if len(side) == shared:
                raise bad(row.origin, f'column "{name}" has no answer behind the {shared} messages that both share')
        for side in (chosen, rejected):
            if side[shared]["role"] != "assistant":
                what = f'what is asked is not the same in "{names[0]}" and "{names[1]}": they differ in message '
                raise bad(row.origin, f"{what}{shared + 1} ({side[shared]['role']})", "An answer is to differ alone")
        asked = chosen[:shared]
        self._must_hold_prompt(row, asked)
        if asked[0]["role"] != "system":
            asked = [*system_of(row, self.columns.system), *asked]
        return self._preference(row, asked, chosen[shared:], rejected[shared:])

    def _must_hold_prompt(self, row: Row, asked: Sequence[Turn]) -> None:
        """Raise `DataError` if a text that is said to be asked is none of the messages that both answers share."""
        prompt = row.values.get(self.columns.prompt)
        if not isinstance(prompt, str) or self._messages(prompt, row, self.columns.prompt) is not None:
            return
        said = [turn["content"].strip() for turn in asked]
        if not is_dialogue(prompt) and prompt.strip() and prompt.strip() not in said:
            what = f'column "{self.columns.prompt}" is {shown(prompt)}, which is no message of "{self.columns.chosen}"'
            raise bad(row.origin, what, "Leave one of the two out, or make them agree")

    # ------------------------------------------------------------------------------------------------- what is asked

    def _asked(self, row: Row, *, answered: bool = False) -> list[Turn]:
        """The messages of the prompt; with `answered`, the answer is the last of them."""
        name = self.columns.prompt
        if not name:
            what = "no column says what is asked"
            raise bad(row.origin, what, "Name it in the stage's table: prompt = ...")
        if name not in row.values:
            raise bad(row.origin, f'no column "{name}"', "Name the column in the stage's table: prompt = ...")
        said = self._said(row, name)
        found = said if not isinstance(said, str) else self._asked_text(row, name, said)
        if not found or not any(part for turn in found for part in (turn["content"], turn.get("tool_calls"))):
            raise bad(row.origin, f'column "{name}" is empty, so nothing is asked', "Leave the row out")
        if not answered and found[-1]["role"] == "assistant":
            raise bad(row.origin, f'column "{name}" ends with an answer, not with a question')
        system = [] if found[0]["role"] == "system" else system_of(row, self.columns.system)
        return [*system, *found]

    def _asked_text(self, row: Row, name: str, said: str) -> list[Turn]:
        if is_dialogue(said):
            return without_open_turn(messages_of(said))
        about = row.values.get("input") if name == "instruction" else None
        if about:
            said += "\n" + text(about, row.origin, 'column "input"')
        return [{"role": "user", "content": said}] if said.strip() else []

    # ----------------------------------------------------------------------------------------------------- of columns

    def _said(self, row: Row, name: str) -> str | list[Turn]:
        """What a column holds. Raises `DataError` if it is neither a text nor messages."""
        if name not in row.values:
            raise bad(row.origin, f'no column "{name}"')
        value = row.values[name]
        found = self._messages(value, row, name)
        return text(value, row.origin, f'column "{name}"') if found is None else found

    def _messages(self, value: Any, row: Row, name: str) -> list[Turn] | None:
        """The messages that a value is, be it as JSON; None for a text. Raises `DataError`."""
        value = _unpacked(value, row.origin, name)
        if isinstance(value, Mapping) and "messages" in value:  # OpenAI's form, with its tools
            value = value["messages"]
        value = [value] if isinstance(value, Mapping) else value
        if not isinstance(value, list):
            return None
        if value and isinstance(value[0], Mapping) and "from" in value[0]:
            return [spoken(ShareGptOptions(), item, row, number) for number, item in enumerate(value, 1)]
        return turns(value, row.origin, f'column "{name}"', loss=self.loss)

    def _tools(self, row: Row) -> tuple[Mapping[str, Any], ...]:
        value = row.values.get(self.columns.prompt)
        if isinstance(value, Mapping) and value.get("tools"):
            return tools(value["tools"], row.origin, f'column "{self.columns.prompt}": its tools')
        return tools_of(row, self.columns.tools)

    # ------------------------------------------------------------------------------------------------------- together

    def _preference(
        self,
        row: Row,
        asked: list[Turn],
        chosen: list[Turn] | None,
        rejected: list[Turn] | None,
        *,
        as_text: bool = False,
    ) -> Preference:
        if chosen is not None and rejected is not None and _all_same(chosen, rejected):
            raise LeftOut(EQUAL)
        described = self._tools(row)
        word = loss_keys.of_row(row.values, row.origin, self.columns.all()) if self.loss else None

        def side(answer: list[Turn] | None) -> Conversation | None:
            if answer is None:
                return None
            found = conversation([*asked, *answer], row, described, asked=len(asked), word=word)
            answers = {at: turn for at, turn in enumerate(found.messages) if turn["role"] == "assistant"}
            behind = [at for at in answers if at >= found.asked]
            if all(is_empty(answers[at]) for at in behind):
                raise LeftOut(EMPTY)
            if found.untrained.issuperset(behind):
                raise LeftOut(UNTRAINED)
            return found

        return Preference(chosen=side(chosen), rejected=side(rejected), as_text=as_text)


def _unpacked(value: Any, origin: Origin, name: str) -> Any:
    """The value; of a text that is JSON of messages what it holds. Other JSON is an answer as good as any text."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    bare = "".join(value.split())
    if bare.startswith(('[{"role":', '[{"from":', '{"role":', '{"from":', '{"messages":')):
        return parsed(value, origin, f'column "{name}"', "a list of messages")
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    first = found[0] if isinstance(found, list) and found else found
    return found if isinstance(first, Mapping) and ("role" in first or "from" in first) else value


def _last_answer(messages: list[Turn], row: Row, name: str) -> tuple[list[Turn], list[Turn]]:
    """What is asked in a conversation, and the answer behind the last question."""
    border = 1 + max((at for at, turn in enumerate(messages) if turn["role"] in ("user", "system")), default=-1)
    if not border or border == len(messages):
        what = f'column "{name}" does not end with an answer to a question'
        raise bad(row.origin, what, "Name the column with the answer: completion = ...")
    return messages[:border], messages[border:]


def _yes(row: Row, name: str) -> bool:
    """What a label says. Raises `DataError` if it says neither."""
    if name not in row.values:
        raise bad(row.origin, f'no column "{name}"')
    value = row.values[name]
    said = value.strip().lower() if isinstance(value, str) else value
    words = {"true": True, "1": True, "false": False, "0": False}
    found = words.get(said) if isinstance(said, str) else said
    if isinstance(found, (bool, int, float)) and found in (0, 1):
        return bool(found)
    raise bad(row.origin, f'column "{name}" is {shown(value)}', "It takes true (a good answer) or false (a bad one)")


def _common(one: str, other: str) -> str:
    pairs = zip(one, other, strict=False)
    return one[: next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))]


def _same(one: Turn, other: Turn) -> bool:
    """Whether two messages say the same, whatever they say of being trained on."""
    return {**one, TRAINED: None} == {**other, TRAINED: None}


def _all_same(one: Sequence[Turn], other: Sequence[Turn]) -> bool:
    return len(one) == len(other) and all(map(_same, one, other))
