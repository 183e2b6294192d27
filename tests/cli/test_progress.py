"""What is seen while data are prepared: counts on a terminal, one line where there is none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fitune.cli.progress import Progress


def test_one_line_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    with Progress(Console(file=file))("training data", {"jsonl": 3}):
        assert file.getvalue() == "preparing the training data\n"
    assert file.getvalue() == "preparing the training data\n"


def test_a_terminal_shows_how_much_each_stage_has_given() -> None:
    file, flow = io.StringIO(), {"jsonl": 0}
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    with Progress(console)("held-out data", flow):
        flow["jsonl"], flow["chat"] = 2000, 1999  # what is drawn last is drawn at the end
    assert "preparing the held-out data: jsonl 2,000, chat 1,999  [0 s]" in file.getvalue()


def test_the_line_goes_away_with_an_error() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(ValueError, match="bad"), Progress(console)("training data", {}):
        raise ValueError("bad")
    with Progress(console)("training data", {}):
        """A second one can be drawn."""


def test_a_notice_is_printed_as_it_is() -> None:
    file = io.StringIO()
    Progress(Console(file=file)).tell("the data in [x] are damaged")
    assert file.getvalue() == "note: the data in [x] are damaged\n"
