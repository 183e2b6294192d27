"""Forecasts against what others measured on a Tesla T4; see `t4` for the workload and the source of the figures."""

from __future__ import annotations

import importlib.util

import pytest

from fitune.memory.allocator.replay import replay
from support.t4 import Row, phase_peaks, trace

MIB = 2**20

LORA = [
    # model, attention, batch, length, MiB: forward, backward, optimizer, reserved
    Row.of("Qwen2.5-1.5B", "eager", 2, 1024, 6223.84, 7405.81, 3735.79, 7910),
    Row.of("Qwen2.5-1.5B", "sdpa", 2, 1024, 6219.84, 7401.81, 3735.79, 7766),
    Row.of("SmolLM2-1.7B", "sdpa", 4, 1024, None, 6528.75, None, 7094),
    Row.of("SmolLM2-135M", "sdpa", 2, 512, 836.06, 1026.92, 441.72, 1070),
    Row.of("SmolLM2-360M", "eager", 1, 4096, 3027.76, 4908.51, 1244.73, 7304),
    Row.of("TinyLlama-1.1B", "sdpa", 2, 512, 2634.21, 2756.19, 2358.81, 2880),
    Row.of("TinyLlama-1.1B", "eager", 2, 1024, 3048.87, 3518.08, 2429.32, 4226),
    Row.of("TinyLlama-1.1B", "sdpa", 2, 2048, 3870.18, 4354.12, 2570.33, 4696),
]
"""Of each model and kind of attention; the others that were published come as close, and take as long."""

QLORA = [
    Row.of("SmolLM2-1.7B", "sdpa", 4, 1024, 3777.33, 5281.27, 2336.75, 5940),
    Row.of("TinyLlama-1.1B", "sdpa", 2, 2048, 2927.93, 3895.87, 1791.58, 4750),
    Row.of("Qwen2.5-1.5B", "sdpa", 2, 1024, 4463.70, 6827.67, 3005.15, 7400),
    Row.of("deepseek-coder-1.3b", "eager", 1, 1024, 1731.49, 1975.49, 1456.47, 2274, rank=16),
    Row.of("Mistral-7B", "eager", 1, 1024, 5833.89, 6190.58, 5216.88, 6740, rank=16),
    Row.of("Qwen2.5-7B", "eager", 1, 1024, 9410.78, 10584.77, 8496.76, 11746, rank=16),
]


def _assert_close(row: Row, *, quantized: bool, allocated: float, reserved: float) -> None:
    """Peaks within these shares of what was measured."""
    log = trace(row, quantized=quantized)
    allocator = replay(log.sized())
    assert allocator.peak_allocated / MIB == pytest.approx(row.peak, rel=allocated)
    assert allocator.peak_reserved / MIB == pytest.approx(row.reserved, rel=reserved)
    peaks = phase_peaks(log)
    for found, measured in ((peaks["forward"], row.forward), (peaks["optimizer"], row.optimizer)):
        assert measured is None or found == pytest.approx(measured, rel=allocated * 1.5)


@pytest.mark.parametrize("row", LORA, ids=str)
def test_lora(row: Row) -> None:
    """Reserved memory depends on where the driver puts segments, and eager attention's large ones show it: two were 7
    and 9 % too low while each was thought to lie above all others.
    """
    _assert_close(row, quantized=False, allocated=0.001, reserved=0.008)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("row", QLORA, ids=str)
def test_qlora(row: Row) -> None:
    _assert_close(row, quantized=True, allocated=0.012, reserved=0.04)
