"""A model's directory may be anybody's: nothing in it is waited for, nothing breaks the error, no kernel is fetched."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from fitune import ModelError
from fitune.errors import FtError, RecipeError
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from fitune_plugins.adapters.lora import LoraOptions, _must_be_of
from fitune_plugins.data.chat_template import _read
from fitune_plugins.loaders.fingerprint import WHOLE, of_directory, of_files
from fitune_plugins.loaders.remote_code import _repositories, must_name_no_kernel
from fitune_plugins.text_files import LARGEST, json_of, text_of

DEEP = "[" * 200_000 + "]" * 200_000


def pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "something.else"])
def test_a_pipe_in_a_models_directory_is_refused(recipe_path: Path, name: str) -> None:
    pipe(recipe_path.parent / "model" / name)
    with pytest.raises(RecipeError, match=r"is no file|no config\.json"):
        read_recipe(recipe_path, open_registry())


def test_a_link_that_leads_nowhere_is_none_of_them(recipe_path: Path) -> None:
    (recipe_path.parent / "model" / "notes").symlink_to("nowhere")
    assert read_recipe(recipe_path, open_registry()).general.name == "tiny"


@pytest.mark.parametrize("where", ["recipe", "/dev/zero"])
def test_a_recipe_is_a_file(recipe_path: Path, where: str) -> None:
    if where == "recipe":
        pipe(recipe_path)
    else:
        recipe_path.unlink()
        recipe_path.symlink_to(where)
    with pytest.raises(RecipeError, match="it is no file"):
        read_recipe(recipe_path, open_registry())


def test_what_is_read_as_text(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}', encoding="utf-8")
    assert json_of(file) == {"a": 1}
    file.write_text(DEEP, encoding="utf-8")
    with pytest.raises(ValueError, match="nested too deep"):
        json_of(file)
    os.truncate(file, LARGEST + 1)
    with pytest.raises(OSError, match="more than"):
        text_of(file)
    pipe(file)
    with pytest.raises(OSError, match="it is no file"):
        text_of(file)


def test_what_reads_such_files_says_so_in_a_line(tmp_path: Path) -> None:
    template, adapter, index = (tmp_path / name for name in ("t.jinja", "adapter_config.json", "config.json"))
    for file in (template, adapter, index):
        pipe(file)
    with pytest.raises(FtError, match="the chat template cannot be read"):
        _read(template)
    with pytest.raises(ModelError, match=r"adapter_config\.json is damaged"):
        _must_be_of(LoraOptions(), tmp_path)
    assert _repositories(tmp_path) == set()
    adapter.unlink()
    adapter.write_text(DEEP, encoding="utf-8")
    with pytest.raises(ModelError, match=r"adapter_config\.json is damaged"):
        _must_be_of(LoraOptions(), tmp_path)


@pytest.mark.parametrize("weight_map", [{"a": 1}, {"a": None}, {"a": ["b"]}, [], None, {"a": "pipe"}])
def test_an_index_that_lies_is_an_error(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    pipe(tmp_path / "pipe")
    with pytest.raises(ModelError, match="cannot be read"):
        of_directory(tmp_path, code=False)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"data_offsets": [10**30, 10**31]}},
        {"a": {"data_offsets": [-(10**9), 0]}},
        {"a": {"data_offsets": [0.5, 1.5]}},
        {"a": {"data_offsets": ["0", "1"]}},
        [],
    ],
)
def test_offsets_that_lie_are_not_gone_to(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(file, WHOLE + 1)
    assert of_files([file]).startswith("sha256:")


@pytest.mark.parametrize("value", ["flash_attention_2", {"text_config": "paged|flash_attention_3"}])
def test_attention_that_is_a_kernel_of_the_hub_by_another_name(
    recipe_path: Path, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers takes one of the hub for it where the package `kernels` is there."""
    model = recipe_path.parent / "model"
    said = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**said, "attn_implementation": value}), encoding="utf-8")
    must_name_no_kernel(str(model), {})
    monkeypatch.setattr("transformers.utils.import_utils.is_kernels_available", lambda: True)
    with pytest.raises(ModelError, match="which is code of the hub and is not run"):
        must_name_no_kernel(str(model), {})


KERNELS = """\
from pathlib import Path

Path("MARK").touch()


def __getattr__(name):
    raise ImportError(name)
"""
ASK = """\
import contextlib
from fitune.cli.main import main
with contextlib.suppress(SystemExit):
    main(["--version"])
from transformers.utils.import_utils import is_kernels_available
print(is_kernels_available())
with contextlib.suppress(ImportError):
    import kernels
"""


@pytest.mark.parametrize("asked", ["", "YES"])
def test_no_library_fetches_a_kernel_by_itself(tmp_path: Path, asked: str) -> None:
    """transformers takes Mamba's from the hub, bitsandbytes its own for some processors, where `kernels` is there."""
    (tmp_path / "kernels.py").write_text(KERNELS.replace("MARK", str(tmp_path / "mark")), encoding="utf-8")
    (tmp_path / "kernels-0.16.0.dist-info").mkdir()
    text = "Metadata-Version: 2.1\nName: kernels\nVersion: 0.16.0\n"
    (tmp_path / "kernels-0.16.0.dist-info" / "METADATA").write_text(text, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "USE_HUB_KERNELS"}
    environment |= {"PYTHONPATH": str(tmp_path), **({"USE_HUB_KERNELS": asked} if asked else {})}
    said = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    assert (tmp_path / "mark").exists() == bool(asked)
    if not asked:
        assert said.stdout.splitlines()[-1] == "False"
