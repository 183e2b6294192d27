"""The documentation is true: its blocks are run, in order, each file in a directory of its own.

`<!-- file: NAME -->` before a block writes it to NAME; other Python blocks are run, and share one namespace a file.
Lines `$ ft ...` and `$ pytest ...` of console blocks are run, and what stands below them is compared with what they
print, `...` standing for anything; one that shows `error: ` fails. `<!-- not run: REASON -->` leaves a block out.
Each directory holds the tiny model of `fitune.testing` as `model`, and its data as `data.jsonl`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import tomli

from fitune.testing import write_tiny_data, write_tiny_model
from support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = {
    "README.md": 8,
    "docs/adapters.md": 1,
    "docs/after-training.md": 3,
    "docs/api.md": 0,
    "docs/architecture.md": 0,
    "docs/data.md": 0,
    "docs/fit.md": 0,
    "docs/founding-case.md": 0,
    "docs/hooks.md": 0,
    "docs/index.md": 0,
    "docs/launch.md": 1,
    "docs/migration.md": 0,
    "docs/optimizers.md": 0,
    "docs/plugins.md": 1,
    "docs/preference.md": 1,
    "docs/python.md": 0,
    "docs/recipes.md": 0,
    "docs/records.md": 0,
    "docs/reference.md": 0,
    "docs/resuming.md": 0,
    "docs/safety.md": 0,
    "docs/several-gpus.md": 0,
    "docs/runs.md": 0,
    "docs/templates.md": 0,
    "docs/tour.md": 2,
    "docs/troubleshooting.md": 0,
}
"""Blocks of each page that are left out: each needs a reason, so each new one is counted here."""
COMMANDS = {"ft": "fitune", "pytest": "pytest"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    place: str
    """Page and line, for messages."""
    file: str | None
    """The name that it is written to."""
    reason: str | None
    """Why it is not run."""


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    pattern = r"^(?:<!-- (file|not run): ([^>]+) -->\n+)?```(\w*)\n(.*?)^```$"
    for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE):
        mark, value, language, body = match.groups()
        yield Block(
            language=language,
            text=body,
            place=f"{page.name}:{text[: match.start(4)].count(chr(10))}",
            file=value if mark == "file" else None,
            reason=value if mark == "not run" else None,
        )


def matches(expected: str, printed: str) -> bool:
    """Whether a text is what a page shows, `...` standing for anything and white space at line ends aside."""
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, re.sub(r"[ \t]+$", "", printed.strip(), flags=re.MULTILINE), re.DOTALL) is not None


def run_console(block: Block) -> None:
    """Run the commands of a console block and compare what they print, if the page shows it."""
    assert block.text.startswith("$ "), f"{block.place}: a console block starts with a command"
    for part in re.split(r"^\$ ", block.text.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
        line, _, expected = part.partition("\n")
        program, *arguments = shlex.split(line)
        assert program in COMMANDS, f"{block.place}: {program} is not run here: say so before the block"
        done = subprocess.run(
            [sys.executable, "-m", COMMANDS[program], *arguments],
            env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        printed = done.stdout + done.stderr
        fails = re.search(r"^error: ", expected, re.MULTILINE) is not None
        assert done.returncode == (2 if fails else 0), f"{block.place}: {line}\n{printed}"
        if expected.strip():
            assert matches(expected, printed), f"{block.place}: {line}\n{printed}"


def run_page(page: Path, module: ModuleType) -> None:
    """Run all blocks of a page in the working directory."""
    for block in blocks(page):
        if block.reason is not None:
            continue
        if block.language == "toml":
            tomli.loads(block.text)
        if block.file is not None:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, block.place, "exec", dont_inherit=True), module.__dict__)
        elif block.language == "console":
            run_console(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("blocks_of_a_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up there
    write_tiny_model(Path("model"))
    write_tiny_data(Path("data.jsonl"))
    run_page(page, module)


def test_what_is_not_run_is_counted() -> None:
    found = {str(page.relative_to(ROOT)): sum(b.reason is not None for b in blocks(page)) for page in PAGES}
    assert found == NOT_RUN


PLACES = re.compile(r"(?<![\w/.-])(?:benchmarks|core|docs|plugins|recipes|tests)/[\w./-]*\w")
"""Files and folders of the repository, as pages name them."""


def test_every_place_that_a_page_names_is_there() -> None:
    pages = [*PAGES, ROOT / "CHANGELOG.md"]
    named = {(page.name, place) for page in pages for place in PLACES.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 30
    assert [(page, place) for page, place in sorted(named) if not (ROOT / place).exists()] == []


def test_no_block_hides_from_the_runner() -> None:
    for page in PAGES:
        fences = re.findall(r"^\s*```\w+$", page.read_text(encoding="utf-8"), re.MULTILINE)
        found = list(blocks(page))
        assert len(found) == len(fences), page
        assert {b.language for b in found} <= {"python", "toml", "console", "text", "json"}, page


@pytest.mark.parametrize(
    ("block", "error", "says"),
    [
        ("```python\nassert 1 == 2\n```", AssertionError, ""),
        ("```toml\na = \n```", tomli.TOMLDecodeError, "Invalid value"),
        ("```console\n$ ft --version\nft, version 9\n```", AssertionError, "ft, version 0"),
        ("```console\n$ ft chekc\n```", AssertionError, 'Did you mean "check"?'),
        ("```console\n$ ft --version\nerror: no\n```", AssertionError, "ft, version 0"),
        ("```console\n$ rm something\n```", AssertionError, "page.md:3: rm is not run here"),
    ],
)
def test_a_page_that_is_not_true_fails(tmp_path: Path, block: str, error: type[Exception], says: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{block}\n")
    with pytest.raises(error) as raised:
        run_page(page, ModuleType("blocks"))
    assert says in str(raised.value)
    page.write_text(f"# A page\n\n<!-- not run: untrue -->\n{block}\n")
    run_page(page, ModuleType("blocks"))
