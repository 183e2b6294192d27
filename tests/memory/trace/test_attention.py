"""Which attention kernel a card takes, and what is made of masks before it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fitune.memory.trace.attention import Kernel, aligned, as_bias, choose

MEASURED_WITH = (2, 11)
"""The release whose choices an H100 showed (benchmarks/memory/kernels.json); those of other cards are of the source."""

CARDS = {
    "V100": (7, 0),
    "T4": (7, 5),
    "A100": (8, 0),
    "A10G": (8, 6),
    "L4": (8, 9),
    "H100": (9, 0),
    "B200": (10, 0),
    "RTX 5090": (12, 0),
}
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def _chosen(
    card: str,
    dtype: torch.dtype,
    size: int,
    *,
    masked: bool = False,
    keys: int = 8,
    dropout: float = 0.0,
    causal: bool = True,
    tokens: tuple[int, int] = (64, 64),
    trains: bool = True,
    version: tuple[int, int] = MEASURED_WITH,
    grouped: bool | None = None,
    rows: int = 1,
    deterministic: bool = False,
) -> Kernel:
    """`grouped` is as transformers calls torch, if it is not given; `rows` are those of the keys."""
    query = torch.empty(1, 8, tokens[0], size, device="meta", dtype=dtype, requires_grad=trains)
    key = torch.empty(rows, keys, tokens[1], size, device="meta", dtype=dtype)
    mask = torch.empty(1, 1, *tokens, device="meta", dtype=torch.bool) if masked else None
    grouped = keys != 8 if grouped is None else grouped
    of_causal = causal and not masked
    how = {"grouped": grouped, "deterministic": deterministic}
    return choose(query, key, key, mask, dropout, of_causal, CARDS[card], version, **how)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize(
    ("card", "wanted"),
    [  # of bfloat16, float16 and float32, each without and with a mask
        ("V100", "math math efficient efficient efficient efficient"),
        ("T4", "math math efficient efficient efficient efficient"),
        ("A100", "flash efficient flash efficient efficient efficient"),
        ("A10G", "flash efficient flash efficient efficient efficient"),
        ("L4", "flash efficient flash efficient efficient efficient"),
        ("H100", "cudnn cudnn cudnn cudnn efficient efficient"),
        ("B200", "cudnn cudnn cudnn cudnn efficient efficient"),
        ("RTX 5090", "flash efficient flash efficient efficient efficient"),
    ],
)
def test_kernel_by_card_type_and_mask(card: str, wanted: str, size: int) -> None:
    found = [_chosen(card, dtype, size, masked=masked) for dtype in (BF16, FP16, FP32) for masked in (False, True)]
    assert found == wanted.split()


@pytest.mark.parametrize(
    ("card", "dtype", "size", "masked", "wanted"),
    [
        ("H100", BF16, 256, False, "cudnn"),
        ("H100", BF16, 100, False, "flash"),  # padded
        ("H100", BF16, 100, True, "math"),
        ("H100", BF16, 288, False, "efficient"),
        ("B200", BF16, 256, False, "flash"),
        ("B200", BF16, 256, True, "efficient"),
        ("A100", BF16, 256, False, "flash"),
        ("A100", BF16, 512, False, "efficient"),
        ("L4", BF16, 224, False, "efficient"),  # its flash kernel has no backward for it
        ("L4", BF16, 256, False, "flash"),
        ("A10G", BF16, 80, True, "efficient"),
        ("A10G", BF16, 100, True, "math"),
        ("A10G", FP32, 100, True, "efficient"),
        ("A10G", FP32, 98, False, "math"),
        ("T4", FP32, 98, False, "efficient"),
        ("T4", FP16, 100, False, "math"),
    ],
)
def test_kernel_by_head_size(card: str, dtype: torch.dtype, size: int, masked: bool, wanted: Kernel) -> None:
    assert _chosen(card, dtype, size, masked=masked) == wanted


def test_kernel_by_heads_dropout_and_lengths() -> None:
    assert _chosen("A100", BF16, 128, keys=2) == "flash"
    assert _chosen("A100", BF16, 128, keys=2, masked=True) == "math"
    assert _chosen("A100", BF16, 128, keys=2, masked=True, version=(2, 14)) == "efficient"
    assert _chosen("H100", BF16, 128, keys=2, masked=True) == "cudnn"
    assert _chosen("H100", FP32, 128, keys=2) == "math"
    assert _chosen("L4", BF16, 256, dropout=0.1) == "efficient"
    assert _chosen("L4", BF16, 256, dropout=0.1, trains=False) == "flash"
    assert _chosen("H100", BF16, 128, dropout=0.1) == "cudnn"
    assert _chosen("H100", BF16, 128, dropout=0.1, version=(2, 14)) == "flash"
    assert _chosen("H100", BF16, 256, version=(2, 14)) == "flash"
    assert _chosen("H100", BF16, 128, tokens=(1, 1), causal=False) == "flash"
    assert _chosen("A100", BF16, 128, tokens=(8, 64)) == "efficient"
    assert _chosen("A100", BF16, 128, tokens=(8, 64), causal=False) == "flash"


def test_a_deterministic_run_has_no_cudnn() -> None:
    """`check_cudnn_deterministic`, sdp_utils.cpp."""
    assert _chosen("H100", BF16, 128, deterministic=True) == "flash"
    assert _chosen("H100", BF16, 128, masked=True, deterministic=True) == "efficient"


def test_a_kernel_that_is_switched_off_is_not_taken() -> None:
    found = []
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        left = [other for other in (*SDPBackend.__members__.values(),) if other not in (backend, SDPBackend.ERROR)]
        with sdpa_kernel([one for one in left if one != SDPBackend.OVERRIDEABLE]):
            found += [_chosen("H100", BF16, 128), _chosen("H100", BF16, 512)]
    assert found == ["flash", "efficient", "cudnn", "efficient", "cudnn", "math"]


@pytest.mark.parametrize("card", sorted(CARDS))
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_heads_or_rows_that_are_broadcast_are_left_to_the_composite_kernel(card: str, dtype: torch.dtype) -> None:
    """As Falcon calls torch, with one head of keys and without `enable_gqa`."""
    assert _chosen(card, dtype, 64, keys=1, grouped=False) == "math"
    assert _chosen(card, dtype, 64, keys=2, grouped=False) == "math"
    assert _chosen(card, dtype, 64, rows=2) == "math"
    assert _chosen(card, dtype, 64, keys=3) == "math"  # no divisor of 8


def test_masks_become_aligned_biases() -> None:
    query = torch.empty(1, 8, 5, 64, device="meta", dtype=BF16)
    bias = as_bias(torch.empty(1, 1, 5, 16, device="meta", dtype=torch.bool), query)
    assert bias.dtype == BF16
    assert aligned(bias) is bias
    odd = aligned(torch.empty(1, 1, 5, 13, device="meta", dtype=BF16))
    assert odd.shape == (1, 1, 5, 13)
    assert odd.stride() == (80, 80, 16, 1)
