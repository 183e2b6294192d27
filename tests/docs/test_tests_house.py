"""The tests' own house: all are found by pytest, and what they share stands in `support`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from support.paths import ROOT, TESTS

IMPORT = re.compile(r"^\s*(?:from|import)\s+(?:[\w.]+\.)?test_\w+", re.MULTILINE)
"""Of a test module, in code or in the code of another process."""
COLLECT = """\
import pytest

class Nothing(pytest.File):
    def collect(self):
        return []

class Files:
    def pytest_pycollect_makemodule(self, module_path, parent):
        print("found", module_path)
        return Nothing.from_parent(parent, path=module_path)

pytest.main(["--collect-only", "-q", "--noconftest", "-p", "no:cacheprovider"], plugins=[Files()])
"""
"""Says what pytest collects, and imports none of it."""


def _has_tests(file: Path) -> bool:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return any(isinstance(one, ast.FunctionDef) and one.name.startswith("test_") for one in ast.walk(tree))


def test_no_test_imports_another() -> None:
    files = [*TESTS.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert len(files) > 150
    found = [(file.relative_to(ROOT), IMPORT.findall(file.read_text(encoding="utf-8"))) for file in files]
    assert [one for one in found if one[1]] == []


def test_an_import_of_a_test_is_found() -> None:
    for text in ("from test_a import b", "x = '''\nimport test_a\n'''", "def f():\n    from train.test_a import b"):
        assert IMPORT.search(text)
    assert not IMPORT.search("from support.testing import test_a")


def test_pytest_collects_every_file_with_a_test() -> None:
    ended = subprocess.run([sys.executable, "-c", COLLECT], cwd=ROOT, capture_output=True, text=True, check=True)
    collected = [line.removeprefix("found ") for line in ended.stdout.splitlines() if line.startswith("found ")]
    written = sorted(str(file) for file in TESTS.rglob("*.py") if _has_tests(file))
    assert len(written) > 100
    assert sorted(collected) == written
