"""The ways to quantise a checkpoint that transformers reads: what each is called, needs, becomes and takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]
"""What a model's configuration says of its quantisation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to quantise a checkpoint."""

    name: str
    """What users call it."""
    packages: tuple[tuple[str, str], ...] = ()
    """What it needs: each module, and what pip installs it by."""
    plain: bool = False
    """Whether weights are dequantised as they are read."""
    built: bool = False
    """Whether a model without values can get its layers, and be dequantised when it has values."""
    packed: bool = False
    """Whether a model without values gets layers that stand for those of its package, which must be asked for layers
    that have a gradient."""
    rounds_inputs: bool = False
    """Whether its layers round their inputs to 8 bits, too."""
    reading: tuple[float, float] = (0.0, 0.0)
    """Bytes a weight that transformers takes to dequantise a tensor beside the result, in 16 and in 32 bits."""


BITSANDBYTES = (("bitsandbytes", "'fitune[bitsandbytes]'"),)

METHODS = {
    "bitsandbytes_4bit": Method(name="bitsandbytes, 4 bits", packages=BITSANDBYTES, built=True),
    "bitsandbytes_8bit": Method(name="bitsandbytes, 8 bits", packages=BITSANDBYTES, built=True, rounds_inputs=True),
    "gptq": Method(name="GPTQ", packages=(("optimum", "optimum"), ("gptqmodel", "gptqmodel")), packed=True),
    "awq": Method(name="AWQ", packages=(("gptqmodel", "gptqmodel"),), packed=True),
    "auto-round": Method(name="AutoRound", packages=(("auto_round", "auto-round"),)),
    "aqlm": Method(name="AQLM", packages=(("aqlm", "'aqlm[gpu,cpu]'"),)),
    "hqq": Method(name="HQQ", packages=(("hqq", "hqq"),)),
    "quanto": Method(name="quanto", packages=(("optimum.quanto", "optimum-quanto"),)),
    "quark": Method(name="Quark", packages=(("quark", "amd-quark"),)),
    "spqr": Method(name="SpQR", packages=(("spqr_quant", "'spqr_quant[gpu]'"),)),
    "torchao": Method(name="torchao", packages=(("torchao", "torchao"),)),
    "vptq": Method(name="VPTQ", packages=(("vptq", "vptq"),)),
    "compressed-tensors": Method(
        name="compressed-tensors", packages=(("compressed_tensors", "compressed-tensors"),), plain=True
    ),
    # As stored, in float32, and multiplied by its scales, which in float32 is the result.
    "fp8": Method(name="FP8", plain=True, reading=(9.0, 5.0)),
    "mxfp8": Method(name="MXFP8", plain=True, reading=(9.0, 5.0)),
    # As stored, with scales as integers; half of the weights as indices of 4 bytes, and as values.
    "mxfp4": Method(name="MXFP4", plain=True, reading=(3.66, 4.66)),
}
"""By what transformers calls it. Others that it knows stay quantised, too."""


def method_of(values: Values) -> Method:
    """How a checkpoint is quantised."""
    return METHODS.get(key_of(values), Method(name=key_of(values)))


def key_of(values: Values) -> str:
    """What transformers calls it."""
    for bits in (8, 4):
        if values.get(f"load_in_{bits}bit"):
            return f"bitsandbytes_{bits}bit"
    named = values.get("quant_method", "without a name")
    return str(getattr(named, "value", named))  # transformers' own configurations hold an enumeration's


PACKED_FORMATS = {"gptq": ("", "gptq", "gptq_v2"), "awq": ("", "gemm")}
"""The ways of GPTQ and AWQ to lay weights into words that are known here; one without a name is the first of them."""


def packed_format(values: Values) -> str:
    """The name of the way in which a checkpoint of GPTQ or AWQ packs its weights; empty where it has none."""
    key = "version" if values.get("quant_method") == "awq" else "checkpoint_format"
    return str(values.get(key) or values.get("format") or "").lower()


def unpacks(values: Values) -> bool:
    """Whether the weights of a checkpoint are packed in a way that is known here."""
    return packed_format(values) in PACKED_FORMATS.get(key_of(values), ())
