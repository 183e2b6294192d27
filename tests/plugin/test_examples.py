"""The worked packages, and what goes wrong with those of others, all installed beside each other: what `ft` says."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fitune.cli.main import main
from fitune.testing import write_recipe
from support.commands import Capture, ft, refused
from support.made_plugins import STRATEGY, install, pip_install
from support.paths import ROOT, TESTS
from support.wrong_returns import SOURCE

EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if (path / "pyproject.toml").is_file())
BROKEN = [TESTS / "third_party" / f"fitune-{name}" for name in ("broken-import", "misspelled-hook")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which they are installed: from their sources by pip, the small ones as pip would leave them."""
    target = tmp_path_factory.mktemp("site")
    pip_install(target, *EXAMPLES, *BROKEN)
    install(target, "fitune-tomorrow", "raise RuntimeError('this was imported')\n", requires=["fitune>=99"])
    install(target, "fitune-clashing", STRATEGY.format(name="bfloat16-adamw"), entry="clashing")
    install(target, "fitune-taking", STRATEGY.format(name="chunked-loss"), entry="taking")
    install(target, "fitune-wrong", SOURCE, entry="wrong")
    return target


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process sees them."""
    monkeypatch.syspath_prepend(site)
    yield
    for name in [name for name in sys.modules if name.startswith("fitune_") and not name.startswith("fitune_plugins")]:
        del sys.modules[name]


def in_a_process(site: Path, *command: str | Path) -> str:
    """What a command of a process that sees them prints."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "80", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_are_three() -> None:
    assert [path.name for path in EXAMPLES] == ["fitune-bfloat16-adamw", "fitune-output-scales", "fitune-sqlite"]


def test_their_own_tests_pass_as_they_are_installed(site: Path, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    tests = [path / "tests" for path in EXAMPLES]
    alone = ("-p", "no:cacheprovider", "-p", "no:xdist", "-c", tmp_path / "pytest.ini")
    told = in_a_process(site, "pytest", "-q", *alone, *tests)
    assert " passed" in told


def test_plugins_lists_all_of_them(site: Path) -> None:
    told = in_a_process(site, "fitune", "plugins")
    assert max(map(len, told.splitlines())) <= 80
    good, _, bad = told.partition("\nBROKEN\n")
    for line in (
        "output-scales A factor for each output of some linear layers",
        "fitune-bfloat16-adamw:bfloat16-adamw AdamW whose means are kept in bfloat16",
        "fitune-clashing:bfloat16-adamw For a test (fitune-clashing 1.0)",
        "fitune-taking:chunked-loss For a test (fitune-taking 1.0)",
        " chunked-loss Output head and loss in chunks",
        "sqlite Source: the rows that a query gives",
        "commands sqlite-log Print the steps of RUN",
    ):
        assert line in " ".join(good.split())
    for line in (
        "broken-import 0.3.0: broken: RuntimeError: this plugin needs libnothing.so.7",
        'misspelled-hook 0.4.0: broken: there is no hook "ft_memory_strategy". Did you mean "ft_memory_strategies"?',
        "fitune-tomorrow 1.0: broken: built for fitune >=99, and this is",
    ):
        assert line in " ".join(bad.split())


def test_a_recipe_with_all_three_trains_and_is_known_by_them(site: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "talks.db")) as made, made:
        made.execute("create table talks (prompt, completion)")
        made.executemany("insert into talks values (?, ?)", [(f"{n} + {n}?", str(2 * n)) for n in range(4)])
    source = {"use": "sqlite", "path": str(tmp_path / "talks.db"), "query": "select * from talks order by rowid"}
    changes: dict[str, object] = {
        "adapter": {"use": "output-scales"},
        "memory": {"strategy": [{"use": "fitune-bfloat16-adamw:bfloat16-adamw"}]},
        "data": {"source": [source]},
        "listener": [{"use": "sqlite-log"}],
    }
    in_a_process(site, "fitune", "run", write_recipe(tmp_path / "recipe", changes), "--out", tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "identity.json").read_text(encoding="utf-8"))["plugins"]
    third = {what: one["distribution"] for what, one in kept.items() if one["distribution"] != "fitune"}
    assert third == {
        "adapter output-scales": "fitune-output-scales",
        "memory strategy bfloat16-adamw": "fitune-bfloat16-adamw",
        "data stage sqlite": "fitune-sqlite",
        "listener sqlite-log": "fitune-sqlite",
    }
    assert len(in_a_process(site, "fitune", "sqlite-log", tmp_path / "run").splitlines()) == 3


@pytest.mark.parametrize(
    ("strategies", "told"),
    [
        ('{use="tomorrows"}', "fitune-tomorrow (built for fitune >=99, and this is"),
        ('{use="misspelled"}', 'misspelled-hook (there is no hook "ft_memory_strategy"'),
        ('{use="needy"}', "broken-import (RuntimeError: this plugin needs libnothing.so.7"),
        ('{use="bfloat16-adamw"}', 'use = "fitune-bfloat16-adamw:bfloat16-adamw" or "fitune-clashing:bfloat16-adamw"'),
        ('{use="fitune-bfloat16-adamw:bfloat16-adamw"}, {use="adamw-8bit"}', "both make the optimizer. Keep one"),
    ],
)  # fmt: skip
def test_check_says_what_is_wrong(
    installed: None, recipe_path: Path, capsys: Capture, strategies: str, told: str
) -> None:
    assert told in refused("check", str(recipe_path), "--set", f"memory.strategy=[{strategies}]", capsys=capsys)


def test_a_built_in_name_means_what_it_did(installed: None, recipe_path: Path, capsys: Capture) -> None:
    for name, owner in (("chunked-loss", "fitune "), ("fitune-taking:chunked-loss", "fitune-taking 1.0")):
        ft("check", str(recipe_path), "--set", f'memory.strategy=[{{use="{name}"}}]', capsys=capsys)
        assert f"  from     {owner}" in ft("plugins", "--why", name, capsys=capsys)


MODEL = "and must give a model of transformers, or a wrapper with a get_base_model() that gives it"
OF_STRATEGIES = {
    "make": "gave None, and must give a fitune.Strategy",
    "plan": "gave None, and must give a fitune.Plan",
    "loaded": f"gave None, {MODEL}",
    "prepare": f"gave None, {MODEL}",
    "distribute": f"gave None, {MODEL}",
    "whole": "gave None, and must give something to call",
    "around_step": "gave None, and must give a context manager",
    "micro_batch": "gave None, and must give something to call",
    "make_optimizer": "gave a int, and must give a torch.optim.Optimizer, or None",
    "own_gradients": "gave a int, and must give a fitune.GradientOwner, or None",
}
WRONG = {
    f'memory.strategy=[{{use="wrong-{hook}"}}]': f'memory strategy "wrong-{hook}": {hook} {what}'
    for hook, what in OF_STRATEGIES.items()
} | {
    'adapter={use="wrong-attach"}': f'adapter "wrong-attach": attach gave None, {MODEL}',
    'adapter={use="wrong-save"}': 'adapter "wrong-save": save wrote no safetensors, and what was trained must be in '
    "some. This was tried before any more is trained. Mend the plugin",
    'objective={use="wrong-objective"}': 'objective "wrong-objective": make gave None, and must give a fitune.'
    "Criterion",
    'data.source=[{use="wrong-source"}]': 'data stage "wrong-source" gave a dict, and must give a fitune.Row: it says '
    'that it gives "rows"',
    'data.stage=[{use="detect"},{use="wrong-stage"},{use="chat"}]': 'data stage "wrong-stage" gave a int, and must '
    'give a fitune.Conversation: it says that it gives "conversations"',
    'listener=[{use="wrong-listener"}]': 'listener "wrong-listener": it hears no event: mark methods such as '
    "ft_step_done with @fitune.hookimpl",
}


@pytest.mark.parametrize("changed", WRONG)
def test_run_says_in_a_line_who_gave_a_wrong_thing(
    installed: None, recipe_path: Path, capsys: Capture, changed: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["run", str(recipe_path), "--out", "run", "--set", changed])
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert printed.err.splitlines()[-1] == f"error: {WRONG[changed]}"
    assert "Traceback" not in printed.err
    assert not [line for line in printed.out.splitlines() if line.startswith("step")]
