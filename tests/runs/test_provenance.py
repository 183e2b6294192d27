"""What is written beside a run about where it came from."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fitune.errors import RunError
from fitune.runs.git import state_of
from fitune.runs.provenance import changed_recipe
from fitune.testing import open_registry, write_recipe
from fitune.train.start import start_of
from fitune.trained.open import find
from support.tiny import losses, train


def _git(directory: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(directory), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _environment(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
    return found


def test_the_saved_recipe_runs_again(recipe_path: Path, tmp_path: Path) -> None:
    """From another directory, with the overrides in it, and to the same losses."""
    run = train(recipe_path, tmp_path / "one", "seed=7", "train.steps=2", 'memory.strategy=[{use="chunked-loss"}]')
    again = train(tmp_path / "one" / "recipe.toml", tmp_path / "two")
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert again.recipe.to_toml() == run.recipe.to_toml()
    assert again.recipe.general.seed == 7


def test_a_recipe_that_is_not_as_it_was_written_is_told(recipe_path: Path, tmp_path: Path) -> None:
    """By generate, eval and merge, which open it; on 0.1 a bit of it changed what was asked, in silence."""
    run = tmp_path / "run"
    train(recipe_path, run, "train.steps=1")
    written = (run / "recipe.toml").read_bytes()
    assert find(run, open_registry()).notices == ()
    first, _, rest = written.partition(b"\n")
    for changed in (written.replace(b"alpha = 8", b"alpha = 9"), first[:-1] + b"\n" + rest, written + b"\n"):
        assert changed != written
        (run / "recipe.toml").write_bytes(changed)
        (notice,) = find(run, open_registry()).notices
        assert notice == changed_recipe(run)
        assert notice.startswith(
            f"{run / 'recipe.toml'} is not as the run wrote it: its first line has another SHA-256"
        )
    (run / "recipe.toml").write_bytes(rest.replace(b"alpha = 8", b"alpha = 9"))  # by its owner, or of an older release
    assert find(run, open_registry()).notices == ()


def test_a_run_that_has_not_begun_does_not_begin_otherwise(recipe_path: Path, tmp_path: Path) -> None:
    """Nothing but that file tells what it was to be."""
    run = tmp_path / "run"
    train(recipe_path, run, "train.steps=1")
    (run / "identity.json").unlink()
    start_of(run, open_registry(), (), out=None, resume=False, allowed=())
    text = (run / "recipe.toml").read_text(encoding="utf-8")
    (run / "recipe.toml").write_text(text.replace("alpha = 8", "alpha = 9"), encoding="utf-8")
    with pytest.raises(RunError, match="is not as the run wrote it"):
        start_of(run, open_registry(), (), out=None, resume=False, allowed=())


def test_the_environment(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_OF_MINE", "hunter2-hunter2")
    train(recipe_path, tmp_path / "run")
    found = _environment(tmp_path / "run")
    assert found.keys() == {
        "fitune", "python", "platform", "packages", "plugins", "command", "recipe", "model_commit", "git", "devices",
    }  # fmt: skip
    import torch

    assert found["packages"]["torch"] == torch.__version__
    assert found["recipe"] == str(recipe_path)
    assert found["git"] is None  # a temporary directory is no repository
    text = "".join(file.read_text(encoding="utf-8") for file in (tmp_path / "run").glob("*.*"))
    assert "hunter2" not in text
    assert "A_SECRET_OF_MINE" not in text


def _committed(home: Path) -> Path:
    """A recipe in a repository of its own, with one commit on the branch `main`."""
    recipe = write_recipe(home)
    _git(home, "init", "-q", "-b", "main")
    _git(home, "add", ".")
    _git(home, "commit", "-q", "-m", "first")
    return recipe


def test_the_commit_of_the_recipes_repository(tmp_path: Path) -> None:
    recipe = _committed(tmp_path / "recipe")
    train(recipe, tmp_path / "run")
    commit = _git(recipe.parent, "rev-parse", "HEAD")
    assert _environment(tmp_path / "run")["git"] == {"commit": commit, "branch": "main"}


@pytest.mark.parametrize("form", ["packed", "detached", "worktree", "packed worktree", "below", "tag", "linked"])
def test_every_form_of_a_repository(tmp_path: Path, form: str) -> None:
    home = tmp_path / "home"
    _committed(home)
    commit, place, branch = _git(home, "rev-parse", "HEAD"), home, {"branch": "main"}
    if "packed" in form:
        _git(home, "pack-refs", "--all")
        assert not (home / ".git" / "refs" / "heads" / "main").exists()
    if form == "detached":
        _git(home, "checkout", "-q", "--detach")
        branch = {}
    if "worktree" in form:
        place, branch = tmp_path / "other", {"branch": "side"}
        _git(home, "worktree", "add", "-q", "-b", "side", str(place))
        _git(home, "pack-refs", "--all") if "packed" in form else None
    if form == "below":
        place = home / "a" / "b"
        place.mkdir(parents=True)
    if form == "tag":
        _git(home, "tag", "--annotate", "-m", "one", "v1")
        _git(home, "pack-refs", "--all")
    if form == "linked":  # a branch that stands for another
        _git(home, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
        _git(home, "symbolic-ref", "HEAD", "refs/heads/alias")
        branch = {"branch": "alias"}
    assert state_of(place) == {"commit": commit, **branch}


HOSTILE_CONFIG = """\
[core]
    fsmonitor = "touch {ran}; echo"
    hooksPath = hooks
    pager = touch {ran}
[filter "odd"]
    clean = touch {ran}
    process = touch {ran}
[diff "odd"]
    textconv = touch {ran}
[include]
    path = more
"""


def test_nothing_that_a_repository_names_is_run(tmp_path: Path) -> None:
    """On 0.1 the monitor's command ran, by `git status`."""
    recipe, ran = _committed(tmp_path / "recipe"), tmp_path / "ran"
    commit = _git(recipe.parent, "rev-parse", "HEAD")
    (recipe.parent / ".gitattributes").write_text("* filter=odd diff=odd\n", encoding="utf-8")
    (recipe.parent / "data.jsonl").touch()
    with (recipe.parent / ".git" / "config").open("a", encoding="utf-8") as config:
        config.write(HOSTILE_CONFIG.format(ran=ran))
    train(recipe, tmp_path / "run")
    assert not ran.exists()
    assert _environment(tmp_path / "run")["git"]["commit"] == commit


@pytest.mark.parametrize(
    "head",
    [
        "ref: refs/heads/../../../secret",
        "ref: /etc/passwd",
        "ref: refs/heads/main",  # which stands for itself
        "ref: refs/heads/none",
        "g" * 40,
        "",
        "ref: refs/heads/\0",
        "a" * 70_000,
    ],
)
def test_a_head_that_leads_nowhere(tmp_path: Path, head: str) -> None:
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text(head, encoding="utf-8")
    (git / "refs" / "heads" / "main").write_text("ref: refs/heads/main\n", encoding="utf-8")
    (tmp_path / "secret").write_text("a" * 40, encoding="utf-8")
    assert state_of(tmp_path) is None


@pytest.mark.skipif(os.name == "nt", reason="there are no pipes with a name")
@pytest.mark.parametrize("name", ["HEAD", "packed-refs", "commondir", "refs/heads/main"])
def test_a_pipe_in_a_repository_is_not_waited_for(tmp_path: Path, name: str) -> None:
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n", encoding="utf-8")
    (git / name).unlink(missing_ok=True)
    os.mkfifo(git / name)
    assert state_of(tmp_path) is None


def test_a_worktree_file_that_names_itself(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: .git\n", encoding="utf-8")
    assert state_of(tmp_path) is None


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    _git(recipe.parent, "init", "-q")
    train(recipe, tmp_path / "run")
    assert _environment(tmp_path / "run")["git"] is None


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """git need not be installed: it is not asked."""
    recipe = _committed(tmp_path / "recipe")
    commit = _git(recipe.parent, "rev-parse", "HEAD")
    monkeypatch.setenv("PATH", str(tmp_path))
    train(recipe, tmp_path / "run")
    assert _environment(tmp_path / "run")["git"] == {"commit": commit, "branch": "main"}
