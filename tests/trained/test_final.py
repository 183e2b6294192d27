"""What a run ended with is used as it was written, or not at all; and it is done only where that is there.

On 0.1 one bit of it changed what was generated, evaluated and merged in silence, and an `adapter/` without weights was
a run that is done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fitune.checkpoint.final import final_damage
from fitune.checkpoint.manifest import NAME
from fitune.runs.history.summary import find_runs
from fitune.testing import write_recipe
from support.after_runs import ft, refused
from support.resuming import Stopper, go
from support.tiny import train

KINDS = {"lora": "adapter", "none": "model"}


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done, of an adapter or in full."""
    home = tmp_path_factory.mktemp("final")
    recipe = write_recipe(home / "recipe", {"adapter": {"use": request.param}, "deterministic": True})
    train(recipe, home / "run")
    return home / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made.parent, tmp_path / "home")
    return tmp_path / "home" / "run"


def trained(run: Path) -> Path:
    (found,) = (run / kind for kind in KINDS.values() if (run / kind).is_dir())
    return found


def weights(run: Path) -> Path:
    (found,) = trained(run).glob("*.safetensors")
    return found


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)


def a_bit_of_the_weights(run: Path) -> None:
    flip(weights(run), -1)


def a_bit_of_a_config(run: Path) -> None:
    """A number of it becomes another."""
    (file,) = (f for name in ("adapter_config.json", "config.json") if (f := trained(run) / name).is_file())
    text = file.read_text(encoding="utf-8")
    changed = text.replace('"r": 4', '"r": 5').replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-03')
    assert changed != text
    file.write_text(changed, encoding="utf-8")


def a_bit_of_the_tokenizer(run: Path) -> None:
    flip(trained(run) / "tokenizer.json", 200)


def a_bit_of_the_manifest(run: Path) -> None:
    flip(trained(run) / NAME, 60)


def no_manifest(run: Path) -> None:
    (trained(run) / NAME).unlink()


def another_file_as_weights(run: Path) -> None:
    shutil.copy(weights(run), weights(run).with_name("kept"))
    weights(run).write_bytes(b"x" * weights(run).stat().st_size)


def a_pipe_as_a_config(run: Path) -> None:
    (trained(run) / "tokenizer_config.json").unlink()
    os.mkfifo(trained(run) / "tokenizer_config.json")


def weights_beside_the_weights(run: Path) -> None:
    """A library that looks for a name of its own might take them."""
    shutil.copy(weights(run), trained(run) / "pytorch_model.bin")


def a_template_beside_the_tokenizer(run: Path) -> None:
    (trained(run) / "additional_chat_templates").mkdir()
    (trained(run) / "additional_chat_templates" / "default.jinja").write_text("{{ 1 }}", encoding="utf-8")


DAMAGES = [
    a_bit_of_the_weights, a_bit_of_a_config, a_bit_of_the_tokenizer, a_bit_of_the_manifest, no_manifest,
    another_file_as_weights, a_pipe_as_a_config, weights_beside_the_weights, a_template_beside_the_tokenizer,
]  # fmt: skip


def test_a_run_that_is_done_is_whole(run: Path) -> None:
    kind = trained(run).name
    assert final_damage(run, kind) is None
    named = set(json.loads((trained(run) / NAME).read_text())["files"])
    assert {weights(run).name, "tokenizer.json"} <= named
    assert {place.name for place in trained(run).iterdir()} == {*named, NAME, "README.md"}
    (trained(run) / "README.md").write_text("by hand")  # the card is everybody's
    (trained(run) / "notes.md").write_text("mine")
    assert final_damage(run, kind) is None
    assert go(run).done


@pytest.mark.parametrize("spoil", DAMAGES)
def test_no_command_uses_what_is_damaged(run: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(run)
    place = trained(run)
    for command in (
        ("generate", run, "--prompt", "Count"),
        ("eval", run, "--data", run.parent / "recipe" / "data.jsonl"),
        ("merge", run, "--to", tmp_path / "merged"),
    ):
        said = refused(*command)
        assert said.startswith(f"{place} is not what was trained: "), said
        fix = f"Write it again from the run's checkpoint: ft run {run}; or use that as it is: --checkpoint last"
        assert said.rstrip().endswith(fix)
    assert not (tmp_path / "merged").exists()
    ft("generate", run, "--prompt", "Count", "--checkpoint", "last", "--max-new-tokens", 2)


@pytest.mark.parametrize("spoil", DAMAGES)
def test_the_run_goes_on_and_writes_it_again(run: Path, made: Path, spoil: Callable[[Path], None]) -> None:
    """From its checkpoint, to the bit; what was damaged is kept aside."""
    spoil(run)
    told = Stopper()
    assert not go(run, plugins=[told]).done
    kind = trained(run).name
    assert final_damage(run, kind) is None
    assert weights(run).read_bytes() == weights(made).read_bytes()
    assert [notice.kind for notice in told.notices] == ["damaged", "moved"]
    assert f"{run / kind}: " in told.notices[0].what
    assert told.steps == []
    assert (run / f"{kind}.1").is_dir()
    assert go(run).done


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "without weights"])
def test_an_adapter_without_weights_is_not_done(run: Path, made: Path, empty: bool) -> None:
    if empty:
        shutil.rmtree(trained(run))
        (run / trained(made).name).mkdir()
    else:
        weights(run).unlink()
    (summary,) = find_runs(run)
    assert summary.state == "interrupted"
    assert any("holds no weights" in note for note in summary.notes)
    assert "the run has not ended: this is its checkpoint step-3" in ft(
        "generate", run, "--prompt", "Count", "--max-new-tokens", 2
    )[1]  # fmt: skip
    assert not go(run).done
    assert weights(run).read_bytes() == weights(made).read_bytes()
    (summary,) = find_runs(run)
    assert (summary.state, summary.notes) == ("done", ())


def test_a_run_of_0_1_has_no_manifest_and_is_done_all_the_same(run: Path) -> None:
    no_manifest(run)
    file = run / "identity.json"
    identity = json.loads(file.read_text(encoding="utf-8"))
    del identity["place"], identity["sha256"]
    file.write_text(json.dumps(identity), encoding="utf-8")
    assert final_damage(run, trained(run).name) is None
    weights(run).unlink()
    assert final_damage(run, trained(run).name) == "it holds no weights"
