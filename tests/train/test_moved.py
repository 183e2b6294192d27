"""A project that was moved as a whole, a run that was moved alone, and runs that start together.

On 0.1 the recipe of a run named places of before the move, and two starts within a second shared a directory.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli

from fitune.errors import RecipeError, RunError
from fitune.plugin.paths import located, seen_from
from fitune.recipe.places import data_places
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe, write_tiny_data
from fitune.train.start import Start, make_directory, start_of
from support.after_runs import ft, refused
from support.resuming import STEPS, go, stop, weights, write_resumed
from support.states import assert_same
from support.tiny import metrics, train


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run that was stopped, and one that is done."""
    home = tmp_path_factory.mktemp("project") / "mine"
    recipe = write_resumed(home / "recipes")
    shutil.move(recipe.parent / "model", home / "base")
    (home / "data").mkdir()
    shutil.move(recipe.parent / "data.jsonl", home / "data" / "rows.jsonl")
    text = recipe.read_text(encoding="utf-8")
    text = text.replace('"model"', '"../base"').replace('"data.jsonl"', '"../data/rows.jsonl"')
    recipe.write_text(text, encoding="utf-8")
    stop(recipe, home / "runs" / "stopped", 5)
    go(recipe, out=home / "runs" / "done")
    return home


@pytest.fixture
def moved(project: Path, tmp_path: Path) -> Iterator[Path]:
    """The project, elsewhere; where it was there is nothing."""
    shutil.copytree(project, tmp_path / "a" / "b" / "yours")
    hidden = project.with_name("hidden")
    project.rename(hidden)
    yield tmp_path / "a" / "b" / "yours"
    hidden.rename(project)


def test_paths_are_relative_to_the_run(project: Path) -> None:
    recipe = tomli.loads((project / "runs" / "done" / "recipe.toml").read_text(encoding="utf-8"))
    assert recipe["model"]["path"] == "../../base"
    assert recipe["data"]["source"][0]["path"] == "../../data/rows.jsonl"
    assert recipe["eval"]["source"][0]["path"] == "../../recipes/held_out.jsonl"
    identity = json.loads((project / "runs" / "done" / "identity.json").read_text(encoding="utf-8"))
    assert identity["recipe"]["model"]["path"] == "../../base"
    assert identity["place"] == str(project / "runs" / "done")


def test_a_project_that_moved_as_a_whole(moved: Path, tmp_path: Path) -> None:
    done, stopped = moved / "runs" / "done", moved / "runs" / "stopped"
    ft("generate", done, "--prompt", "Count", "--max-new-tokens", 2)
    assert json.loads(ft("eval", done, "--json")[0])["step"] == STEPS
    ft("merge", done, "--to", tmp_path / "merged", "--dtype", "float32")
    assert go(done).done
    assert not go(stopped).done
    assert_same(weights(stopped), weights(done))
    assert go(moved / "recipes" / "recipe.toml", out=stopped, resume=True).done
    assert json.loads((stopped / "identity.json").read_text())["place"] == str(stopped)


def test_a_run_that_moved_alone_finds_what_stayed(project: Path, tmp_path: Path) -> None:
    for name in ("done", "stopped"):
        shutil.copytree(project / "runs" / name, tmp_path / "elsewhere" / "deep" / name)
    done, stopped = (tmp_path / "elsewhere" / "deep" / name for name in ("done", "stopped"))
    ft("generate", done, "--prompt", "Count", "--max-new-tokens", 2)
    assert not go(stopped).done
    assert_same(weights(stopped), weights(done))
    shutil.move(stopped, tmp_path / "again")  # and once more, with the recipe that it has written there
    assert go(tmp_path / "again").done
    ft("generate", tmp_path / "again", "--prompt", "Count", "--max-new-tokens", 2)


def test_new_places_of_the_model_and_the_data(moved: Path, tmp_path: Path) -> None:
    done, stopped = moved / "runs" / "done", moved / "runs" / "stopped"
    (tmp_path / "new").mkdir()
    shutil.move(moved / "base", tmp_path / "new" / "model")
    shutil.move(moved / "data" / "rows.jsonl", tmp_path / "new" / "rows.jsonl")
    assert "no such directory" in refused("generate", done, "--prompt", "Count")
    model, data = ("--model", tmp_path / "new" / "model"), ("--data", tmp_path / "new" / "rows.jsonl")
    ft("generate", done, *model, "--prompt", "Count", "--max-new-tokens", 2)
    assert json.loads(ft("eval", done, *model, "--json")[0])["step"] == STEPS
    ft("merge", done, *model, *data, "--to", tmp_path / "merged", "--dtype", "float32")
    assert "nothing to go on with" in ft("run", done, *model, *data)[0]
    ft("run", stopped, *model, *data)
    assert_same(weights(stopped), weights(done))
    assert go(stopped).done  # it knows the new places from now on


def test_what_is_at_a_new_place_must_be_what_it_was(moved: Path, tmp_path: Path) -> None:
    stopped = moved / "runs" / "stopped"
    other = write_tiny_data(tmp_path / "other.jsonl", rows=7)
    with pytest.raises(RunError, match=r"data: rows .* before, rows .* now\. If that is meant: --allow-changed data"):
        go(stopped, data=[other])
    shutil.copytree(moved / "base", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"is another run: model: .*base"):
        go(stopped, model=tmp_path / "model")
    given = ("--prompt", "x", "--model", tmp_path / "model")
    assert "on another base" in refused("generate", moved / "runs" / "done", *given)


def test_new_places_are_given_in_order() -> None:
    source = {"use": "jsonl", "path": "x"}
    values = {"data": {"source": [source, {"use": "hf-dataset", "id": "y"}, source]}, "eval": {"source": [source]}}
    a, b, c = map(Path, "abc")
    assert data_places(values, []) == {}
    assert data_places(values, [a, b]) == {"data.source.0.path": a, "data.source.2.path": b}
    assert list(data_places(values, [a, b, c])) == ["data.source.0.path", "data.source.2.path", "eval.source.0.path"]
    assert data_places({"data": {"path": "x", "source": [source]}}, [a]) == {"data.path": a}
    for files in ([a], [a, b, c, a]):
        with pytest.raises(RunError, match=r"names 2 file\(s\) to train on and 1 held out: data\.source\.0\.path, "):
            data_places(values, files)
    with pytest.raises(RunError, match="no file"):
        data_places({"data": []}, [a])


def test_how_a_path_is_seen_and_found(tmp_path: Path) -> None:
    run, model = tmp_path / "runs" / "one", tmp_path / "model"
    run.mkdir(parents=True)
    model.mkdir()
    assert seen_from(model, run) == "../../model"
    assert seen_from(model, None) == str(model)
    assert seen_from(Path("/elsewhere/model"), run) == "/elsewhere/model"  # nothing but the root is in common
    (tmp_path / "link").symlink_to("/usr/lib", target_is_directory=True)
    there = tmp_path / "link" / ".." / "model"  # which is /usr/model
    assert seen_from(there, run) == str(there)
    assert located(run, Path("../../model")) == model
    assert located(run, Path("../../gone")) == tmp_path / "gone"
    assert located(tmp_path / "new", Path("../../model"), was=run) == model
    assert located(run, Path("/before/model"), was=Path("/before/runs/one")) == model
    (tmp_path / "runs" / "model").mkdir()
    assert located(run, Path("../model"), was=tmp_path / "x" / "y") == tmp_path / "runs" / "model"  # the nearer one


# ------------------------------------------------------------------------------------------------------ together


def test_several_starts_within_a_second(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fitune.train.start.time.strftime", lambda form: "20260101-000000")
    recipe = read_recipe(recipe_path, open_registry())
    starts = [start_of(recipe, open_registry(), (), out=None, resume=False, allowed=()) for _ in range(8)]
    made: list[tuple[Start, list[Path]]] = []
    threads = [threading.Thread(target=lambda start=one: made.append(make_directory(start))) for one in starts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = sorted(start.directory.name for start, _ in made)
    assert names == ["tiny-20260101-000000", *(f"tiny-20260101-000000-{number}" for number in range(2, 9))]
    assert all(start.directory.is_dir() and start.directory in own for start, own in made)
    assert sum(Path("runs") in own for _, own in made) >= 1


def test_the_command_tells_where_each_run_is(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fitune.train.start.time.strftime", lambda form: "now")
    for _ in range(2):
        ft("run", recipe_path, "--set", "train.steps=1")
    assert sorted(place.name for place in Path("runs").iterdir()) == ["tiny-now", "tiny-now-2"]
    assert [len(metrics(Path("runs") / name)) for name in ("tiny-now", "tiny-now-2")] == [1, 1]


def test_a_run_that_cannot_begin_leaves_no_directory(recipe_path: Path) -> None:
    (recipe_path.parent / "data.jsonl").write_text("{}\n", encoding="utf-8")
    for _ in range(2):
        refused("run", recipe_path)
    assert not Path("runs").exists()


def test_one_bad_run_keeps_nobody_from_going_on_with_another(recipe_path: Path) -> None:
    stop(recipe_path, Path("runs") / "tiny-1", 2)
    for number, spoil in enumerate(BAD, 2):
        shutil.copytree("runs/tiny-1", f"runs/tiny-{number}")
        spoil(Path(f"runs/tiny-{number}/identity.json"))
    assert go(recipe_path, resume=True).directory == Path("runs") / "tiny-1"


def _nested(file: Path) -> None:
    file.write_text("[" * 100_000)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _other(file: Path) -> None:
    file.write_text('{"recipe": "\\ud800"}')


BAD: list[Callable[[Path], None]] = [_nested, _pipe, _other]


@pytest.mark.parametrize("spoil", BAD)
def test_the_bad_run_itself_is_refused_in_a_line(
    recipe_path: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    stop(recipe_path, tmp_path / "run", 2)
    spoil(tmp_path / "run" / "identity.json")
    for given in ((tmp_path / "run",), (recipe_path, "--out", tmp_path / "run", "--resume")):
        assert "identity.json cannot be read: " in refused("run", *given)
    assert "is not empty" in refused("run", recipe_path, "--out", tmp_path / "run")


def test_equal_runs_give_equal_files(tmp_path: Path) -> None:
    """All that holds no time, no memory and no place."""
    recipe = write_recipe(tmp_path / "recipe", {"deterministic": True})
    runs = [tmp_path / name for name in ("one", "two")]
    for run in runs:
        train(recipe, run)
    names = {
        place.relative_to(run).as_posix() for run in runs for place in run.rglob("*")
        if place.is_file() and place.name not in ("run.json", "metrics.jsonl", "identity.json", "state.json")
    }  # fmt: skip
    timed = {"checkpoints/step-3/listeners.json", "checkpoints/step-3/manifest.json"}
    assert {"recipe.toml", "environment.json", "adapter/adapter_config.json", "adapter/manifest.json"} <= names
    for name in names - timed:
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    identities = [json.loads((run / "identity.json").read_text()) for run in runs]
    other = {"place": "", "sha256": ""}  # of the file, its place included
    assert {**identities[0], **other} == {**identities[1], **other}


def test_a_recipe_that_names_nothing_there_is_told_where_it_looked(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    shutil.rmtree(recipe.parent / "model")
    with pytest.raises(RecipeError, match=f"no such directory: {recipe.parent / 'model'}"):
        read_recipe(recipe, open_registry())
