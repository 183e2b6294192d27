"""The documentation as a site: every page is in it, it is built without a warning, and quotes errors that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

DOCS = ROOT / "docs"


def test_each_page_is_in_the_index() -> None:
    listed = set(re.findall(r"^([a-z-]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} == listed


def test_it_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 'id="dpo-objective"' in (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")


def test_what_is_told_of_is_what_errors_say() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `([^`]+)`$", page, re.MULTILINE)
    sources = [*(ROOT / "core").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    code = "\n".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")) for path in sources)
    assert len(headings) > 10
    assert [heading for heading in headings if heading not in code] == []
