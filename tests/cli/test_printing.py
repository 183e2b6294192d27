"""What is printed is text, whatever it came from. On 0.1 it was so of a user's errors and of the rows of `ft data`."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

import pytest

from fitune import Answer, PluginError
from fitune.cli.console import RunConsole
from fitune.cli.main import main
from fitune.cli.printing import Filtered, filtered_streams, say, say_json
from fitune.cli.progress import Progress
from fitune.cli.text_console import TextConsole
from fitune.errors import CONTROLS, visible, visible_json
from fitune.runs.answers import Answered
from fitune.runs.json_lines import Complaints
from support.commands import Capture

HOSTILE = {
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;title\x07",
    "link": "\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "eight bits": "\x9b31m\x9d52;c;eA==\x9c",
    "back": "safe\b\b\b\bevil",
    "rewritten": "error: all is lost\rall is well       ",
    "up": "\x1b[1A\x1b[2Kgone",
    "override": "a\u202edcb\u202c",
    "isolate": "a\u2066b\u2069",
    "mark": "a\u200fb\u061cc",
    "hidden": "a\u200bb\u2060c\U000e0041",
    "lines": "a\u2028b\u2029c",
    "surrogate": "a\ud800b",
    "delete": "a\x7fb",
    "device": "\x1bP+q544e\x1b\\",
}
TOKEN = "not-of-a-known-shape"


Streams = tuple[io.StringIO, io.StringIO]


@contextlib.contextmanager
def _streams() -> Iterator[Streams]:
    """What comes out of the filtered streams."""
    made = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", made[0])
        patch.setattr(sys, "stderr", made[1])
        with filtered_streams():
            yield made


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("way", ["print", "write", "lines", "say", "log", "error stream", "complaint"])
def test_nothing_that_a_terminal_obeys_comes_out(name: str, way: str) -> None:
    text = HOSTILE[name]
    with _streams() as streams:
        if way == "print":
            print("a", text)
        elif way == "write":
            sys.stdout.write(text)
        elif way == "lines":
            sys.stdout.writelines([text, text])
        elif way == "say":
            say(text)
        elif way == "log":
            handler = logging.StreamHandler()  # as libraries make theirs
            handler.emit(logging.LogRecord("x", logging.ERROR, "x", 1, text, None, None))
        elif way == "complaint":
            Complaints().tell("it", text)
        else:
            sys.stderr.write(text)
    printed = "".join(stream.getvalue() for stream in streams)
    assert visible(text) in printed
    assert CONTROLS.search(printed) is None


def test_bars_may_go_back() -> None:
    """tqdm writes a bar over itself, and moves between several."""
    with _streams() as streams:
        for text in ("\r 5%|#", "\n\n", "\x1b[A\x1b[A", "\r10%|##\r"):
            sys.stderr.write(text)
    assert streams[1].getvalue() == "\r 5%|#\n\n\x1b[A\x1b[A\r10%|##\\x0d"


def test_secrets_do_not_come_out_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", TOKEN)
    with _streams() as streams:
        print(f"a {TOKEN}")
        print(f"b {TOKEN}, password=hunter22", file=sys.stderr)
        say_json({"c": TOKEN, "n": 12345678, "password": "x"})
    assert streams[1].getvalue() == "b [redacted], password=[redacted]\n"
    assert streams[0].getvalue().startswith("a [redacted]\n{")
    assert json.loads(streams[0].getvalue().partition("\n")[2]) == {"c": "[redacted]", "n": 12345678, "password": "x"}


@pytest.mark.parametrize("plain", [True, False])
def test_json_stays_json(plain: bool) -> None:
    values = {**HOSTILE, "plain": "ü 漢 😀 a\\x7f"}
    with _streams() as streams:
        say_json(values, plain=plain)
    printed = streams[0].getvalue()
    assert CONTROLS.search(printed) is None
    assert json.loads(printed) == values
    assert printed.isascii() is plain


@pytest.mark.parametrize("code", [0x7F, 0x9B, 0x202E, 0xFEFF, 0xE0041])
def test_escapes_of_json(code: int) -> None:
    text = json.dumps(chr(code), ensure_ascii=False)
    assert visible_json(text).isascii()
    assert json.loads(visible_json(text)) == chr(code)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_console_draws_text(name: str, is_terminal: bool) -> None:
    """Its own sequences pass the filter, and nobody else's."""
    out = io.StringIO()
    file = cast(TextIO, Filtered(out, prose=True))
    colours = "standard" if is_terminal else None
    console = TextConsole(file=file, force_terminal=is_terminal, color_system=colours, width=200, legacy_windows=False)  # type: ignore[arg-type]
    run = RunConsole(console)
    row = {"prompt": HOSTILE[name], "expected": HOSTILE[name]}
    for step, generated in enumerate(("a", HOSTILE[name])):
        answer = Answer(**{**row, "generated": generated})  # type: ignore[arg-type]
        run._answered = Answered(step=step, answers=(answer,))
        run._first = run._first or run._answered
    run._compare(1)
    Progress(console).tell(HOSTILE[name])
    printed = out.getvalue()
    assert ("\x1b[" in printed) is is_terminal
    own = printed.replace("\x1b[0m", "").replace("\x1b[1m", "").replace("\x1b[33m", "").replace("\x1b[3m", "")
    assert CONTROLS.search(own) is None
    assert visible(HOSTILE[name].strip()) in own or name in ("back", "rewritten")  # rich itself drops these


BROKEN = """\
from fitune import hookimpl

@hookimpl
def ft_check(recipe):
    raise ValueError("MESSAGE")
"""


@pytest.mark.parametrize("debug", [True, False])
def test_a_plugins_error_is_text(
    recipe_path: Path, debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """With a secret that the variable holds, one in a header, and one of an address, in --debug's traceback too."""
    monkeypatch.setenv("DATABASE_URL", f"postgres://me:{TOKEN}@host/db")
    said = f"{TOKEN}, Cookie: session=abcdefgh"
    message = "".join(HOSTILE[name] for name in ("colour", "clipboard", "link", "override")) + said
    code = BROKEN.replace("MESSAGE", message.encode("unicode_escape").decode())
    (recipe_path.parent / "mine.py").write_text(code, encoding="utf-8")
    recipe_path.write_text(f'plugins = ["mine.py"]\n{recipe_path.read_text(encoding="utf-8")}', encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["check", str(recipe_path), *(["--debug"] if debug else [])])
    printed = capsys.readouterr().err
    assert "red" in printed
    assert ("Traceback" in printed) is debug
    assert CONTROLS.search(printed) is None
    assert TOKEN not in printed
    assert "abcdefgh" not in printed


def test_what_is_a_bug_is_told_as_text(monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def fails(*_: object) -> None:
        raise ZeroDivisionError(f"\x1b[31m{TOKEN}")

    monkeypatch.setattr("fitune.cli.runs._print", fails)
    with pytest.raises(SystemExit) as caught:
        main(["runs", str(tmp_path)])
    printed = capsys.readouterr().err
    assert caught.value.code == 1
    assert "ZeroDivisionError: \\x1b[31m[redacted]" in printed


def test_names_of_arguments_are_text(capsys: Capture) -> None:
    commands = (
        ["\x1b[31mrun"],
        ["check", "\x1b]52;c;x\x07.toml"],
        ["plan", "--\x1b[31m"],
        ["plugins", "show", "\u202e"],
    )
    for arguments in commands:
        with pytest.raises(SystemExit):
            main(arguments)
        assert CONTROLS.search(capsys.readouterr().err) is None


def test_an_error_is_still_one(capsys: Capture) -> None:
    """What it says is as before."""
    with pytest.raises(SystemExit):
        main(["plugins", "show", "ü"])
    assert capsys.readouterr().err.startswith('error: no plugin provides "ü". ')
    assert issubclass(PluginError, Exception)
