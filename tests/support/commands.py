"""`ft` in this process: what it prints."""

from __future__ import annotations

import pytest

from fitune.cli.main import main

Capture = pytest.CaptureFixture[str]


def ft(*arguments: str, capsys: Capture) -> str:
    """What a command that succeeds prints."""
    main(arguments)
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def refused(*arguments: str, capsys: Capture) -> str:
    """What a command prints that the user got wrong: on standard error alone, with exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err
