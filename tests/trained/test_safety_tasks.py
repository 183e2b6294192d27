"""Descriptions of tasks are code (`!function`, templates that nothing bounds): a directory of them is asked about."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fitune.errors import RunError
from fitune.plugin.trust import Trust, UnknownCode
from fitune.trained.tasks import must_be_known
from support.commands import Capture, refused

TASK = "task: own\ndoc_to_text: '{{ cycler.__init__.__globals__.os.system(\"touch MARK\") }}'\n"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    directory = tmp_path / "tasks"
    (directory / "inner").mkdir(parents=True)
    (directory / "own.yaml").write_text(TASK, encoding="utf-8")
    (directory / "inner" / "own.py").write_text("x = 1\n", encoding="utf-8")
    return directory


def test_ft_eval_refuses_tasks_that_are_not_known(
    tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("lm_eval", reason="needs fitune[lm-eval]")
    monkeypatch.delenv("FT_ALLOW_PLUGINS")
    said = refused("eval", "nowhere", "--tasks", "own", "--tasks-from", str(tasks), capsys=capsys)
    assert f"{tasks} is not known on this machine, and code in its descriptions of tasks would run" in said
    allowed = refused("eval", "nowhere", "--tasks", "own", "--tasks-from", str(tasks), "--allow-plugins", capsys=capsys)
    assert "nowhere is no run's directory" in allowed
    again = refused("eval", "nowhere", "--tasks", "own", "--tasks-from", str(tasks), capsys=capsys)
    assert "nowhere is no run's directory" in again


CHANGES: dict[str, Callable[[Path], object]] = {
    "another text": lambda tasks: (tasks / "own.yaml").write_text("task: other\n", encoding="utf-8"),
    "another file": lambda tasks: (tasks / "more.py").touch(),
    "another name": lambda tasks: (tasks / "own.yaml").rename(tasks / "other.yaml"),
    "one deep inside": lambda tasks: (tasks / "inner" / "own.py").write_text("x = 2\n", encoding="utf-8"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_allowed_is_all_of_it_as_it_was(tasks: Path, change: str) -> None:
    must_be_known(tasks, Trust(allow=True, remember=True))
    must_be_known(tasks, Trust(allow=False))
    CHANGES[change](tasks)
    with pytest.raises(UnknownCode):
        must_be_known(tasks, Trust(allow=False))


def test_a_pipe_among_them_is_not_waited_for(tasks: Path) -> None:
    os.mkfifo(tasks / "pipe.yaml")
    with pytest.raises(RunError, match=r"pipe\.yaml is no file"):
        must_be_known(tasks, Trust(allow=True))
