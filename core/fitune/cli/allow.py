"""Asks a person about code of a recipe or a run that is not known on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from fitune.cli.printing import say
from fitune.plugin.trust import Answer, Trust

ANSWERS: dict[str, Answer] = {"y": "this", "a": "always", "n": "no"}


def trust_of(*, allowed: bool) -> Trust:
    """What may run by the command line; where somebody sits at a terminal, they are asked about the rest."""
    if allowed:
        return Trust(allow=True, remember=True)
    return Trust(ask=_ask if _somebody_is_there() else None)


def _somebody_is_there() -> bool:
    """Whether a question is seen and can be answered: not by one of several processes, which all would ask."""
    try:
        return sys.stdin.isatty() and sys.stderr.isatty() and os.environ.get("WORLD_SIZE", "1") == "1"
    except (AttributeError, ValueError):  # a stream that is closed
        return False


def _ask(path: Path, digest: str, what: str) -> Answer:
    say(
        f"{path} is not known on this machine, and {what}.\n  SHA-256 {digest}\n"
        "  y  run it, and this text of it from now on\n"
        "  a  run it, and this file from now on, also after it has changed: for one that is yours\n"
        "  n  do not run it",
        err=True,
    )
    answer = click.prompt("Run it?", type=click.Choice([*ANSWERS]), default="n", show_default=True, err=True)
    return ANSWERS[str(answer)]
