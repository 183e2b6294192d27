"""Code that comes with a model does not run, unless the recipe says so and the command line repeats it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fitune import ModelError, ModelLoader, RecipeError
from fitune.cli.main import cli, main
from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune_plugins.loaders.hf import HfOptions

CODE = """\
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path("RAN").touch()


class MineConfig(LlamaConfig):
    model_type = "mine"


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""
COMMIT = "0123456789" * 4
CPU = torch.device("cpu")


def _rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.fixture
def recipe(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose model brings code of its own, which leaves a file where it runs."""
    import transformers.dynamic_module_utils as dynamic

    model = recipe_path.parent / "model"
    (model / "mine.py").write_text(CODE.replace("RAN", str(tmp_path / "ran")), encoding="utf-8")
    classes = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"}
    _rewrite(model / "config.json", model_type="mine", auto_map=classes)
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return recipe_path


def _trusting(path: Path) -> Path:
    text = path.read_text(encoding="utf-8").replace("[model]\n", "[model]\ntrust_remote_code = true\n")
    path.write_text(text, encoding="utf-8")
    return path


def _loader() -> ModelLoader[Any]:
    return open_registry().find(ModelLoader, "hf")


@pytest.mark.parametrize("action", ["load_model", "build_model"])
def test_code_does_not_run_by_itself(recipe: Path, tmp_path: Path, action: str) -> None:
    options = HfOptions(path=recipe.parent / "model", dtype="float32")
    with pytest.raises(ModelError, match="it needs Python code of its own, which is not run") as caught:
        _loader().load_model(options, CPU) if action == "load_model" else _loader().build_model(options)  # type: ignore[misc]
    assert "--trust-remote-code" in caught.value.message
    assert not (tmp_path / "ran").exists()


COMMANDS = {
    "run": ["run", "RECIPE", "--out", "out"],
    "check": ["check", "RECIPE"],
    "plan": ["plan", "RECIPE", "--gpu", "a10g"],
    "data": ["data", "RECIPE"],
    "a run's directory": ["run", "RUN"],
    "generate": ["generate", "RUN", "--prompt", "a"],
    "eval": ["eval", "RUN"],
    "merge": ["merge", "RUN", "--to", "merged"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_recipe_alone_is_not_enough(
    recipe: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _trusting(recipe)
    places = {"RECIPE": str(recipe), "RUN": str(recipe.parent)}  # which holds a recipe.toml, as a run's does
    with pytest.raises(SystemExit) as caught:
        main([places.get(part, part) for part in COMMANDS[name]])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert '[model] trust_remote_code: "trust_remote_code" is true: Python code that comes with ' in error
    assert error.endswith(
        "Read that code, then repeat it on the command line: --trust-remote-code. Or remove the key\n"
    )
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_both_together_are(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(_trusting(recipe)), "--trust-remote-code"])
    assert "no problem found" in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()  # checking loads nothing
    registry = Registry.open(third_party=False, trusts_remote_code=True)
    options = read_recipe(recipe, registry).model.options
    model = _loader().load_model(options, CPU)
    assert type(model).__name__ == "MineForCausalLM"
    assert (tmp_path / "ran").exists()


def test_the_flag_alone_runs_nothing(recipe: Path, tmp_path: Path) -> None:
    options = read_recipe(recipe, Registry.open(third_party=False, trusts_remote_code=True)).model.options
    with pytest.raises(ModelError, match="which is not run"):
        _loader().load_model(options, CPU)
    assert not (tmp_path / "ran").exists()


def test_every_command_that_loads_has_the_flag_and_no_variable_sets_it() -> None:
    flagged = {name for name, command in cli.commands.items() for p in command.params if p.name == "trust_remote_code"}
    assert flagged == {"check", "data", "eval", "explain-oom", "export", "generate", "merge", "plan", "plugins", "run"}
    for name in flagged:
        (flag,) = [p for p in cli.commands[name].params if p.name == "trust_remote_code"]
        assert flag.envvar is None


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"id": "org/model"}, 'code of org/model would run, and "main" is no commit'),
        ({"id": "org/model", "revision": "v1"}, 'code of org/model would run, and "v1" is no commit'),
        ({"id": "org/model", "revision": COMMIT, "code_revision": "main"}, '"main" is no commit'),
        ({"id": "org/model", "revision": COMMIT}, None),
        ({"id": "org/model", "trust_remote_code": False, "code_revision": COMMIT}, '"code_revision" has no effect'),
    ],
)
def test_code_of_the_hub_is_pinned(table: dict[str, Any], problem: str | None) -> None:
    found = [p.sentence() for p in _loader().check(HfOptions(**{"trust_remote_code": True, **table}))]
    assert (found == []) if problem is None else (len(found) == 1 and found[0].startswith(problem))


def test_code_of_another_repository_is_pinned(recipe: Path) -> None:
    model = recipe.parent / "model"
    _rewrite(model / "config.json", auto_map={"AutoConfig": "someone/else--mine.MineConfig"})
    (problem,) = _loader().check(HfOptions(path=model, trust_remote_code=True))
    assert problem.sentence().startswith("its code is that of someone/else. Set code_revision. ")
    assert list(_loader().check(HfOptions(path=model, trust_remote_code=True, code_revision=COMMIT))) == []


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_kernel_of_the_hub_is_not_loaded(recipe_path: Path, key: str, inside: bool) -> None:
    model = recipe_path.parent / "model"
    kernel = {key: "someone/kernel"}
    _rewrite(model / "config.json", **({"text_config": kernel} if inside else kernel))
    with pytest.raises(ModelError, match=f'its config.json has {key} = "someone/kernel", which is code of the hub'):
        _loader().load_model(HfOptions(path=model, dtype="float32"), CPU)


KERNEL = "someone/kernel"


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": {"": KERNEL}},
        {"attn_implementation": {"text_config": KERNEL}},
        {"_attn_implementation": {"": {"": KERNEL}}},
        {"_attn_implementation_internal": KERNEL},
        {"text_config": {"_attn_implementation_internal": KERNEL}},
        {"_Attn_Implementation": KERNEL},
        {"experts_implementation": [KERNEL]},
        {"per_layer_config": [{"attn_implementation": KERNEL}]},
        {"per_layer_config": {"0": {"_experts_implementation": {"": f"{KERNEL}@v1:flash"}}}},
        {"attribute_map": {"innocent": "_attn_implementation"}, "innocent": KERNEL},
        {"text_config": {"attribute_map": {"innocent": "_attn_implementation"}, "innocent": KERNEL}},
    ],
    ids=str,
)
@pytest.mark.parametrize("action", ["load", "build"])
def test_a_kernel_is_found_at_any_depth_under_any_spelling(
    recipe_path: Path, config: dict[str, Any], action: str
) -> None:
    """On 0.1 only a text as the value of one of four keys was looked at."""
    model = recipe_path.parent / "model"
    _rewrite(model / "config.json", **config)
    options = HfOptions(path=model, dtype="float32")
    with pytest.raises(ModelError, match="which is code of the hub and is not run"):
        _loader().load_model(options, CPU) if action == "load" else _loader().build_model(options)  # type: ignore[misc]


@pytest.mark.parametrize("value", ["eager", "sdpa", {"": "sdpa"}])
def test_attention_that_transformers_has_may_be_named(recipe_path: Path, value: object) -> None:
    model = recipe_path.parent / "model"
    _rewrite(model / "config.json", attn_implementation=value, attribute_map={"width": "hidden_size"})
    assert _loader().load_model(HfOptions(path=model, dtype="float32"), CPU) is not None


def test_an_adapter_is_no_model(recipe_path: Path) -> None:
    """transformers would fetch the base that it names, and read the adapter."""
    model = recipe_path.parent / "model"
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base", "peft_type": "LORA"}')
    with pytest.raises(RecipeError, match=r"is an adapter\. Merge it into its base, and name that: ft merge"):
        read_recipe(recipe_path, open_registry())


def test_the_tiny_recipe_needs_no_flag(tmp_path: Path) -> None:
    assert read_recipe(write_recipe(tmp_path / "plain"), open_registry()).model.options.trust_remote_code is False
