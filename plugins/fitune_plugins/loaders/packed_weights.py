"""Weights of GPTQ and AWQ, out of the 32-bit integers that they are packed into.

A weight is scale * (code - zero), with a scale and a zero for each output and group of inputs (GPTQ, Frantar et al.,
arXiv 2210.17323; AWQ, Lin et al., arXiv 2306.00978). The layers that a run trains on round that product to the type of
the scales, and so does this: it is what they compute with. Shapes: I inputs, O outputs, G groups, W words.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fitune import ModelError
from fitune_plugins.loaders.quantization_methods import Values, packed_format

WORD = 32
"""Bits that codes are packed into."""

GPTQ_BITS = (2, 3, 4, 8)

AWQ_BITS = 4

AWQ_COLUMNS = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which code of a word is that of its first output, its second, and so on: AWQ packs 0, 2, 4, 6, 1, 3, 5, 7."""

PARTS = ("qzeros", "scales", "g_idx")
"""What belongs to a packed weight."""

FILE = "model.safetensors"


def unpacked_gptq(parts: Mapping[str, Tensor], *, offset: bool, bits: int = 4) -> Tensor:
    """A weight `[O, I]` in the scales' type; `offset` if the zeros are stored less one (version 1 of the format).

    `bits` counts where nothing tells the group of each input, `g_idx`. Raises `ModelError`.
    """
    qweight_WO, qzeros_GW, scales_GO = parts["qweight"], parts["qzeros"], parts["scales"]
    groups, outputs = scales_GO.shape
    group_I = parts.get("g_idx")
    if group_I is not None:
        bits = qweight_WO.shape[0] * WORD // len(group_I)
    if bits not in GPTQ_BITS or qweight_WO.dtype != torch.int32:
        raise ModelError(f"{bits} bits in {qweight_WO.dtype} are not known: 2, 3, 4 and 8 bits in torch.int32 are")
    codes_OI = codes(qweight_WO.t(), bits)
    if group_I is None:
        inputs = codes_OI.shape[1]
        group_I = torch.arange(inputs) // -(-inputs // groups)
    zeros_GO = _zeros(qzeros_GW, bits, offset=offset)[:, :outputs]
    group_I = group_I.long()
    codes_OI = codes_OI[:, : len(group_I)] - zeros_GO.t()[:, group_I]
    weight_OI: Tensor = scales_GO.float().t()[:, group_I] * codes_OI
    return weight_OI.to(scales_GO.dtype)


def unpacked_awq(parts: Mapping[str, Tensor]) -> Tensor:
    """A weight `[O, I]` in the scales' type. Raises `ModelError`."""
    qweight_IW, qzeros_GW, scales_GO = parts["qweight"], parts["qzeros"], parts["scales"]
    groups, outputs = scales_GO.shape
    if qweight_IW.dtype != torch.int32 or qweight_IW.shape[1] * WORD != outputs * AWQ_BITS:
        raise ModelError("what is known of AWQ are 4 bits, in torch.int32")
    codes_IO, zeros_GO = (_in_order(codes(packed, AWQ_BITS)) for packed in (qweight_IW, qzeros_GW))
    group_I = torch.arange(len(codes_IO)) // -(-len(codes_IO) // groups)
    weight_IO: Tensor = scales_GO.float()[group_I] * (codes_IO - zeros_GO[group_I])
    return weight_IO.to(scales_GO.dtype).t().contiguous()


def codes(words: Tensor, bits: int) -> Tensor:
    """Numbers of so many bits `[rows, W * 32 / bits]`, in integers, of words `[rows, W]`, the lowest bits first."""
    most = 2**bits - 1
    if WORD % bits == 0:
        shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
        narrow: Tensor = words.contiguous()[..., None] >> shifts
        return narrow.bitwise_and_(most).flatten(-2)
    wide = words.long() & 0xFFFFFFFF
    pairs = wide + (torch.nn.functional.pad(wide[:, 1:], (0, 1)) << WORD)  # a number may begin in one, end in the next
    first = torch.arange(words.shape[1] * WORD // bits) * bits
    shifted: Tensor = pairs[:, first // WORD] >> first % WORD
    return shifted.bitwise_and_(most).int()


def _zeros(words_GW: Tensor, bits: int, *, offset: bool) -> Tensor:
    """Zeros `[G, O]`, with the one that version 1 takes off."""
    if not offset:
        return codes(words_GW, bits)
    if WORD % bits:
        return (codes(words_GW, bits) + 1).bitwise_and_(2**bits - 1)
    one = sum(1 << shift for shift in range(0, WORD, bits))
    return codes(words_GW + one, bits)  # carries and all, as it was taken off


def _in_order(codes_RO: Tensor) -> Tensor:
    """Codes of AWQ, as the outputs are numbered."""
    words_RWC: Tensor = cast(Any, codes_RO).unflatten(-1, (-1, len(AWQ_COLUMNS)))
    return words_RWC[..., list(AWQ_COLUMNS)].flatten(-2)


def plain_weights(source: str, values: Values, dtype: torch.dtype, **arguments: Any) -> dict[str, Tensor]:
    """All weights of a checkpoint by name, on the host: packed ones plain, in the type of their scales, others in this.

    Raises `ModelError`.
    """
    awq, offset = values.get("quant_method") == "awq", packed_format(values) != "gptq_v2"
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        read = _reader(source, stack, **arguments)
        for name in sorted(read):
            layer, _, part = name.rpartition(".")
            if part == "qweight":
                parts = {
                    one: read[key].get_tensor(key) for one in ("qweight", *PARTS) if (key := f"{layer}.{one}") in read
                }
                try:
                    weight = unpacked_awq(parts) if awq else _gptq(parts, offset, values)
                except (ModelError, KeyError, RuntimeError, IndexError) as error:
                    raise ModelError(f"the weight of {layer} in {source} cannot be dequantised: {error}") from error
                found[f"{layer}.weight"] = weight
            elif part in PARTS and f"{layer}.qweight" in read:
                continue
            elif part in PARTS:
                raise ModelError(f"{source} cannot be dequantised: {name} scales what is no weight of a linear layer")
            else:
                tensor = read[name].get_tensor(name)
                found[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return found


def _gptq(parts: Mapping[str, Tensor], offset: bool, values: Values) -> Tensor:
    return unpacked_gptq(parts, offset=offset, bits=int(values.get("bits", 4)))


def _reader(source: str, stack: ExitStack, **arguments: Any) -> dict[str, Any]:
    """The open file of each tensor of a checkpoint, by name. Raises `ModelError`."""
    from safetensors import SafetensorError, safe_open
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    asked = {"revision": arguments.get("revision"), "_raise_exceptions_for_missing_entries": False}
    try:
        index = cached_file(source, f"{FILE}.index.json", **asked)
        if index is not None:
            files, _ = get_checkpoint_shard_files(source, index, revision=arguments.get("revision"))
        else:
            files = [cached_file(source, FILE, **asked)]
        if None in files:
            raise ModelError(f"the model {source} cannot be dequantised: it has no {FILE}, which alone is read")
        opened = [stack.enter_context(safe_open(str(Path(file)), framework="pt")) for file in files]
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the model {source} cannot be loaded: {' '.join(str(error).split())}") from error
    return {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - no mapping
