"""`ft generate --interactive`: a conversation, a line a question, with the model's own answers as its history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fitune.errors import DataError, RunError
from fitune.trained.generate import Generator

EXIT, CLEAR = "/exit", "/clear"


def converse(
    generator: Generator,
    system: str | None,
    read: Callable[[], str | None],
    tell: Callable[[str], None],
    complain: Callable[[str], None],
) -> None:
    """Answer each line that `read` gives, until it gives None or "/exit"; "/clear" begins anew.

    `tell` gets the answers in pieces, each ended by a line end; `complain` what cannot be answered, which is forgotten.
    """
    first: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    history = [*first]
    while (line := read()) is not None and line.strip() != EXIT:
        if line.strip() == CLEAR:
            history = [*first]
            continue
        if not line.strip():
            continue
        history.append({"role": "user", "content": line})
        try:
            answer = generator.answer(history, tell)
        except (DataError, RunError) as error:  # e.g. a conversation that has grown too long
            complain(f"{error.message}. {CLEAR} begins anew, {EXIT} ends")
            history.pop()
            continue
        except KeyboardInterrupt:  # enough of this answer
            tell("\n")
            history.pop()
            continue
        tell("\n")
        history.append({"role": "assistant", "content": answer})
