"""A Python that fitune starts runs nothing from the working directory. On 0.1 a run's forecast did."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fitune
from fitune.memory.background import Request
from fitune.memory.cards.cards import find_card
from fitune.memory.shapes import Shapes
from fitune.plugin.own_python import ASKED, command_of, without_kernels
from fitune.train import begin

NAMES = ("json", "runpy", "pickle", "torch", "fitune", "sitecustomize")


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files that are named as what is imported, and leave a trace if they are."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("open('ran', 'a').write(__name__)\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_lies_in_the_working_directory_would_be_run_by_python_itself(strange: Path) -> None:
    """Or the tests below could not fail."""
    assert subprocess.run([sys.executable, "-m", "json.tool"], input=b"1", check=False).returncode == 9
    assert (strange / "ran").exists()


def test_a_module_gets_its_arguments_and_nothing_of_the_working_directory(strange: Path) -> None:
    ended = subprocess.run(command_of("json.tool", "--compact"), input=b"[1, 2]", check=True, capture_output=True)
    assert json.loads(ended.stdout) == [1, 2]
    assert ended.stdout.strip() == b"[1,2]"
    assert not (strange / "ran").exists()


def test_ft_itself_is_started_so(strange: Path) -> None:
    """As `ft run --gpus N` does."""
    ended = subprocess.run(command_of("fitune", "--version"), check=True, capture_output=True, text=True)
    assert ended.stdout.startswith("ft")
    assert not (strange / "ran").exists()


def test_the_process_that_forecasts_runs_nothing_of_the_working_directory(strange: Path) -> None:
    """It comes as far as reading the recipe, which is not there."""
    request = Request(
        recipe=strange / "none.toml",
        third_party=False,
        trusts_remote_code=False,
        granted=frozenset(),
        shapes=Shapes(training=(), evaluation=None),
        card=find_card("a10g"),
    )
    given = pickle.dumps(request)
    ended = subprocess.run(command_of("fitune.memory.worker"), input=given, check=False, capture_output=True)
    assert ended.returncode == 1
    assert "none.toml" in ended.stderr.decode()
    assert not (strange / "ran").exists()


@pytest.mark.parametrize("there", [False, True], ids=["not imported", "imported"])
def test_a_run_from_python_imports_no_kernels_and_leaves_python_as_it_was(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ASKED, raising=False)
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    own = ModuleType("kernels")
    if there:  # whoever has imported it has meant it
        monkeypatch.setitem(sys.modules, "kernels", own)
    with without_kernels():
        assert os.environ[ASKED] == "NO"
        assert sys.modules["kernels"] is (own if there else None)
    assert ASKED not in os.environ
    assert sys.modules.get("kernels") is (own if there else None)
    assert ("kernels" in sys.modules) is there


def test_whoever_asks_for_kernels_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ASKED, "1")
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    with without_kernels():
        assert "kernels" not in sys.modules
    assert os.environ[ASKED] == "1"


def test_fitune_run_leaves_them_out(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    seen: list[object] = []
    monkeypatch.setattr(begin, "begin", lambda *given, **named: seen.append(sys.modules.get("kernels", "absent")))
    fitune.run(recipe_path, tmp_path / "run")
    assert seen == [None]
    assert "kernels" not in sys.modules
