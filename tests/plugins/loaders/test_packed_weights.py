"""Weights of GPTQ and AWQ: what is unpacked is what the formats' own definitions say, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fitune import ModelError
from fitune.testing import write_tiny_model
from fitune_plugins.loaders.packed_weights import codes, plain_weights, unpacked_awq, unpacked_gptq
from fitune_plugins.loaders.quantized import stored
from fitune_plugins.loaders.unpacked import load_plain
from support.packers import awq, dequantize_checkpoint, gptq, pack_checkpoint
from support.quantized import WEIGHTS, say


def _weight(outputs: int = 24, inputs: int = 64) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("shuffled", [True, False])
def test_gptq(bits: int, symmetric: bool, version: int, shuffled: bool) -> None:
    outputs = 32 if bits == 3 else 24  # three words hold 32 numbers
    packed = gptq(_weight(outputs), bits=bits, symmetric=symmetric, version=version, shuffled=shuffled)
    found = unpacked_gptq(packed.parts, offset=version == 1)
    assert found.dtype == torch.float16
    assert torch.equal(found, packed.weight)
    assert (found - _weight(outputs)).abs().max() < 6 / 2**bits
    other = unpacked_gptq(packed.parts, offset=version == 2)
    assert not torch.equal(other, found), "the zeros of the two versions are one apart"


def test_gptq_without_groups_of_inputs_takes_them_in_their_order() -> None:
    packed = gptq(_weight(), bits=8, symmetric=False)
    parts = {name: part for name, part in packed.parts.items() if name != "g_idx"}
    assert torch.equal(unpacked_gptq(parts, offset=True, bits=8), packed.weight)


def test_a_zero_of_none_in_version_2() -> None:
    packed = gptq(_weight().abs(), symmetric=False, version=2, lowest=0)
    assert torch.equal(unpacked_gptq(packed.parts, offset=False), packed.weight)


def test_a_zero_of_none_in_version_1_is_taken_off_the_words_and_put_back() -> None:
    """As GPTQModel writes it: what one number lacks is borrowed from the next one of its word."""
    packed = gptq(_weight().abs(), symmetric=False, version=2, lowest=0)
    words = packed.parts["qzeros"] - 0x11111111
    assert torch.equal(unpacked_gptq({**packed.parts, "qzeros": words}, offset=True), packed.weight)


def test_awq() -> None:
    packed = awq(_weight())
    assert torch.equal(unpacked_awq(packed.parts), packed.weight)
    assert (packed.weight - _weight()).abs().max() < 0.4


def test_numbers_that_begin_in_one_word_and_end_in_the_next() -> None:
    numbers = [number % 8 for number in range(7, 39)]
    long = sum(number << 3 * place for place, number in enumerate(numbers))
    words = [long >> 32 * word & 0xFFFFFFFF for word in range(3)]
    held = torch.tensor([[word - 2**32 if word >= 2**31 else word for word in words]], dtype=torch.int32)
    assert codes(held, 3).tolist() == [numbers]


def test_what_is_not_known_is_refused() -> None:
    packed = gptq(_weight())
    for change, said in (
        ({"g_idx": torch.zeros(256, dtype=torch.int32)}, "1 bits in torch.int32"),
        ({"qweight": packed.parts["qweight"].long()}, "4 bits in torch.int64"),
    ):
        with pytest.raises(ModelError, match=said):
            unpacked_gptq({**packed.parts, **change}, offset=True)
    with pytest.raises(ModelError, match=r"4 bits, in torch\.int32"):
        unpacked_awq({**awq(_weight()).parts, "qweight": torch.zeros(64, 5, dtype=torch.int32)})


@pytest.mark.parametrize(
    ("method", "dtype", "own"),
    [("gptq", "bfloat16", torch.bfloat16), ("gptq", "float32", torch.float32), ("awq", "bfloat16", torch.float32)],
)
def test_a_model_with_plain_weights_computes_as_one_that_was_made_by_hand(
    tmp_path: Path, method: str, dtype: Any, own: torch.dtype
) -> None:
    """AWQ's layers compute in float16 whatever the model's type is: bfloat16 would not hold their numbers."""
    model, by_hand = (write_tiny_model(tmp_path / name) for name in ("model", "by_hand"))
    pack_checkpoint(model, method)
    dequantize_checkpoint(by_hand, method)
    found = load_plain(str(model), dtype, torch.device("cpu"))
    assert {parameter.dtype for parameter in found.parameters()} == {own}
    weights = dict(found.named_parameters())
    for name, weight in load_file(by_hand / WEIGHTS).items():
        through = torch.float16 if method == "awq" and "_proj" in name else getattr(torch, dtype)
        assert torch.equal(weights[name], weight.to(through).to(own)), name
    assert getattr(found.config, "quantization_config", None) is None
    assert not found.training


def test_weights_in_several_files(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    pack_checkpoint(model, "gptq")
    whole = plain_weights(str(model), {"quant_method": "gptq"}, torch.float32)
    held = load_file(model / WEIGHTS)
    names = {name: f"part-{number % 3}.safetensors" for number, name in enumerate(sorted(held))}
    for file in set(names.values()):
        save_file({name: held[name] for name in held if names[name] == file}, model / file, metadata={"format": "pt"})
    (model / WEIGHTS).unlink()
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
    found = plain_weights(str(model), {"quant_method": "gptq"}, torch.float32)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_a_checkpoint_that_is_not_whole_is_an_error(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    pack_checkpoint(model, "gptq")
    held = load_file(model / WEIGHTS)
    cpu = torch.device("cpu")
    layer = "model.layers.0.mlp.up_proj"
    for left_out, said in (
        ("scales", f"the weight of {layer} in .* cannot be dequantised: .*scales"),
        ("qweight", f"{layer}.(g_idx|qzeros|scales) scales what is no weight of a linear layer"),
    ):
        kept = {name: part for name, part in held.items() if name != f"{layer}.{left_out}"}
        save_file(kept, model / WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=said):
            load_plain(str(model), "float32", cpu)
    save_file({n: p for n, p in held.items() if not n.startswith(layer)}, model / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 of its weights are not in its files, .* e.g. {layer}.weight"):
        load_plain(str(model), "float32", cpu)
    (model / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=f"it has no {WEIGHTS}, which alone is read"):
        load_plain(str(model), "float32", cpu)


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ({"quant_method": "gptq", "bits": 4}, True),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}, True),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, False),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, True),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, False),
        ({"quant_method": "aqlm"}, False),
    ],
)
def test_what_can_be_dequantised_is_known_from_the_configuration(
    tmp_path: Path, values: dict[str, object], known: bool
) -> None:
    model = write_tiny_model(tmp_path / "model")
    say(model, **values)
    found = stored(None, model, "main", "bfloat16")
    assert found is not None
    assert (found.dequantizes, found.unpacks, found.kept) == (known, known, True)
