"""Where rows of preferences keep what: told by the usual names of columns, or named in the stage's table.

Known from: TRL, UltraFeedback, HH-RLHF (`chosen`, `rejected`), Intel's and argilla's Orca pairs (`system`, `question`
or `input`), OpenAI and Together (`preferred_output`), StackExchange (`response_j`), LLaMA-Factory (`kto_tag`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fitune import Origin, Takes, nearest, sentences
from fitune_plugins.data.formats import FormatOptions
from fitune_plugins.data.row import bad

PROMPTS = ("prompt", "instruction", "question", "query", "conversations", "messages", "conversation", "input")
"""Columns with what is asked."""

PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("chosen_answer", "rejected_answer"),
    ("response_chosen", "response_rejected"),
    ("preferred_output", "non_preferred_output"),
    ("preferred", "rejected"),
    ("response_j", "response_k"),
)
"""Columns with a better and a worse answer."""

ANSWERS = ("completion", "response", "answer", "output")
"""Columns with an answer that is judged by itself."""

LABELS = ("label", "kto_tag", "desirable")
"""Columns that say whether it is good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencesOptions(FormatOptions):
    """Options of the stage `preferences`: columns that have no name here are told by the usual ones."""

    prompt: str | None = None
    """Column with what is asked: a text, or a list of messages."""
    chosen: str | None = None
    """Column with the better answer, or with the whole conversation that it ends."""
    rejected: str | None = None
    """Column with the worse answer, or with the whole conversation that it ends."""
    completion: str | None = None
    """Column with an answer that is judged by itself."""
    label: str | None = None
    """Column that says of such an answer whether it is good: true or false."""
    system: str = "system"
    """Column with a system message; rows without it have none."""
    tools: str = "tools"
    """Column with the tools that the assistant may call, as a list or as JSON; rows without it have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where the rows of one file keep what; empty for what they do not have."""

    prompt: str
    chosen: str = ""
    rejected: str = ""
    answer: str = ""
    label: str = ""
    system: str
    tools: str

    def __str__(self) -> str:
        if self.chosen:
            return f"pairs ({', '.join(filter(None, (self.prompt, self.chosen, self.rejected)))})"
        return f"judged answers ({', '.join(filter(None, (self.prompt, self.answer, self.label)))})"

    def all(self) -> tuple[str, ...]:
        """The names."""
        return (self.prompt, self.chosen, self.rejected, self.answer, self.label, self.system, self.tools)


def columns_of(options: PreferencesOptions, values: Mapping[str, Any], origin: Origin, takes: Takes) -> Columns:
    """The columns of a row. Raises `DataError` if they hold no preferences, or none that the objective takes."""
    named = {"system": options.system, "tools": options.tools}
    chosen, rejected = _pair(options, values, origin)
    label = options.label or _first(LABELS, values)
    if chosen and not (label and options.label and takes == "labelled"):
        return Columns(prompt=_prompt(options, values, (chosen, rejected)), chosen=chosen, rejected=rejected, **named)
    if not label or label not in values:
        raise bad(origin, *_missing(options, values, takes))
    if takes == "pairs":
        what = f'rows of judged answers ("{label}" says whether one is good), but the objective takes pairs of answers'
        fix = '[objective] use = "kto" takes these; pairs have the columns "chosen" and "rejected"'
        raise bad(origin, what, fix)
    prompt = _prompt(options, values, ())
    answer = options.completion or _first((name for name in ANSWERS if name != prompt), values)
    return Columns(prompt=prompt, answer=answer, label=label, **named)


def _pair(options: PreferencesOptions, values: Mapping[str, Any], origin: Origin) -> tuple[str, str]:
    """The columns of both answers; empty if there is none. Raises `DataError` if there is one of them alone."""
    known = next((pair for pair in PAIRS if all(name in values for name in pair)), None)
    half = next((pair for pair in PAIRS if any(name in values for name in pair)), ("", ""))
    chosen, rejected = known or half
    chosen, rejected = options.chosen or chosen, options.rejected or rejected
    if not (chosen or rejected):
        return "", ""
    for key, name, other in (("chosen", chosen, rejected), ("rejected", rejected, chosen)):
        if name not in values:
            what = f'no column "{name or key}": a pair is a better and a worse answer, and "{other}" is one'
            raise bad(origin, what, sentences(nearest(name or key, _rest(values, other)), f"Name it: {key} = ..."))
    return chosen, rejected


def _rest(values: Mapping[str, Any], known: str) -> list[str]:
    return [str(name) for name in values if name != known]


def _prompt(options: PreferencesOptions, values: Mapping[str, Any], taken: Iterable[str]) -> str:
    return options.prompt or _first((name for name in PROMPTS if name not in taken), values)


def _first(names: Iterable[str], values: Mapping[str, Any]) -> str:
    return next((name for name in names if name in values), "")


def _missing(options: PreferencesOptions, values: Mapping[str, Any], takes: Takes) -> tuple[str, str]:
    """What is wrong with rows that hold no preferences, and what to do."""
    names = [str(name) for name in values]
    if options.label is not None:
        fix = sentences(nearest(options.label, names), "Name the column in the stage's table: label = ...")
        return f'no column "{options.label}"', fix
    wanted = "pairs of answers" if takes == "pairs" else "answers that are judged good or bad"
    needed = '"chosen" and "rejected"' if takes == "pairs" else '"label" (true or false), or "chosen" and "rejected"'
    what = f"the objective takes {wanted}, but there is no column {needed}. Columns: {', '.join(names) or 'none'}"
    for name in names:
        for meant in difflib.get_close_matches(name, ("chosen", "rejected", *LABELS), n=1, cutoff=0.8):
            return what, f'Is "{name}" to be "{meant}"?'
    fix = 'Name the columns: [[data.stage]] use = "preferences", chosen = ..., rejected = ...'
    return what, f'{fix}; to train on all answers: [objective] use = "sft"'
