"""Which code of a recipe may run here: a recipe, or a run, may be a stranger's, and its plugins run as it is read.

A single-file plugin is known by its digest, or by its path where the user has said so, and what is known is kept in the
user's own configuration. Code that is not known is asked about where somebody can answer, and is refused otherwise.
Installed plugins are no concern of this: who has installed them has decided.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fitune.errors import PluginError, cause
from fitune.plugin.reading import json_of, read_file

FLAG, VARIABLE = "--allow-plugins", "FT_ALLOW_PLUGINS"
"""What allows all that a command loads: the first remembers it, the second, for machines that nobody sits at, does
not."""

LARGEST = 1 << 24
"""Bytes of a single-file plugin, at most."""

Answer = Literal["this", "always", "no"]
"""This text of the file alone; the file, however it changes; or not at all."""


CODE = "its code would run"
"""What would come of a plugin, in the words that it is asked about with."""


class UnknownCode(PluginError):
    """Code that is not known on this machine, which nobody has allowed."""


def remembered_in() -> Path:
    """The file that says what is known, a line of JSON for each: `{"digest": ...}` or `{"file": ..., "owner": ...}`."""
    from platformdirs import user_config_path

    return user_config_path("fitune", appauthor=False) / "allowed-plugins.jsonl"


@dataclass(slots=True)
class Trust:
    """Says of each single-file plugin, and of what else names programs, whether it may run in this process."""

    allow: bool = field(default_factory=lambda: os.environ.get(VARIABLE, "").lower() in ("1", "true", "yes", "on"))
    """Whether all may."""
    remember: bool = False
    """Whether what is allowed that way is known from then on."""
    ask: Callable[[Path, str, str], Answer] | None = None
    """Asks a person about a file, its digest and what would come of it, where there is one."""
    granted: set[str] = field(default_factory=set)
    """Digests of what may run, as far as was asked for."""

    def source_of(self, path: Path) -> bytes:
        """The text of a plugin that may run: of this, and not of what the file holds later, the digest was asked about.

        Raises `UnknownCode` if it may not, `PluginError` if there is none.
        """
        try:
            source = read_file(path, LARGEST)
        except FileNotFoundError:
            raise PluginError("no such file") from None
        except OSError as error:
            raise PluginError(f"it cannot be read: {cause(error)}") from error
        self.must_know(path, source)
        return source

    def must_know(self, path: Path, content: bytes, what: str = CODE) -> None:
        """Raise `UnknownCode` if what a file or a directory holds may not run. `what` says what would come of it."""
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self.granted and not self._is_allowed(path.resolve(), digest, what):
            raise UnknownCode(
                f"{path} is not known on this machine, and {what} (SHA-256 {digest}). Read it, then allow it: {FLAG}"
            )
        self.granted.add(digest)

    def _is_allowed(self, path: Path, digest: str, what: str) -> bool:
        if _is_known(path, digest):
            return True
        if self.allow:
            if self.remember:
                _remember({"digest": digest, "was": str(path)})
            return True
        answer = "no" if self.ask is None else self.ask(path, digest, what)
        if answer != "no":
            _remember({"digest": digest, "was": str(path)})
        if answer == "always":
            _remember({"file": str(path), "owner": _owner(path)})
        return answer != "no"


def _is_known(path: Path, digest: str) -> bool:
    """Whether a file is known by what it holds, or by its place and owner."""
    try:
        store = remembered_in()
        if not _is_own(store):
            return False
        lines = read_file(store).splitlines()
    except OSError:
        return False
    by_place = {"file": str(path), "owner": _owner(path)}
    for line in lines:
        with contextlib.suppress(ValueError):  # a line that was cut off, or is of another making
            known = json_of(line)
            if known == by_place or (isinstance(known, dict) and known.get("digest") == digest):
                return True
    return False


def _remember(what: dict[str, object]) -> None:
    """Add a line. What cannot be written is asked about again."""
    with contextlib.suppress(OSError):
        store = remembered_in()
        store.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        number = os.open(store, flags, 0o600)
        try:
            os.write(number, f"{json.dumps(what)}\n".encode())  # at once, beside what others write
        finally:
            os.close(number)


def _is_own(file: Path) -> bool:
    """Whether nobody else can have written a file."""
    if os.name == "nt":
        return True
    found = file.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def _owner(file: Path) -> int:
    """Whose a file is, by number; 0 where files have no owner that can be told."""
    return 0 if os.name == "nt" else file.stat().st_uid
