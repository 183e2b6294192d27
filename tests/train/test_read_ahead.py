"""Weights that are read into the system's cache while a run is prepared."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fitune
from fitune import ModelError, PluginError
from fitune.cli.main import main
from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from fitune.train import read_ahead
from fitune.train.read_ahead import BLOCK, PAGE, reading_ahead

Files = Callable[[Any], Any]
pytestmark = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system does not tell what is in its cache")


@pytest.fixture
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a test count."""
    monkeypatch.setattr(read_ahead, "LEAST", 1)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """What a thread is given to read."""
    found: list[tuple[Path, int]] = []
    monkeypatch.setattr(read_ahead, "_read", lambda files, stop: found.extend(files))
    return found


def recipe_of(recipe_path: Path, files: Files) -> Recipe:
    """The tiny recipe, whose loader names these files."""
    recipe = read_recipe(recipe_path, open_registry())
    return replace(recipe, model=replace(recipe.model, record=replace(recipe.model.record, files=files)))


@pytest.mark.parametrize("cached", [(), (0,), (1,), (0, 1, 2)])
def test_what_is_not_in_the_cache_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: Sequence[int]
) -> None:
    """Of each block its last bytes are asked for: whoever reads the block before brings the first ones in, too."""
    file, size = tmp_path / "weights", 2 * BLOCK + 3 * PAGE + 17
    with file.open("wb") as opened:
        opened.truncate(size)
    real, blocks = os.preadv, []

    def counted(opened: int, into: Sequence[bytearray], at: int, flags: int = 0) -> int:
        if flags:
            assert at + PAGE == min(size, (at // BLOCK + 1) * BLOCK)
            if at // BLOCK not in cached:
                raise BlockingIOError
            return PAGE
        blocks.append((at // BLOCK, real(opened, into, at)))
        return blocks[-1][1]

    monkeypatch.setattr(os, "preadv", counted)
    read_ahead._read([(tmp_path / "gone", 5), (file, size)], threading.Event())
    sizes = [BLOCK, BLOCK, 3 * PAGE + 17]
    assert blocks == [(number, sizes[number]) for number in range(3) if number not in cached]
    stopped = threading.Event()
    stopped.set()
    read_ahead._read([(file, size)], stopped)
    assert len(blocks) == 3 - len(cached)


@pytest.mark.usefixtures("however_small")
def test_the_weights_of_a_run_are_read(recipe_path: Path, tmp_path: Path, heard: list[tuple[Path, int]]) -> None:
    main(["run", str(recipe_path), "--out", str(tmp_path / "run"), "--set", "train.steps=1"])
    assert [file.name for file, _ in heard] == ["model.safetensors"]
    assert all(size == file.stat().st_size for file, size in heard)
    main(["run", str(tmp_path / "run")])
    assert len(heard) == 1, "it was done"
    fitune.run(recipe_path, tmp_path / "by-python", overrides=["train.steps=1"])
    assert len(heard) == 2


@pytest.mark.usefixtures("however_small")
def test_no_thread_is_left(recipe_path: Path) -> None:
    def there() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if "read ahead" in one.name]

    begun, go_on = threading.Event(), threading.Event()

    def slow(files: object, stop: threading.Event) -> None:
        begun.set()
        stop.wait()
        go_on.set()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(read_ahead, "_read", slow)
        with reading_ahead(read_recipe(recipe_path, open_registry())):
            assert begun.wait(60)
            assert len(there()) == 1
    assert go_on.is_set()
    assert not there()


def test_what_is_wrong_with_a_recipe_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from fitune.cli.main import main\n"
        "try: main(['run', 'no.toml'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.strip() == "2 False"
    assert "no.toml: no such file" in ended.stderr


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("why", ["too large", "another process"])
def test_what_would_be_in_vain_is_not_done(
    recipe_path: Path, heard: list[tuple[Path, int]], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    recipe = read_recipe(recipe_path, open_registry())
    with reading_ahead(recipe):
        pass
    assert len(heard) == 1
    heard.clear()
    if why == "too large":
        monkeypatch.setattr(read_ahead, "_free", lambda: 2)
    else:
        monkeypatch.setattr(read_ahead, "is_main_process", lambda: False)
    with reading_ahead(recipe):
        pass
    assert not heard


def test_few_bytes_are_not_worth_it(recipe_path: Path, heard: list[tuple[Path, int]]) -> None:
    with reading_ahead(read_recipe(recipe_path, open_registry())):
        pass
    assert not heard


def test_the_host_tells_what_is_free() -> None:
    assert 2**20 < read_ahead._free() < 2**50


def _refuse(options: Any) -> Any:
    raise ModelError("no index")


def _fail(options: Any) -> Any:
    raise ZeroDivisionError("oh")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (lambda options: None, 'model loader "hf": files gave None, and must give paths'),
        (lambda options: ["model.bin"], 'model loader "hf": files gave '),
        (_fail, 'model loader "hf" failed: ZeroDivisionError: oh'),
    ],
    ids=["nothing", "texts", "fails"],
)
def test_a_loader_that_breaks_its_contract_is_named(recipe_path: Path, files: Files, said: str) -> None:
    with pytest.raises(PluginError) as caught, reading_ahead(recipe_of(recipe_path, files)):
        pass
    assert said in str(caught.value)


def test_what_a_loader_cannot_find_is_left_to_it(recipe_path: Path, heard: list[tuple[Path, int]]) -> None:
    for files in (_refuse, lambda options: [Path("nowhere")]):
        with reading_ahead(recipe_of(recipe_path, files)):
            pass
    assert not heard
