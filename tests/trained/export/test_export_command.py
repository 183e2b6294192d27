"""`ft export`: a run out of its directory, as GGUF, for Ollama and to the hub; whole, proven, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from fitune import Dialogue, ModelError, ModelLoader
from fitune.testing import open_registry
from fitune.trained.export import gguf_family
from fitune.trained.export.ollama import template_of, turns_of
from fitune.trained.open import find, open_run
from support.after_runs import finished, ft, refused
from support.gguf_models import bytewise, write


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("export")
    model = write(home / "llama", "llama, tied", bytewise("smollm"))
    return finished(home, "eval.exact_match=false", f"model.path='{model}'")


@pytest.fixture(scope="module")
def exported(run: Path) -> tuple[Path, str]:
    out, _ = ft("export", run, "--to", "gguf", "--type", "q8_0")
    return run / "export" / "gguf-q8_0", out


def test_a_file_says_what_was_trained(run: Path, exported: tuple[Path, str]) -> None:
    directory, out = exported
    assert sorted(place.name for place in directory.iterdir()) == ["README.md", "parity.json", "tiny-q8_0.gguf"]
    figures = json.loads((directory / "parity.json").read_text(encoding="utf-8"))
    assert (figures["dtype"], figures["source"], figures["wrong"]) == ("q8_0", "held-out data", None)
    assert 0.001 < figures["relative_difference"] < figures["limit"]
    assert figures["share"] == pytest.approx(1, abs=0.05)
    assert abs(figures["loss_merged"] - figures["loss_adapter"]) < 0.1 * abs(
        figures["loss_base"] - figures["loss_adapter"]
    )
    assert "float32 with adapter and q8_0 merged (measured)" in out
    assert f"exported {directory / 'tiny-q8_0.gguf'}" in out
    card = (directory / "README.md").read_text(encoding="utf-8")
    assert "library_name: gguf" in card
    assert "llama-cli -m tiny-q8_0.gguf" in card


def test_the_loader_of_such_files_reads_it(run: Path, exported: tuple[Path, str]) -> None:
    """As a base of another run: the same logits, the same template, and the same mark at the end of answers."""
    loader = open_registry().find(ModelLoader, "gguf")
    options = loader.options(path=exported[0] / "tiny-q8_0.gguf")
    ids = torch.arange(1, 60)[None]
    with torch.no_grad():
        found = loader.load_model(options, torch.device("cpu"))(input_ids=ids).logits
        own = open_run(find(run, open_registry())).model(input_ids=ids).logits
    assert float((found - own).norm() / own.norm()) < 0.06
    tokenizer: Any = loader.load_tokenizer(options)
    messages = [{"role": "user", "content": "Count to 3."}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|start|>user\nCount to 3.<|end|>\n"
    assert tokenizer.eos_token == "<|end|>"


def test_a_run_in_bfloat16(tmp_path: Path) -> None:
    """It is merged and read again in the type that it was trained in, whose limits are the coarser."""
    model = write(tmp_path / "qwen2", "qwen2", bytewise("qwen2"))
    run = finished(tmp_path, "eval.exact_match=false", f"model.path='{model}'", "model.dtype='bfloat16'")
    ft("export", run, "--to", "gguf", "--out", tmp_path / "out")
    figures = json.loads((tmp_path / "out" / "parity.json").read_text(encoding="utf-8"))
    assert (figures["trained_dtype"], figures["dtype"], figures["limit"]) == ("bfloat16", "f16", 0.08)
    assert 0 < figures["relative_difference"] < 0.04


def test_nothing_is_overwritten(run: Path, exported: tuple[Path, str]) -> None:
    before = (exported[0] / "tiny-q8_0.gguf").read_bytes()
    assert "is there already, and not empty" in refused("export", run, "--to", "gguf", "--type", "q8_0")
    assert (exported[0] / "tiny-q8_0.gguf").read_bytes() == before


def test_halves_that_were_not_interleaved_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_family, "_as_read", lambda weight, name, config: weight)
    said = refused("export", run, "--to", "gguf", "--out", tmp_path / "out")
    assert "the merged model is not what was trained" in said
    assert "Export with --type f16 or bf16" in said
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_another_family(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(gguf_family.FAMILIES, "llama")
    said = refused("export", run, "--to", "gguf", "--out", tmp_path / "out")
    assert 'no GGUF is written of "llama"' in said
    assert "convert_hf_to_gguf.py" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "gguf", "--push"], "--push has no effect with --to gguf"),
        (["--to", "hub", "--repo", "me/x", "--type", "f16"], "--type has no effect with --to hub"),
        (["--to", "hub"], "--repo OWNER/NAME"),
        (["--to", "hub", "--repo", "https://x"], "a repository of the hub is OWNER/NAME"),
    ],
)
def test_options_that_do_nothing(run: Path, options: list[str], said: str) -> None:
    assert said in refused("export", run, *options)


def test_ollama(run: Path, tmp_path: Path) -> None:
    out, _ = ft("export", run, "--to", "ollama", "--out", tmp_path / "made")
    text = (tmp_path / "made" / "Modelfile").read_text(encoding="utf-8")
    assert text == (
        "FROM ./tiny-f16.gguf\n"
        'TEMPLATE """{{ if .System }}<|start|>system\n{{ .System }}<|end|>\n<|start|>user\n{{ else }}<|start|>user\n'
        '{{ end }}{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}<|end|>\n<|start|>assistant\n'
        '{{ else if eq .Role "assistant" }}{{ .Content }}<|end|>\n<|start|>user\n{{ end }}{{ end }}"""\n'
        'PARAMETER stop "<|end|>"\n'
    )
    assert (tmp_path / "made" / "tiny-f16.gguf").is_file()
    assert f"next: ollama create tiny -f {tmp_path / 'made' / 'Modelfile'}" in out


def _dialogue(write: Any) -> Dialogue:
    return Dialogue(prompt=write, end="</s>", template="")


def test_a_template_with_more_than_turns_is_refused() -> None:
    def counted(messages: Any) -> str:
        return "".join(f"[{at}:{one['content']}]" for at, one in enumerate(messages))

    with pytest.raises(ModelError, match="cannot be shown to write the same"):
        turns_of(_dialogue(counted))


def test_braces_of_a_template_and_no_system_message() -> None:
    def write(messages: Any) -> str:
        from fitune import DataError

        if messages[0]["role"] == "system":
            raise DataError("no system message")
        marks = {"user": "<s>{{U}} ", "assistant": " {{A}} "}
        return "".join(f"{marks[one['role']]}{one['content']}" for one in messages) + " {{A}} "

    turns = turns_of(_dialogue(write))
    assert turns.before_system is None
    assert template_of(turns, "<s>").startswith('{{ "{{" }}U}} {{ range .Messages }}')


def test_the_hub_is_shown_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", None)  # nobody asks for it
    out, _ = ft("export", run, "--to", "hub", "--repo", "me/tiny")
    assert "adapter_model.safetensors" in out
    assert "README.md" in out
    assert "would be sent to me/tiny, public if it is new. Nothing is sent without --push" in out


class _Api:
    """Stands for the hub."""

    def __init__(self) -> None:
        self.made: list[tuple[str, bool]] = []
        self.sent: list[str] = []

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.made.append((name, private))

    def create_commit(self, name: str, operations: list[Any], *, commit_message: str) -> Any:
        self.sent += [one.path_in_repo for one in operations]

        class Commit:
            commit_url = f"https://hub.example/{name}/commit/1"

        return Commit()


def test_the_hub_gets_one_commit(run: Path, exported: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    api = _Api()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    push = ("--to", "hub", "--repo", "me/tiny", "--push", "--private")
    out, _ = ft("export", run, *push, "--directory", exported[0])
    assert api.made == [("me/tiny", True)]
    assert api.sent == ["README.md", "parity.json", "tiny-q8_0.gguf"]
    assert "sent 3 files" in out
    assert "https://hub.example/me/tiny/commit/1" in out


def test_what_is_no_part_of_a_model_is_not_sent(
    run: Path, exported: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("export", run, "--to", "hub", "--repo", "me/tiny", "--directory", tmp_path / "made")
    made = tmp_path / "made"
    assert "no such directory" in refused(*asked)
    made.mkdir()
    os.link(exported[0] / "tiny-q8_0.gguf", made / "tiny.gguf")
    assert "holds no model card" in refused(*asked)
    card = made / "README.md"
    card.write_text("ok\n", encoding="utf-8")
    ft(*asked)
    (made / "optimizer.bin").write_bytes(b"x")
    assert "optimizer.bin is no part of a model" in refused(*asked)
    (made / "optimizer.bin").unlink()
    (made / "link.json").symlink_to("/etc/passwd")
    assert "link.json is no file but a link" in refused(*asked)
    (made / "link.json").unlink()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a1B2" * 8)
    card.write_text("ok\nhf_" + "a1B2" * 8 + "\n", encoding="utf-8")
    said = refused(*asked)
    assert "README.md, line 2: it holds" in said
    assert "a1B2" not in said
