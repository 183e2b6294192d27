"""What `ft data` showed is shown again without a tokenizer or a model, and never once anything may be otherwise."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitune import ModelLoader, hookimpl
from fitune.cli import show_data
from fitune.cli.main import main
from fitune.cli.show_data import show
from fitune.data import preview
from fitune.data.cache import META, ROWS, cache_directory
from fitune.data.prepare import Prepared, training_data
from fitune.data.tokenizer import tokenizer_of
from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe, write_tiny_data

Asked = dict[str, Any]
ASKED: Asked = {"row": None, "rows": 2, "held_out": False, "as_json": False}


@pytest.fixture(autouse=True)
def _files_may_be_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "AWHILE", 0.0)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Of the smallest model, with its weights."""
    return write_recipe(tmp_path)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each time that the tokenizer was loaded."""
    seen: list[str] = []
    own: Callable[[Recipe], Any] = tokenizer_of

    def noted(recipe: Recipe) -> Any:
        seen.append(recipe.general.name)
        return own(recipe)

    monkeypatch.setattr(show_data, "tokenizer_of", noted)
    return seen


def shown(capsys: pytest.CaptureFixture[str], recipe: Path, *sets: str, **asked: Any) -> str:
    registry = open_registry()
    show(read_recipe(recipe, registry, sets), registry, **{**ASKED, **asked})
    return capsys.readouterr().out


def test_the_second_time_it_is_kept_and_the_same(
    recipe: Path, loaded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    now = shown(capsys, recipe)
    assert now.startswith("prepared now, and kept for the next start\n")
    kept = shown(capsys, recipe)
    assert len(loaded) == 1
    assert kept.startswith("prepared before, and found in the cache\n")
    assert kept.partition("\n")[2] == now.partition("\n")[2]
    assert json.loads(shown(capsys, recipe, as_json=True))["examples"][0]["row"] == 1
    assert len(loaded) == 1
    for path in (cache_directory() / preview.PLACE).iterdir():
        path.unlink()
    assert shown(capsys, recipe) == kept
    assert len(loaded) == 2


@pytest.mark.parametrize("asked", [{"row": 2}, {"rows": 3}, {"held_out": True}], ids=str)
def test_another_question_is_another_preview(
    recipe: Path, loaded: list[str], capsys: pytest.CaptureFixture[str], asked: Asked
) -> None:
    sets = ("eval.fraction=0.25",)
    first = shown(capsys, recipe, *sets)
    assert shown(capsys, recipe, *sets, **asked) != first
    assert len(loaded) == 2


def _write_tokenizer(directory: Path) -> None:
    """The same file, but for one space at its end; its time of change is set back."""
    file = directory / "model" / "tokenizer.json"
    before = file.stat()
    file.write_text(file.read_text(encoding="utf-8") + " ", encoding="utf-8")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _write_template(directory: Path) -> None:
    place = directory / "model" / "additional_chat_templates"
    place.mkdir()
    (place / "other.jinja").write_text("{{ messages }}", encoding="utf-8")


def _write_data(directory: Path) -> None:
    write_tiny_data(directory / "data.jsonl", rows=13)


def _damage_rows(directory: Path) -> None:
    (rows,) = cache_directory().glob(f"*/{ROWS}")
    content = bytearray(rows.read_bytes())
    content[len(content) // 2] ^= 1
    rows.write_bytes(content)


def _remove_rows(directory: Path) -> None:
    (meta,) = cache_directory().glob(f"*/{META}")
    shutil.rmtree(meta.parent)


def _write_preview(directory: Path) -> None:
    (file,) = (cache_directory() / preview.PLACE).iterdir()
    file.write_text(file.read_text(encoding="utf-8").replace("assistant", "Assistant"), encoding="utf-8")


@pytest.mark.parametrize(
    "change", [_write_tokenizer, _write_template, _write_data, _damage_rows, _remove_rows, _write_preview]
)
def test_what_changed_is_loaded(
    recipe: Path, loaded: list[str], capsys: pytest.CaptureFixture[str], change: Callable[[Path], None]
) -> None:
    for _ in range(2):
        shown(capsys, recipe)
    assert len(loaded) == 1
    change(recipe.parent)
    assert "Assistant" not in shown(capsys, recipe)
    assert len(loaded) == 2


@pytest.mark.parametrize(
    "override", ["train.length=48", "seed=7", 'model.add_tokens=["<new>"]', 'model.dtype="bfloat16"'], ids=str
)
def test_another_recipe_is_loaded(
    recipe: Path, loaded: list[str], capsys: pytest.CaptureFixture[str], override: str
) -> None:
    shown(capsys, recipe)
    shown(capsys, recipe, override)
    assert len(loaded) == 2


def test_other_code_and_other_packages_are_another_preview(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place() -> Path:
        registry = open_registry()
        found = preview.Previews.of(read_recipe(recipe, registry), registry, ())
        assert found is not None
        return found.file

    before = place()
    assert place() == before
    for name, other in (("code_of", lambda place: "another"), ("_installed", lambda: iter(["torch-9.dist-info"]))):
        with monkeypatch.context() as patch:
            patch.setattr(preview, name, other)
            assert place() != before


def test_nothing_is_kept_where_something_cannot_be_told(
    recipe: Path, loaded: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        shown(capsys, recipe, "data.cache=false")
    assert len(loaded) == 2
    monkeypatch.setattr(preview, "AWHILE", 1e9)  # files that were changed a moment ago
    for _ in range(2):
        shown(capsys, recipe)
    assert len(loaded) == 4
    assert not (cache_directory() / preview.PLACE).exists()


def test_nothing_is_kept_of_a_loader_of_others(recipe: Path) -> None:
    """Which may read what nobody knows of."""
    own = read_recipe(recipe, open_registry()).model.record

    class Plugin:
        @hookimpl
        def ft_model_loaders(self) -> list[ModelLoader[Any]]:
            return [
                ModelLoader(
                    name="theirs",
                    summary="The same, of others",
                    options=own.options,
                    load_tokenizer=own.load_tokenizer,
                    load_model=own.load_model,
                    fingerprint=own.fingerprint,
                    files=own.files,
                )
            ]

    registry = open_registry(Plugin())
    assert preview.Previews.of(read_recipe(recipe, registry, ['model.use="theirs"']), registry, ()) is None


def test_the_oldest_go(recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "MOST", 2)
    for rows in range(4):
        shown(capsys, recipe, rows=rows)
    assert len(list((cache_directory() / preview.PLACE).iterdir())) == 2
    monkeypatch.setattr(preview, "LARGEST", 10)
    shown(capsys, recipe, rows=5)
    assert len(list((cache_directory() / preview.PLACE).iterdir())) == 2


def test_neither_torch_nor_transformers_is_imported(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", str(recipe), "--no-third-party"])
    before = capsys.readouterr().out
    code = (
        "import sys; import fitune.data.preview as p; p.AWHILE = 0.0\n"
        "from fitune.cli import main\n"
        f"main(['data', {str(recipe)!r}, '--no-third-party'])\n"
        "assert not {'torch', 'transformers', 'numpy', 'pyarrow'} & {*sys.modules}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.partition("\n")[2] == before.partition("\n")[2]


def test_rows_that_are_not_kept_have_no_preview(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no seal can be made, say: there is no entry that it could be of."""
    own: Callable[..., Prepared] = training_data

    def unkept(*arguments: Any) -> Prepared:
        found = own(*arguments)
        return Prepared(rows=found.rows, cached=False, lasting=False)

    monkeypatch.setattr(show_data, "training_data", unkept)
    registry = open_registry()
    show(read_recipe(recipe, registry), registry, **ASKED)
    assert not (cache_directory() / preview.PLACE).exists()
