"""Variable-length attention on a GPU: the numbers of the block mask, in less memory and without waiting."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fitune import Batch
from fitune.compose import varlen
from fitune.compose.attention import Isolation, isolate_documents
from fitune.compose.loss import plain_loss
from support.packed import LATENT, LOSSES, Loss, checkpointed, documents, packed, tiny
from support.tiny import loss_and_gradients, with_lora

pytestmark = pytest.mark.gpu

LENGTH = 512
WINDOW = 100
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.05,
    "vocab_size": 512,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 4, "n_group": 1, "topk_group": 1}
"""All of them for every token: rounding could choose others."""
HEADS: dict[str, Any] = {"qk_nope_head_dim": 36, "qk_rope_head_dim": 16, "v_head_dim": 32}
"""Keys of 52 numbers and values of 32: both are padded to 56."""

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"sliding_window": WINDOW},
    "qwen3": {"head_dim": 128},
    "gemma3": {"head_dim": 256, "sliding_window": WINDOW},
    "phi3": {},
    "deepseek-v2": {**LATENT, **HEADS, **EXPERTS, "num_key_value_heads": 4},
    "deepseek-v3": {**LATENT, **HEADS, **EXPERTS, "num_key_value_heads": 4},
}


@pytest.fixture(autouse=True)
def _needs_the_kernel() -> None:
    try:
        varlen.check(varlen.capability_of(torch.device("cuda")))
    except varlen.UnsupportedError as reason:
        pytest.skip(f"no variable-length attention here: {reason}")


@pytest.fixture(scope="module")
def rows() -> Batch:
    """Two rows of documents shorter and longer than the kernel's tiles of 64 and 128 tokens, and than the window."""
    found = documents([300, 131, 70, 3, 1, 250, 129, 64], vocabulary=512)
    batch = packed([example for example in found if example.targets], LENGTH)
    assert len(batch.input_ids) == 2
    return batch.to(torch.device("cuda"))


def on_gpu(kind: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> PreTrainedModel:
    """The tiny model of a family, with heads as large as real ones."""
    return moved(tiny(kind, **{**SIZES, **KINDS[kind], **changes}), dtype)


def moved(model: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the GPU; transformers' own `to` is typed as if it took nothing."""
    return cast(PreTrainedModel, model.to(device="cuda", dtype=dtype))


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Relative, over all gradients together."""
    off = sum(float((f.float() - e.float()).square().sum()) for f, e in zip(found, exact, strict=True))
    return float((off / sum(float(e.float().square().sum()) for e in exact)) ** 0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_varlen_equals_the_block_mask(kind: str, loss: str, rows: Batch) -> None:
    """Against float32, it is no further off than the mask is in bfloat16."""
    exact_value, exact = loss_and_gradients(LOSSES[loss], on_gpu(kind, torch.float32), rows)
    value, by_mask = loss_and_gradients(LOSSES[loss], on_gpu(kind), rows)
    model = on_gpu(kind)
    assert isolate_documents(model) == Isolation(by="variable-length attention")
    found_value, found = loss_and_gradients(LOSSES[loss], model, rows)
    torch.testing.assert_close(found_value, value, rtol=2e-3, atol=0)
    torch.testing.assert_close(found_value, exact_value, rtol=5e-3, atol=0)
    assert error(found, exact) < 1.3 * error(by_mask, exact) + 1e-3
    assert error(found, by_mask) < 0.1


def test_in_evaluation(rows: Batch) -> None:
    model = on_gpu("mistral").eval()
    with torch.no_grad():
        expected = plain_loss(model, rows)
        assert isolate_documents(model).by == "variable-length attention"
        torch.testing.assert_close(plain_loss(model, rows), expected, rtol=2e-3, atol=0)


def test_with_an_adapter_and_checkpointing(rows: Batch) -> None:
    """Recomputing gives the same gradients."""
    model = moved(with_lora(on_gpu("llama"), "all-linear"), torch.bfloat16)
    assert isolate_documents(model).by == "variable-length attention"
    _, expected = loss_and_gradients(plain_loss, model, rows)
    checkpointed(model)
    _, found = loss_and_gradients(plain_loss, model, rows)
    assert error(found, expected) < 1e-2  # the kernel's backward pass adds up in no fixed order
    assert any(bool(g.any()) for g in expected)


@pytest.mark.parametrize("kind", ["llama", "mistral", "deepseek-v2"])
def test_float32_goes_by_the_mask(kind: str) -> None:
    found = isolate_documents(on_gpu(kind, torch.float32))
    assert found.by == "block mask"
    assert "float32" in found.reason


@contextmanager
def _no_waiting() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("loss", LOSSES)
def test_the_host_never_waits(loss: str, rows: Batch) -> None:
    model = on_gpu("llama")
    isolate_documents(model)
    LOSSES[loss](model, rows).backward()  # what is made once, is made now
    with _no_waiting():
        LOSSES[loss](model, rows).backward()


def long_row() -> Batch:
    """One row of 4,096 tokens, of documents of uneven length."""
    return packed(documents([1400, 900, 700, 400, 300, 200, 120, 60, 16], vocabulary=512), 4096).to(
        torch.device("cuda")
    )


def layers() -> PreTrainedModel:
    return on_gpu("llama", hidden_size=1024, intermediate_size=2816, num_attention_heads=8, num_hidden_layers=4)


def peak(loss: Loss, model: nn.Module, batch: Batch) -> int:
    """Bytes that a forward and backward pass takes over what is there before it."""
    loss(model, batch).backward()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss(model, batch).backward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def seconds(loss: Loss, model: nn.Module, batch: Batch, times: int = 10) -> float:
    """Of a forward and backward pass, the fastest of several."""
    found = []
    for _ in range(times):
        torch.cuda.synchronize()
        start = time.perf_counter()
        loss(model, batch).backward()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


def test_memory_and_speed_of_4096_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    """Memory must be lower; the speed is printed alone."""
    batch = long_row()
    assert batch.input_ids.shape == (1, 4096)
    model = layers()
    by_mask, with_mask = peak(plain_loss, model, batch), seconds(plain_loss, model, batch)
    assert isolate_documents(model).by == "variable-length attention"
    by_lengths, with_lengths = peak(plain_loss, model, batch), seconds(plain_loss, model, batch)
    with capsys.disabled():
        print(
            f"\n1 x 4096 packed, {torch.cuda.get_device_name()}, torch {torch.__version__}, measured: "
            f"block mask {by_mask / 2**20:.0f} MiB {with_mask * 1e3:.1f} ms, "
            f"variable-length attention {by_lengths / 2**20:.0f} MiB {with_lengths * 1e3:.1f} ms"
        )
    assert by_lengths < by_mask
