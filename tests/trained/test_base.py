"""The base belongs to the run: what was trained is opened, merged and gone on with on the same weights."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fitune import ModelLoader, RunError
from fitune.runs.identity import read_identity
from fitune.testing import open_registry, write_tiny_model
from fitune.trained.open import find, open_base, open_run
from fitune_plugins.loaders import fingerprint
from fitune_plugins.loaders.fingerprint import of_directory, of_files
from fitune_plugins.loaders.hf import HfOptions
from support.after_runs import finished, ft, refused
from support.resuming import Stopper, go, stop

COMMITS = ("a1" * 20, "b2" * 20)
OF_HUB = 'model={use="hf", id="made/tiny", dtype="float32"}'
QUICK = ("train.steps=2", "eval.exact_match=false")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("base"), *QUICK)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy whose base lies in `recipe/model` beside it."""
    shutil.copytree(whole.parent, tmp_path / "all")
    recipe = tmp_path / "all" / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace(str(whole.parent), str(tmp_path / "all")))
    return recipe.parent


def _base(run: Path) -> Path:
    return run.parent / "recipe" / "model"


def _loss(run: Path) -> object:
    return json.loads(ft("eval", run, "--json")[0])["loss"]


def _change(weights: Path, name: str = "model.layers.1.mlp.up_proj.weight") -> None:
    """One number of one weight."""
    tensors = load_file(weights)
    tensors[name].view(-1)[7] += 0.5
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize("change", ["a weight", "the configuration"])
def test_another_base_is_refused_by_every_command(run: Path, tmp_path: Path, change: str) -> None:
    if change == "a weight":
        _change(_base(run) / "model.safetensors")
    else:
        config = _base(run) / "config.json"
        config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    before, now = json.loads((run / "identity.json").read_text())["base"], of_directory(_base(run))
    assert before != now
    for command in (("generate", run, "--prompt", "x"), ("eval", run), ("merge", run, "--to", tmp_path / "merged")):
        said = refused(*command)
        assert said.startswith(f"{run} was trained on another base ([model] hf: path = ")
        assert f"{before[:19]} then, {now[:19]} now. Put the weights back that it was trained on" in said
    assert not (tmp_path / "merged").exists()
    assert "was trained on another base" in refused("generate", run, "--base", "--prompt", "x")


def test_the_same_base_elsewhere_is_the_same(run: Path) -> None:
    shutil.copytree(_base(run), run.parent / "moved", copy_function=shutil.copyfile)
    shutil.rmtree(_base(run))
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(_base(run)), str(run.parent / "moved")))
    assert ft("generate", run, "--prompt", "Count to 2.", "--max-new-tokens", "2")[1].count("note: ") == 0


@pytest.mark.parametrize("left", [{}, {"base": None}])
def test_a_run_that_does_not_know_its_base_is_opened_and_that_is_told(run: Path, left: dict[str, None]) -> None:
    file = run / "identity.json"
    values = json.loads(file.read_text())
    del values["base"]
    file.write_text(json.dumps({**values, **left}))
    _change(_base(run) / "model.safetensors")
    _, err = ft("generate", run, "--prompt", "Count to 2.", "--max-new-tokens", "2")
    assert "note: it is not known which base this was trained on, so that the base cannot be checked" in err


def test_going_on_with_another_base_is_refused_where_all_weights_train(tmp_path: Path) -> None:
    run = finished(tmp_path, *QUICK, "checkpoint.at_end=true", adapter={"use": "none"})
    _change(_base(run) / "model.safetensors")
    with pytest.raises(RunError) as raised:
        go(run, "train.steps=3", allowed=["train.steps"])
    assert f"{run}: model: base sha256:" in raised.value.lines[1]
    assert raised.value.lines[2] == "If that is meant, add: --allow-changed model"
    go(run, "train.steps=3", allowed=["train.steps", "model"])
    identity = read_identity(run)
    assert identity is not None
    assert identity.base == of_directory(_base(run))


@pytest.mark.parametrize("gone", ["its weights", "all of it", "nothing, but it is another"])
def test_a_model_of_its_own_needs_no_base(tmp_path: Path, gone: str) -> None:
    stage = "data.stage=[{use='chat', template='chatml'}]"
    run = finished(tmp_path, *QUICK, stage, "eval.exact_match=true", adapter={"use": "none"})
    asked = ("generate", run, "--prompt", "Count to 2.", "--max-new-tokens", "4")
    before = ft(*asked)[0], _loss(run)
    if gone == "all of it":
        shutil.rmtree(_base(run))
    elif gone == "its weights":
        (_base(run) / "model.safetensors").unlink()
    else:
        _change(_base(run) / "model.safetensors")
    assert (ft(*asked)[0], _loss(run)) == before
    weights = load_file(run / "model" / "model.safetensors")
    opened = dict(open_run(find(run, open_registry())).model.named_parameters())
    assert all(torch.equal(opened[name], weight) for name, weight in weights.items())
    refused("generate", run, "--base", "--prompt", "x")


# ------------------------------------------------------------------------------------------------------- of the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A cache with two commits of "made/tiny"; gives what moves its branch."""
    place = tmp_path / "hub" / "models--made--tiny"
    for number, commit in enumerate(COMMITS):
        write_tiny_model(place / "snapshots" / commit)
        if number:
            _change(place / "snapshots" / commit / "model.safetensors")
    for module in ("huggingface_hub.constants", "transformers.utils.hub"):
        for name in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.setattr(f"{module}.{name}", str(tmp_path / "hub"), raising=False)

    def move(commit: str) -> None:
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(commit, encoding="utf-8")

    move(COMMITS[0])
    return move


def test_the_commit_of_the_hub_is_kept_named_and_checked(tmp_path: Path, hub: Callable[[str], None]) -> None:
    run = finished(tmp_path, *QUICK, OF_HUB)
    assert json.loads((run / "identity.json").read_text())["base"] == COMMITS[0]
    assert json.loads((run / "environment.json").read_text())["model_commit"] == COMMITS[0]
    saved = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["revision"]) == ("made/tiny", COMMITS[0])
    answer, _ = ft("generate", run, "--prompt", "Count to 2.", "--max-new-tokens", "4")
    hub(COMMITS[1])
    said = refused("generate", run, "--prompt", "x")
    assert said == (
        f'{run} was trained on another base ([model] hf: id = "made/tiny", revision = "main"): commit {COMMITS[0]} '
        f'then, commit {COMMITS[1]} now. Set [model] revision = "{COMMITS[0]}" in {run / "recipe.toml"}'
    )
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('revision = "main"', f'revision = "{COMMITS[0]}"'))
    assert ft("generate", run, "--prompt", "Count to 2.", "--max-new-tokens", "4")[0] == answer


def test_a_checkpoint_names_the_commit_too(tmp_path: Path, hub: Callable[[str], None]) -> None:
    run = finished(tmp_path, *QUICK, OF_HUB, "checkpoint.steps=1")
    for place in (run / "checkpoints").glob("step-*"):
        assert json.loads((place / "adapter" / "adapter_config.json").read_text())["revision"] == COMMITS[0]


def test_a_local_base_has_no_revision(run: Path) -> None:
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["revision"] is None
    assert json.loads((run / "environment.json").read_text())["model_commit"] is None
    open_base(find(run, open_registry()))


# ---------------------------------------------------------------------------------------------------------- of files


def test_a_digest_is_of_what_transformers_reads(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    before = of_directory(model)
    (model / "README.md").write_text("more", encoding="utf-8")
    shutil.copy(model / "model.safetensors", model / "other.safetensors")
    (model / "code.py").write_text("", encoding="utf-8")
    assert of_directory(model) == before
    assert of_directory(model, code=True) != before
    shards = {"weight_map": {"a": "one.safetensors"}}
    shutil.move(model / "model.safetensors", model / "one.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(shards), encoding="utf-8")
    sharded = of_directory(model)
    _change(model / "other.safetensors")
    assert of_directory(model) == sharded
    _change(model / "one.safetensors")
    assert of_directory(model) != sharded


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_large_file_is_seen_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(fingerprint, "WHOLE", 1000)
    monkeypatch.setattr(fingerprint, "ENDS", 100)
    file = tmp_path / f"weights.{kind}"
    tensors = {f"w{number}": torch.full((5000,), float(number)) for number in range(5)}
    found = set()
    for change in (None, *tensors):
        changed = {name: t + 1 if name == change else t for name, t in tensors.items()}
        save_file(changed, file) if kind == "safetensors" else torch.save(changed, file)
        found.add(of_files([file]))
    assert len(found) == 6


def test_a_large_model_takes_less_than_a_second(tmp_path: Path) -> None:
    """Six files of 2 GiB, all holes, so that the disk holds none of it."""
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    for number in range(6):
        header = {f"w{at}": {"data_offsets": [at * (8 << 20), (at + 1) * (8 << 20)]} for at in range(256)}
        text = json.dumps(header).encode()
        with (tmp_path / f"model-{number}.safetensors").open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + (2 << 30))
    start = time.process_time()
    of_directory(tmp_path)
    assert time.process_time() - start < 1


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    loader = open_registry().find(ModelLoader, "hf")
    assert loader.fingerprint is not None
    with pytest.raises(Exception, match=r"config\.json cannot be read: No such file") as raised:
        loader.fingerprint(HfOptions(path=tmp_path))
    assert type(raised.value).__name__ == "ModelError"


def test_an_older_run_goes_on_and_that_is_told_once(recipe_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop(recipe_path, run, 2)
    file = run / "identity.json"
    values = json.loads(file.read_text())
    del values["base"], values["sha256"], values["place"]
    file.write_text(json.dumps(values))
    told = Stopper()
    go(run, plugins=[told])
    assert [notice.kind for notice in told.notices] == ["base"]
    assert json.loads(file.read_text())["base"] == of_directory(recipe_path.parent / "model")
