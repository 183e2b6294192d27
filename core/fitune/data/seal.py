"""A seal on prepared data: only who has the user's own key can make one, so that rows which somebody else has put into
a cache are not trained on, however well they agree with themselves.

A digest that stands beside what it is of says that nothing was damaged, and nothing of who wrote it. The key is a file
of random bytes in the user's directory for state, which only the user can read; it is made when it is first needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from fitune.plugin.reading import open_file

KEY, BYTES = "seal.key", 32


def key_file() -> Path:
    """Where the user's key is (`$XDG_STATE_HOME`, or the system's directory for state)."""
    return Path(user_state_path("fitune", appauthor=False)) / KEY


def users_key() -> bytes:
    """The user's key, made where there is none, or none that only the user can read. Raises `OSError`."""
    file = key_file()
    if (found := _read(file)) is not None:
        return found
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = file.with_name(f".{KEY}.{secrets.token_hex(8)}")
    number = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        with os.fdopen(number, "wb") as stream:
            stream.write(secrets.token_bytes(BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileNotFoundError):
            if _read(file) is None:  # what anybody may have read, or written, seals nothing
                file.unlink()
        with contextlib.suppress(FileExistsError):  # another process was first: its key is the user's
            os.link(made, file)
    finally:
        made.unlink()
    if (found := _read(file)) is None:
        raise PermissionError(f"{file} cannot be kept for this user alone")
    return found


def seal_of(key: bytes, name: str, said: Mapping[str, Any]) -> str:
    """The seal of what is said of an entry of this name, in hexadecimal: HMAC-SHA256 (RFC 2104)."""
    return hmac.new(key, f"{name}\n{json.dumps(said)}".encode(), hashlib.sha256).hexdigest()


def is_sealed(key: bytes, name: str, said: Mapping[str, Any], seal: object) -> bool:
    """Whether this is the seal of it."""
    return isinstance(seal, str) and hmac.compare_digest(seal_of(key, name, said).encode(), seal.encode())


def _read(file: Path) -> bytes | None:
    """A key that nobody else can read or write; None where there is none."""
    with contextlib.suppress(OSError), open_file(file) as stream:
        found = os.fstat(stream.fileno())
        private = os.name == "nt" or (found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077)
        key = stream.read(BYTES + 1)
        return key if private and len(key) == BYTES else None
    return None
