"""Every hook: documented with its exact arguments, its example true, and called in a real run, failing ones too."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fitune import (
    Deprecation,
    EvalReport,
    ModelError,
    PluginError,
    Problem,
    Recipe,
    RecipeError,
    Run,
    StepReport,
    hookimpl,
)
from fitune.plugin.deprecation import HOOK
from fitune.plugin.eventspecs import EventHooks
from fitune.plugin.extendspecs import ExtendHooks
from fitune.plugin.hookspecs import OfferHooks
from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe, write_tiny_model
from support.made_plugins import install
from support.paths import ROOT
from support.scripts import loaded
from support.tiny import metrics

MAKE_HOOKS = ROOT / "docs" / "make_hooks.py"
SPECIFICATIONS = (OfferHooks, ExtendHooks, EventHooks)
HOOKS = {name: function for specs in SPECIFICATIONS for name, function in vars(specs).items() if name.startswith("ft_")}
every_hook = pytest.mark.parametrize("hook", HOOKS)


def example(hook: str) -> ModuleType:
    """The example in a hook's docstring, run, as a plugin."""
    module = ModuleType(f"example_of_{hook}")
    test = doctest.DocTestParser().get_doctest(HOOKS[hook].__doc__ or "", {}, hook, None, None)
    runner = doctest.DocTestRunner()
    runner.run(test, clear_globs=False)
    assert (runner.failures, runner.tries > 0) == (0, True)
    module.__dict__.update(test.globs)
    return module


def sections() -> dict[str, str]:
    """The parts of docs/hooks.md, by heading."""
    _, *parts = MAKE_HOOKS.with_name("hooks.md").read_text(encoding="utf-8").split("\n## `")
    return dict(part.split("`\n", 1) for part in parts)


# -------------------------------------------------------------------------------------------------------- documentation


def test_the_page_of_hooks_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(MAKE_HOOKS), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_check_of_that_page_sees_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "make_hooks.py").write_text(MAKE_HOOKS.read_text(encoding="utf-8"))
    (tmp_path / "hooks.md").write_text(loaded(MAKE_HOOKS).page().replace("step: StepReport", "step: Report"))
    command = [sys.executable, str(tmp_path / "make_hooks.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "out of date" in done.stderr


def test_the_page_says_which_hook_is_deprecated(monkeypatch: pytest.MonkeyPatch) -> None:
    make, mark = loaded(MAKE_HOOKS), Deprecation(since="0.2", removed_in="0.4", instead="Implement ft_evaluated")
    monkeypatch.setattr(EventHooks.ft_step_done, HOOK, mark, raising=False)
    says = "**Deprecated**: the hook is deprecated since fitune 0.2 and gone in 0.4. Implement ft_evaluated."
    assert make.section(EventHooks.ft_step_done).endswith(f"{says}\n")
    assert make.page().count("**Deprecated**") == 1


def test_the_page_holds_every_hook_in_the_order_of_the_source() -> None:
    trees = [ast.parse(inspect.getsource(specs)).body[0] for specs in SPECIFICATIONS]
    signatures = []
    for function in (function for tree in trees if isinstance(tree, ast.ClassDef) for function in tree.body):
        if isinstance(function, ast.FunctionDef):
            assert function.returns is not None
            arguments = ast.unparse(function.args).removeprefix("self").removeprefix(", ")
            signatures.append(f"{function.name}({arguments}) -> {ast.unparse(function.returns)}")
    assert len(signatures) == len(HOOKS) == 21
    assert list(sections()) == signatures


@every_hook
def test_a_hook_is_documented_with_an_example_and_its_version(hook: str) -> None:
    (text,) = (text for heading, text in sections().items() if heading.startswith(f"{hook}("))
    assert f"@hookimpl\ndef {hook}(" in text
    assert re.search(r"\*versionadded: 0\.[12]\*", text)
    what = (HOOKS[hook].__doc__ or "").splitlines()[0]
    assert text.strip().startswith(what)


@every_hook
def test_the_example_of_a_hook_is_a_sound_plugin(hook: str) -> None:
    registry = Registry()
    registry.register(example(hook), hook)
    assert registry.plugins[hook].hooks == (hook,)


# ------------------------------------------------------------------------------------------------------ called for real


class Recorder:
    """Keeps what it is told, in order; raises at one event if asked to."""

    def __init__(self, fails_at: str | None = None, error: BaseException | None = None) -> None:
        self.told: list[tuple[object, ...]] = []
        self.fails_at, self.error = fails_at, error

    def tell(self, *what: object) -> None:
        """Keep this event, and raise if it is the one."""
        self.told.append(what)
        if self.error is not None and what[0] == self.fails_at:
            raise self.error

    @hookimpl
    def ft_check(self, recipe: Recipe) -> Iterable[Problem]:
        """Keep it."""
        self.tell("check", recipe.general.name)
        return ()

    @hookimpl
    def ft_run_started(self, run: Run) -> None:
        """Keep it."""
        self.tell("started", run.steps)

    @hookimpl
    def ft_step_done(self, run: Run, step: StepReport) -> None:
        """Keep it."""
        self.tell("step", step.step)

    @hookimpl
    def ft_evaluated(self, run: Run, report: EvalReport) -> None:
        """Keep it."""
        self.tell("evaluated", report.step)

    @hookimpl
    def ft_saved(self, run: Run, directory: Path) -> None:
        """Keep it, with what lies there already."""
        self.tell("saved", directory.name, (directory / "adapter_model.safetensors").is_file())

    @hookimpl
    def ft_run_finished(self, recipe: Recipe, run: Run | None, error: BaseException | None) -> None:
        """Keep it."""
        self.tell("finished", recipe.general.name, run is not None, error)


def train(recipe_path: Path, *plugins: Recorder) -> None:
    """Check a recipe and run it with these plugins."""
    from fitune.train.run import run

    registry = open_registry()
    for number, plugin in enumerate(plugins, 1):
        registry.register(plugin, f"recorder-{number}")
    recipe = read_recipe(recipe_path, registry)
    directory = recipe_path.parent / "run"
    directory.mkdir()
    run(recipe, registry, directory)


def test_a_run_tells_its_events_in_order(tmp_path: Path) -> None:
    held_out = {"every": 2, "source": [{"use": "jsonl", "path": "data.jsonl"}]}
    recorder = Recorder()
    train(write_recipe(tmp_path, {"eval": held_out}), recorder)
    assert recorder.told == [
        ("check", "tiny"),
        ("started", 3),
        ("evaluated", 0),
        ("step", 1),
        ("step", 2),
        ("evaluated", 2),
        ("step", 3),
        ("evaluated", 3),
        ("saved", "adapter", True),
        ("finished", "tiny", True, None),
    ]


def test_a_run_that_a_plugin_breaks_finishes_with_its_error(recipe_path: Path) -> None:
    bad, recorder = Recorder("step", ValueError("odd")), Recorder()
    with pytest.raises(PluginError, match=r"plugin recorder-1: ft_step_done failed: ValueError: odd") as raised:
        train(recipe_path, bad, recorder)
    assert recorder.told[1:] == [("started", 3), ("step", 1), ("finished", "tiny", True, raised.value)]
    assert bad.told[-1] == recorder.told[-1]


def test_a_run_that_fails_before_it_is_ready_finishes_without_a_run(recipe_path: Path) -> None:
    (recipe_path.parent / "model" / "model.safetensors").write_bytes(b"cut off")
    recorder = Recorder()
    with pytest.raises(ModelError) as raised:
        train(recipe_path, recorder)
    assert recorder.told == [("check", "tiny"), ("finished", "tiny", False, raised.value)]


def test_an_interrupted_run_finishes_with_the_interruption(recipe_path: Path) -> None:
    recorder, interrupter = Recorder(), Recorder("step", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as raised:
        train(recipe_path, recorder, interrupter)
    assert recorder.told == [("check", "tiny"), ("started", 3), ("finished", "tiny", True, raised.value)]


def test_one_plugins_error_at_the_end_keeps_no_other_from_being_told(recipe_path: Path) -> None:
    recorder, bad = Recorder(), Recorder("finished", OSError("no network"))
    with pytest.raises(PluginError, match="plugin recorder-2: ft_run_finished failed: OSError: no network"):
        train(recipe_path, recorder, bad)
    assert recorder.told[-2:] == [("saved", "adapter", True), ("finished", "tiny", True, None)]


def test_an_error_at_the_end_does_not_hide_what_ended_the_run(recipe_path: Path) -> None:
    recorder, bad = Recorder("step", ValueError("first")), Recorder("finished", OSError("second"))
    with pytest.raises(PluginError, match="ValueError: first") as raised:
        train(recipe_path, recorder, bad)
    assert recorder.told[-1] == ("finished", "tiny", True, raised.value)


def test_a_problem_found_by_a_plugin_stops_a_recipe_at_its_line(recipe_path: Path) -> None:
    registry = open_registry(example("ft_check"))
    with pytest.raises(RecipeError, match=r"the house allows up to 0\.1\. Lower it$") as raised:
        read_recipe(recipe_path, registry, ["train.learning_rate=0.2"])
    assert "--set train.learning_rate=0.2" in str(raised.value)


def test_every_example_works_in_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_model(tmp_path / "my" / "model")
    changes: dict[str, Any] = {
        "model": {"use": "mine"},
        "adapter": {"use": "embeddings"},
        "memory": {"strategy": [{"use": "sgd"}], "rehearse": False},  # on a GPU it would have its own line
        "data": {"source": [{"use": "jsonl", "path": "data.jsonl"}], "stage": [{"use": "chat"}, {"use": "short"}]},
        "eval": {"source": [{"use": "jsonl", "path": "data.jsonl"}]},
        "listener": [{"use": "console", "quiet": True}, {"use": "tokens"}],
    }
    path = write_recipe(tmp_path / "recipe", changes)
    text = path.read_text(encoding="utf-8").replace('path = "model"\ndtype = "float32"\n', "")
    path.write_text(text, encoding="utf-8")
    run_with_examples(path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"tiny trains for 3 steps in {path.parent / 'run'}"
    assert [line.split()[0] for line in lines[1:6]] == ["0", "1", "2", "3", "3"]  # evaluations and steps
    assert lines[6].startswith(f"copy {path.parent / 'run' / 'checkpoints' / 'step-3'} to a safe place: ")
    assert lines[7] == f"upload {path.parent / 'run' / 'model'}"
    seen = sum(line["tokens"] for line in metrics(path.parent / "run"))
    assert lines[8:] == [f"tiny has seen {seen} tokens", "tiny done"]
    assert (path.parent / "run" / "model" / "model.safetensors").is_file()


def run_with_examples(path: Path) -> None:
    """Run a recipe with the examples of all hooks but `ft_commands` as plugins."""
    from fitune.train.run import run

    registry = open_registry(*(example(hook) for hook in HOOKS if hook != "ft_commands"))
    recipe = read_recipe(path, registry)
    (path.parent / "run").mkdir()
    run(recipe, registry, path.parent / "run")


def test_a_command_of_a_plugin_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "".join(e.source for e in doctest.DocTestParser().get_examples(HOOKS["ft_commands"].__doc__ or ""))
    install(tmp_path, "fitune-hello", code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run([sys.executable, "-m", "fitune", "hello"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "hello\n")
