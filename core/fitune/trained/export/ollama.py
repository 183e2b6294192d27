"""A GGUF file with a Modelfile beside it, by which `ollama create NAME -f Modelfile` takes it.

Ollama writes conversations by a template of its own language, not by the one in the file. It is derived from what the
run's template writes: what stands before the first question (with a system message and without), behind a question,
and between an answer and the next question. It is only written if these parts give again what the run's template
writes, for conversations of several lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune.compose.dialogue import dialogue_of
from fitune.data.prepare import context_of
from fitune.errors import FtError, ModelError
from fitune.trained.export.gguf import Gguf
from fitune.trained.export.gguf_tokenizer import adds_beginning
from fitune.trained.open import tokenizer_for

if TYPE_CHECKING:
    from fitune.plugin.records import Dialogue
    from fitune.trained.form import Merged
    from fitune.trained.open import Trained

MODELFILE = "Modelfile"

Messages = Sequence[Mapping[str, Any]]

SYSTEM, FIRST, ANSWER, SECOND = "Qsystemq", "Qfirstq", "Qanswerq", "Qsecondq"
"""Contents that no template writes by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """The parts of every conversation."""

    start: str
    """Before the first question, where there is no system message."""
    before_system: str | None
    """Before a system message; None if the template takes none."""
    behind_system: str
    """Between that and the first question."""
    asked: str
    """Behind a question: the answer begins there."""
    answered: str
    """Between an answer and the next question."""

    def written(self, messages: Messages) -> str:
        """A conversation, as Ollama would write it."""
        system = [str(one["content"]) for one in messages if one["role"] == "system"]
        begin = f"{self.before_system}{system[0]}{self.behind_system}" if system else self.start
        ends = {"user": self.asked, "assistant": self.answered}
        return begin + "".join(f"{one['content']}{ends[one['role']]}" for one in messages if one["role"] in ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ollama(Gguf):
    """The form: a GGUF file and its Modelfile."""

    def must_take(self, trained: Trained) -> None:
        """Raise `ModelError`, too, if Ollama cannot write conversations as the run did."""
        Gguf.must_take(self, trained)
        dialogue = dialogue_of(trained.recipe, context_of(trained.recipe, tokenizer_for(trained)))
        if dialogue is not None:
            turns_of(dialogue)

    def write(self, merged: Merged, directory: Path) -> None:
        """Write both."""
        Gguf.write(self, merged, directory)
        begin = merged.tokenizer.bos_token if adds_beginning(merged.tokenizer) else None
        text = "".join(_lines(self.file, merged.dialogue, begin if isinstance(begin, str) else ""))
        (directory / MODELFILE).write_text(text, encoding="utf-8", newline="\n")


def turns_of(dialogue: Dialogue) -> Turns:
    """The parts that a run's template writes. Raises `ModelError` if it writes more than these."""
    user, answer, more = (
        {"role": "user", "content": FIRST},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": SECOND},
    )
    start, asked = _around(dialogue.prompt([user]), FIRST)
    answered = _between(dialogue.prompt([user, answer, more]), ANSWER, SECOND)
    before, behind = None, ""
    system = {"role": "system", "content": SYSTEM}
    with_system = _attempt(dialogue.prompt, [system, user])
    if with_system is not None and SYSTEM in with_system:
        before, behind = _around(with_system, SYSTEM)[0], _between(with_system, SYSTEM, FIRST)
    turns = Turns(start=start, before_system=before, behind_system=behind, asked=asked, answered=answered)
    tries: list[Messages] = [[user], [user, answer, more], [user, answer, more, answer, user]]
    if before is not None:
        tries += [[system, *one] for one in tries]
    if any(turns.written(one) != dialogue.prompt(one) for one in tries):
        raise _not_plain()
    return turns


def _attempt(write: Callable[[Messages], str], messages: Messages) -> str | None:
    """A conversation as text; None if the template does not take it."""
    try:
        return write(messages)
    except FtError:
        return None


def _around(text: str, content: str) -> tuple[str, str]:
    before, found, behind = text.partition(content)
    if not found or content in behind:
        raise _not_plain()
    return before, behind


def _between(text: str, one: str, other: str) -> str:
    between, found, _ = _around(text, one)[1].partition(other)
    if not found:
        raise _not_plain()
    return between


def _not_plain() -> ModelError:
    return ModelError(
        "the chat template that was trained with writes conversations in a way that Ollama's templates cannot be shown "
        "to write the same. Export with --to gguf: llama.cpp takes the template itself (llama-server --jinja)"
    )


def _lines(file: str, dialogue: Dialogue | None, begin: str) -> Iterator[str]:
    yield f"FROM ./{file}\n"
    if dialogue is None:
        yield 'TEMPLATE """{{ .Prompt }}"""\n'
        return
    text = template_of(turns_of(dialogue), begin)
    if '"""' in text:
        raise _not_plain()
    yield f'TEMPLATE """{text}"""\n'
    for end in dict.fromkeys(filter(None, (one.strip() for one in (dialogue.end, *dialogue.ends)))):
        escaped = end.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        yield f'PARAMETER stop "{escaped}"\n'


def template_of(turns: Turns, begin: str) -> str:
    """The template in Ollama's language, Go's; the mark `begin` is left out, which Ollama writes by itself
    where the file says that texts begin with it.
    """
    start = _literal(turns.start.removeprefix(begin))
    if turns.before_system is not None:
        before, behind = _literal(turns.before_system.removeprefix(begin)), _literal(turns.behind_system)
        start = "{{ if .System }}" + before + "{{ .System }}" + behind + "{{ else }}" + start + "{{ end }}"
    user = "{{ .Content }}" + _literal(turns.asked)
    answer = "{{ .Content }}" + _literal(turns.answered)
    return (
        start
        + '{{ range .Messages }}{{ if eq .Role "user" }}'
        + user
        + '{{ else if eq .Role "assistant" }}'
        + answer
        + "{{ end }}{{ end }}"
    )


def _literal(text: str) -> str:
    """A text that Go's templates write as it is."""
    return text.replace("{{", '{{ "{{" }}')
