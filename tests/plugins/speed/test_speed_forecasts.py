"""Forecasts of `fast-layers`, `fp8` and the fused loss: what is traced without values is what a run allocates."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from support import real_steps
from support.architectures import recipe_of
from support.kept import saved, traced
from support.real_steps import both_logs, events

FAST, LOSS = "fast-layers", "chunked-loss"


@pytest.fixture(autouse=True)
def _attention_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the run and in its forecast."""

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return cast(Tensor, kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0])

    monkeypatch.setattr(real_steps, "_attention", attention)


CASES: dict[str, tuple[str, tuple[str, ...], dict[str, float]]] = {
    "llama": ("llama", (FAST,), {}),
    "dropout": ("llama", (FAST,), {"dropout": 0.1}),
    "loss": ("llama", (FAST, LOSS), {}),
    "loss alone": ("qwen2", (LOSS,), {}),
    "checkpoints": ("llama", (FAST, "gradient-checkpointing"), {}),
    "checkpointed mlps": ("llama", (FAST, 'gradient-checkpointing", part = "mlp'), {}),
    "plain checkpointed mlps": ("llama", ('gradient-checkpointing", part = "mlp',), {}),
    "norms of heads": ("qwen3", (FAST, LOSS), {}),
    "one product": ("phi3", (FAST, LOSS), {}),
    "whole norms": ("olmo2", (FAST, LOSS), {}),
    "capped": ("gemma2", (FAST, LOSS), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_forecast_does_what_a_run_does(case: str, tmp_path: Path) -> None:
    name, strategies, named = CASES[case]
    forecast, real = both_logs(recipe_of(tmp_path, name, *strategies, length=32, **named))  # type: ignore[arg-type]
    assert events(forecast) == events(real)
    made = {block.operation for block in real.blocks}
    assert any("fitune.gated" in one for one in made) is (FAST in strategies)
    assert any("fitune.cross_entropy_" in one for one in made) is (LOSS in strategies)


def test_what_fast_layers_keep(tmp_path: Path) -> None:
    """As much as the pieces that there are for transformers' layers, but for ranks that are padded; with MLPs computed
    again, less. The last norm, which is in no layer, is another strategy's.
    """
    wide = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8}
    pieces = ("fused-lora", "fused-rms-norm", "recompute-pointwise")
    both = (FAST, "fused-rms-norm")
    cases = ((), pieces, both, (*both, 'gradient-checkpointing", part = "mlp'))
    plain, others, found, again = (
        saved(traced(tmp_path / str(at), *case, changes=wide).log) for at, case in enumerate(cases)
    )
    assert again < 0.6 * found < 0.6 * plain
    assert others < found < 1.01 * others


def test_fp8_halves_the_weights_or_keeps_them(tmp_path: Path) -> None:
    """Of decoder layers: bytes that are there when training begins."""

    def weights(*strategies: str) -> int:
        place = tmp_path / "-".join(["x", *strategies]).replace('"', "").replace(" ", "")
        log = traced(place, *strategies, card="h100").log
        start = next(start for start, phase, step in log.phases if (phase, step) == ("forward", 1))
        alive = {n for n in log.events[:start] if n > 0} - {-n for n in log.events[:start] if n < 0}
        return sum(log.blocks[n - 1].bytes for n in alive if log.blocks[n - 1].phase == "load")

    plain, one, two = weights(), weights('fp8", layouts = "one'), weights("fp8")
    hidden, wide, keys, layers = 64, 128, 32, 2
    linears = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * wide)
    outputs = layers * (3 * hidden + 2 * keys + 2 * wide)
    inputs = layers * (6 * hidden + wide)
    assert plain - one == linears - 4 * (outputs + inputs)  # 2 bytes become 1; outputs have scales, inputs ones
    assert two - one == linears
