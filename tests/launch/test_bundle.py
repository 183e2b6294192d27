"""What is sent: all that the run needs, under names that mean the same there, and whole."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli

from fitune import RunError
from fitune.checkpoint.begin import begun_from
from fitune.launch.bundle import job_name, make_bundle
from fitune.launch.requirements import requirements
from fitune.launch.work import must_be_whole
from fitune.plugin.digest import digest_of, digest_of_weights
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe, write_tiny_data
from support.made_plugins import install
from support.tiny import train


def sent(tmp_path: Path, *overrides: str) -> tuple[Path, Recipe]:
    """A bundle of the tiny recipe, and the recipe."""
    registry = open_registry()
    recipe = read_recipe(write_recipe(tmp_path / "recipe"), registry, overrides)
    make_bundle(recipe, registry, tmp_path / "bundle", ["--trust-remote-code"])
    return tmp_path / "bundle", recipe


def test_the_recipe_is_the_same_and_names_what_was_sent(tmp_path: Path) -> None:
    bundle, recipe = sent(tmp_path)
    values = tomli.loads((bundle / "recipe.toml").read_text(encoding="utf-8"))
    assert not any(str(tmp_path) in text for text in json.dumps(values).split('"'))
    again = read_recipe(bundle / "recipe.toml", open_registry())
    assert again.model.options.path == bundle / values["model"]["path"]
    same = dataclasses.replace(
        again, path=recipe.path, model=recipe.model, sources=recipe.sources, eval_sources=recipe.eval_sources
    )
    assert same.to_toml() == recipe.to_toml()
    (source,) = again.sources
    assert digest_of(source.options.path) == digest_of(tmp_path / "recipe" / "data.jsonl")
    assert json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["arguments"] == ["--trust-remote-code"]


def test_directories_and_patterns_of_files_are_sent_whole(tmp_path: Path) -> None:
    data = tmp_path / "more" / "deep"
    data.mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        write_tiny_data(data / name)
    bundle, _ = sent(tmp_path, 'data.source.0.path="more/**/*.jsonl"')
    again = read_recipe(bundle / "recipe.toml", open_registry())
    assert str(again.sources[0].options.path).endswith("/**/*.jsonl")
    found = sorted(place.name for place in (bundle / "files").rglob("*.*") if "more" not in place.name)
    assert {"a.jsonl", "b.jsonl"} <= set(found)
    assert "c.txt" not in found


def test_its_code_is_what_runs(tmp_path: Path) -> None:
    bundle, _ = sent(tmp_path)
    assert not list(bundle.rglob("__pycache__"))
    code = "import fitune, fitune_plugins; print(fitune.__file__, fitune_plugins.__file__)"
    environment = {"PYTHONPATH": str(bundle / "code"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.count(str(bundle)) == 2


def test_a_package_that_carries_the_model_is_sent_and_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it needs to be used as a package may be much, and is not needed for its files."""
    pytest.importorskip("gguf", reason="needs fitune[gguf]")
    package = tmp_path / "site" / "boxed_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import what_is_not_there\n", encoding="utf-8")
    (package / "small.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.syspath_prepend(str(package.parent))
    bundle, recipe = sent(tmp_path, 'model={use="gguf", package="boxed_model"}')
    assert (bundle / "code" / "boxed_model" / "small.gguf").read_bytes() == b"GGUF" + bytes(100)
    assert not any(line.startswith("boxed") for line in requirements(recipe, open_registry()))
    values = tomli.loads((bundle / "recipe.toml").read_text(encoding="utf-8"))
    assert values["model"]["package"] == "boxed_model"  # as it was, and as it is once the run is back
    code = "import importlib.util; print(importlib.util.find_spec('boxed_model').origin)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(bundle / "code")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(bundle))


def test_a_tracker_is_installed_there(tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install(site, "wandb", "", version="9.8.7", requires=["its-own-need"])
    (site / "wandb-9.8.7.dist-info" / "top_level.txt").write_text("wandb\n", encoding="utf-8")
    install(site, "its-own-need", "", version="0.1")
    monkeypatch.syspath_prepend(str(site))
    plain = requirements(read(), open_registry())
    lines = requirements(read('listener=[{use="tracker", name="wandb"}]'), open_registry())
    assert sorted(set(lines) - set(plain)) == ["its-own-need==0.1", "wandb==9.8.7"]


@pytest.mark.parametrize("of", ["run", "run/checkpoints/step-2"])
def test_what_its_adapter_goes_on_from_is_sent_with_what_tells_what_it_was(tmp_path: Path, of: str) -> None:
    train(write_recipe(tmp_path / "recipe"), tmp_path / "run", "checkpoint.steps=1")
    bundle, _ = sent(tmp_path, f'adapter.from="{tmp_path / of}"')
    again = read_recipe(bundle / "recipe.toml", open_registry())
    found = begun_from(again)
    assert found is not None
    assert found.is_relative_to(bundle)
    assert digest_of_weights(found) == digest_of_weights(tmp_path / of / "adapter")
    assert (of == "run") == (not list(bundle.rglob("step-*")))  # of a run that has ended, its checkpoints are no part


def test_what_did_not_arrive_whole_is_told(tmp_path: Path) -> None:
    bundle, _ = sent(tmp_path)
    must_be_whole(bundle)
    weights = next(bundle.rglob("*.safetensors"))
    whole = weights.read_bytes()
    weights.unlink()  # it may be a link to what was sent
    weights.write_bytes(whole[:-1] + b"x")
    with pytest.raises(Exception, match=r"safetensors is not what was sent"):
        must_be_whole(bundle)
    weights.unlink()
    with pytest.raises(Exception, match=r"safetensors of what was sent is missing"):
        must_be_whole(bundle)


def test_versions_are_exact_and_of_an_index(tmp_path: Path, read: Any, registry: Registry) -> None:
    lines = dict(line.split("==") for line in requirements(read(), registry))
    assert {"torch", "transformers", "tokenizers", "safetensors", "fsspec", "packaging"} <= set(lines)
    assert "fitune" not in lines
    assert "pytest" not in lines
    assert not any("+" in version for version in lines.values())


def test_a_plugin_of_no_index_cannot_be_sent(
    tmp_path: Path, recipe_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    source = """
    from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl

    @hookimpl
    def ft_memory_strategies():
        yield MemoryStrategy(name="mine", summary="For a test", options=NoOptions, make=lambda options: Strategy())
    """
    install(site, "fitune-mine", source)
    monkeypatch.syspath_prepend(str(site))
    registry = Registry.open()
    recipe = read_recipe(recipe_path, registry, ['memory.strategy=[{use="mine"}]'])
    assert "fitune-mine==1.0" in requirements(recipe, registry)
    assert "fitune-mine==1.0" not in requirements(read_recipe(recipe_path, registry), registry)
    (info,) = site.glob("*.dist-info")
    (info / "direct_url.json").write_text('{"url": "file:///home/me/mine", "dir_info": {}}', encoding="utf-8")
    with pytest.raises(RunError, match="installed from file:///home/me/mine and not from a package index"):
        requirements(recipe, registry)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    import os

    registry = open_registry()
    recipe = read_recipe(write_recipe(tmp_path / "recipe"), registry)
    os.mkfifo(tmp_path / "recipe" / "model" / "pipe")
    with pytest.raises(RunError, match=r"cannot be gathered: .*pipe.*it is no file"):
        make_bundle(recipe, registry, tmp_path / "bundle")


def test_a_job_s_name_is_one_that_every_keeper_takes() -> None:
    import re

    names = [job_name(text) for text in ("deepseek7b-g5", "Ä b/c", "x" * 200, "---", "")]
    assert all(re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", name) for name in names)  # SageMaker's own rule
    assert len({job_name("same") for _ in range(50)}) == 50
