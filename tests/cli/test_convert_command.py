"""`ft convert` as a user meets it: the recipe on standard output, the account on standard error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fitune.cli.main import main
from support.commands import ft, refused

CONFIG = """\
base_model: some/model
datasets:
  - {path: some/rows, type: chat_template}
sequence_len: 1024
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
micro_batch_size: 1
learning_rate: 0.0002
push_dataset_to_hub: me/rows
"""


@pytest.fixture(autouse=True)
def _in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("theirs.yml").write_text(CONFIG, encoding="utf-8")


def test_it_is_printed_and_accounted_for(capsys: pytest.CaptureFixture[str]) -> None:
    main(["convert", "theirs.yml"])
    printed = capsys.readouterr()
    assert 'id = "some/model"' in printed.out
    assert "theirs.yml, a configuration of axolotl (--from says another): 12 keys, 11 converted" in printed.err
    assert "could not:\n  push_dataset_to_hub: me/rows\n" in printed.err
    assert "checked: no problem found" in printed.err


def test_it_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    main(["convert", "theirs.yml", "--to", "ours.toml"])
    capsys.readouterr()
    before = Path("ours.toml").read_bytes()
    assert "no problem found" in ft("check", "ours.toml", capsys=capsys)
    assert "ours.toml is there already: nothing is overwritten" in refused(
        "convert", "theirs.yml", "--to", "ours.toml", capsys=capsys
    )
    assert Path("ours.toml").read_bytes() == before


def test_what_keeps_it_from_running_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs.yml").write_text(CONFIG.replace("some/rows", "./rows.jsonl"), encoding="utf-8")
    main(["convert", "theirs.yml"])
    told = capsys.readouterr().err
    assert "to be mended before it can run:\n  recipe.toml:" in told
    assert "rows.jsonl. Give the path of a JSON Lines file" in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gone.yml"], "gone.yml cannot be read: No such file or directory"),
        (["theirs.yml", "--from", "axolot"], 'Did you mean "axolotl"?'),
        (["theirs.yml", "--dataset-info", "gone.json"], "--dataset-info gone.json: no such file"),
        (["theirs.yml", "--to", "no/such/place.toml"], "could not be written"),
    ],
)
def test_mistakes(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused("convert", *arguments, capsys=capsys)


def test_torch_is_not_imported() -> None:
    code = (
        "import sys\nfrom fitune.cli.main import main\nmain(['convert', 'theirs.yml'])\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
