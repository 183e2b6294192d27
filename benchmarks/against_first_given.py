"""What a case of `against_first.py` is given, and how it is written down."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 240.0
"""Seconds that a command may take where a case does not say; a start takes up to 20 on a machine at work."""

ENDED, UNREAD, ERROR, STOPPED = 0, 1, 2, 3
"""Exit codes of `ft`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int | None
    """None if it was still at work when its time was over."""
    out: str
    err: str

    @property
    def text(self) -> str:
        """All that it printed."""
        return self.out + self.err

    def wrong(self, *codes: int) -> str | None:
        """What is wrong with it where it should have ended with one of these exit codes, and as a user's error if not
        with 0."""
        if self.code is None:
            return "still at work when its time was over"
        if "Traceback" in self.text:
            return f"a traceback: {self._last()}"
        return None if self.code in codes else f"exit code {self.code}: {self._last()}"

    def _last(self) -> str:
        lines = [line for line in self.text.strip().splitlines() if "Loading weights" not in line]
        return (lines or [""])[-1][:160]


class Given:
    """What a case is given: an `ft`, a directory of its own, and a tiny project with a run that is done."""

    def __init__(self, ft: Sequence[str], home: Path, base: Path) -> None:
        self.words, self.home, self.base = tuple(ft), home, base
        home.mkdir(parents=True, exist_ok=True)
        user = home / "user"
        user.mkdir(exist_ok=True)
        places = {"HOME": user, "XDG_CONFIG_HOME": user / "config", "XDG_CACHE_HOME": user / "cache"}
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("FT_", "XDG_"))},
            **{key: str(place) for key, place in places.items()},
            **{"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120", "PYTHONDONTWRITEBYTECODE": "1"},
        }

    def ft(self, *words: str | Path, limit: float = LIMIT, stdin: bytes = b"", **more: Any) -> Ended:
        """Run a command to its end, or to the end of its time; `more` is for `subprocess`."""
        process = self.start(*words, **{"stdin": subprocess.PIPE, **more})
        try:
            out, err = process.communicate(stdin, timeout=limit)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            code = None
        texts = [(said or b"").decode("utf-8", "surrogateescape") for said in (out, err)]
        return Ended(code=code, out=texts[0], err=texts[1])

    def start(self, *words: str | Path, env: Mapping[str, str] | None = None, **more: Any) -> subprocess.Popen[bytes]:
        """Start a command, in the case's directory if no other is named."""
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.home}
        command = [*self.words, *map(str, words)]
        return subprocess.Popen(command, env={**self.environment, **(env or {})}, **{**piped, **more})

    def project(self, changes: Mapping[str, object] | None = None, name: str = "project") -> Path:
        """A tiny project of the case's own, with these tables in its recipe; gives the recipe."""
        from fitune.testing import write_recipe

        return write_recipe(self.home / name, changes)

    def finished(self, name: str = "run") -> Path:
        """A copy of the run that is done, in the case's directory."""
        return Path(shutil.copytree(self.base / "run", self.home / name))


Work = Callable[[Given], str | None]
"""Gives how it fails; None where it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case of an item of the issue."""

    item: int
    what: str
    work: Work


class Cases(list[Case]):
    """Cases, as they are written down."""

    def of(self, item: int, what: str) -> Callable[[Work], Work]:
        """Write a function down as a case."""

        def keep(work: Work) -> Work:
            self.append(Case(item=item, what=what, work=work))
            return work

        return keep
