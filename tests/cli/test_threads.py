"""Threads that wait for work sleep where text is written: to look for it was nine tenths of `ft generate`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fitune.cli.threads import WAIT
from support.after_runs import refused


@pytest.mark.parametrize("command", [("generate", "--prompt", "Hello."), ("eval",)])
@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_they_sleep_unless_the_variable_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...], given: str | None, found: str
) -> None:
    monkeypatch.setenv(WAIT, given or "")
    if given is None:
        monkeypatch.delenv(WAIT)
    name, *rest = command
    assert "no such directory" in refused(name, str(tmp_path / "nowhere"), *rest)
    assert os.environ[WAIT] == found


def test_it_is_said_before_torch_is_there() -> None:
    """Which reads it as it is imported."""
    code = (
        "import os, sys; import fitune.cli.generate as g; own = g.let_threads_sleep\n"
        "def told():\n    print('torch' in sys.modules); own()\n"
        "g.let_threads_sleep = told\n"
        "from fitune.cli import main; main(['generate', 'nowhere', '--prompt', 'x'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != WAIT}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
