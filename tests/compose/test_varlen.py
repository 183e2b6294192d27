"""Variable-length attention gets what it needs from every family; where it cannot be used, the mask is."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fitune import Batch
from fitune.compose import varlen
from fitune.compose.attention import Isolation, isolate_documents
from fitune.compose.loss import plain_loss
from support.packed import DOCUMENTS, FAMILIES, WINDOW, checkpointed, must_equal_one_by_one, tiny, two_rows
from support.tiny import assert_close, loss_and_gradients


@pytest.fixture(scope="module")
def rows() -> Batch:
    return two_rows()


@pytest.mark.usefixtures("on_a_gpu")
def test_a_second_call_changes_nothing(rows: Batch) -> None:
    model = tiny("llama")
    assert isolate_documents(model) == isolate_documents(model) == Isolation(by="variable-length attention")
    assert len(cast(Any, model).model._forward_pre_hooks) == 1


def _reference(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, *, scale: float, window: int | None
) -> Tensor:
    """What the kernel must compute, document by document, in float32 on a CPU."""
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.shape[-1] % 8 == 0
    groups = query.shape[1] // key.shape[1]
    out = []
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        assert end - start <= longest
        q, k, v = (t[start:end].transpose(0, 1) for t in (query, key, value))
        k, v = (t.repeat_interleave(groups, 0) for t in (k, v))
        back = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (back >= 0) & (back < (window or longest))
        out.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(0, 1))
    return torch.cat(out)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one: the kernel's place is taken by the reference."""
    monkeypatch.setattr(varlen, "capability_of", lambda device: (9, 0))
    monkeypatch.setattr(varlen, "TYPES", (torch.float32,))
    monkeypatch.setattr(varlen, "KERNEL", _reference)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma2"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_variable_length_attention_is_used_as_it_should_be(family: str, checkpointing: bool, rows: Batch) -> None:
    """Ends of documents, windows, scales and head sizes reach the kernel in every family."""
    model = tiny(family)
    if checkpointing:
        checkpointed(model)
    assert isolate_documents(model) == Isolation(by="variable-length attention")
    must_equal_one_by_one(model, rows)
    must_equal_one_by_one(model, rows, "chunked")


@pytest.mark.usefixtures("on_a_gpu")
def test_with_variable_length_attention_there_is_no_mask(rows: Batch) -> None:
    model, masks = tiny("mistral"), []
    isolate_documents(model)
    layer = cast(Any, model).model.layers[0]
    layer.register_forward_pre_hook(lambda m, args, named: masks.append(named["attention_mask"]), with_kwargs=True)
    plain_loss(model, rows)
    assert [mask.numel() for mask in masks] == [0]


@pytest.mark.usefixtures("on_a_gpu")
def test_rows_that_are_not_packed_and_generation_are_as_before() -> None:
    model, batch = tiny("mistral"), DOCUMENTS[0]
    ids = torch.tensor([[0, 0, 5, 6, 7, 8, 9], [3, 4, 5, 6, 7, 8, 9]])
    mask = (ids > 0).long()

    def generated() -> Tensor:
        model.eval()
        out = cast(Any, model).generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
        model.train()
        return cast(Tensor, out)

    answers, (value, gradients) = generated(), loss_and_gradients(plain_loss, model, batch)
    assert isolate_documents(model).by == "variable-length attention"
    assert torch.equal(generated(), answers)
    found_value, found = loss_and_gradients(plain_loss, model, batch)
    assert torch.equal(found_value, value)
    assert_close(found, gradients, relative=1e-6)


@pytest.mark.usefixtures("on_a_gpu")
def test_attention_that_the_kernel_cannot_do_falls_back_to_the_mask(rows: Batch) -> None:
    model = tiny("llama", attention_dropout=0.1)
    assert isolate_documents(model) == Isolation(by="block mask", reason="the model has attention dropout")
    assert model.config._attn_implementation == "sdpa"
    model.eval()
    must_equal_one_by_one(model, rows)


@pytest.mark.usefixtures("on_a_gpu")
def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch, rows: Batch) -> None:
    def wrong(*given: Any, scale: float, window: int | None) -> Tensor:
        return _reference(*given, scale=3 * scale, window=window)

    monkeypatch.setattr(varlen, "KERNEL", wrong)
    model = tiny("llama")
    assert isolate_documents(model) == Isolation(by="block mask", reason="its results differ")
    must_equal_one_by_one(model, rows)


@pytest.mark.usefixtures("on_a_gpu")
def test_a_model_that_does_not_hand_on_the_ends_falls_back_to_the_mask(rows: Batch) -> None:
    model = tiny("llama")
    attention = cast(Any, model).model.layers[1].self_attn
    forward = attention.forward

    def forgetful(*args: Any, **named: Any) -> Any:
        return forward(*args, **{name: given for name, given in named.items() if not name.startswith("cu_seq_lens")})

    attention.forward = forgetful
    found = isolate_documents(model)
    assert found.by == "block mask"
    assert found.reason.startswith("LlamaForCausalLM does not run with it: ")
    must_equal_one_by_one(model, rows)


@pytest.mark.usefixtures("on_a_gpu")
def test_a_type_that_the_kernel_does_not_take(rows: Batch) -> None:
    """Found by what reaches the attention: the weights of a quantised model would not tell."""
    model = tiny("llama").double()
    found = isolate_documents(model)
    assert found == Isolation(by="block mask", reason="it needs bfloat16 or float16, and the model computes in float64")
    must_equal_one_by_one(model, rows)


def test_where_the_kernel_is_not() -> None:
    with pytest.raises(varlen.UnsupportedError, match="it needs an NVIDIA GPU"):
        varlen.capability_of(torch.device("cpu"))


def _call(kernel: varlen.Kernel, *, heads: int = 2, window: int | None = None) -> Any:
    query, key = torch.zeros(12, heads, 16), torch.zeros(12, 2, 16)
    return kernel(query, key, key, torch.tensor([0, 7, 12]), 7, scale=0.25, window=window)


@pytest.mark.parametrize(("window", "back"), [(None, -1), (WINDOW, WINDOW - 1), (7, -1), (6, 5), (1, 0)])
@pytest.mark.parametrize("gqa", [False, True])
def test_arguments_of_the_kernel(window: int | None, back: int, gqa: bool) -> None:
    """A window of w tokens looks w - 1 back; torch 2.11 takes grouped heads as they are, later ones must be told."""
    calls: list[dict[str, Any]] = []

    def of_2_11(*args: Any, scale: float, window_size: tuple[int, int]) -> None:
        calls.append({"scale": scale, "window_size": window_size})

    def of_2_12(*args: Any, enable_gqa: bool = False, **named: Any) -> None:
        calls.append({**named, "enable_gqa": True} if enable_gqa else named)

    kernel = varlen.kernel_of(of_2_12 if gqa else of_2_11)
    _call(kernel, window=window)
    _call(kernel, window=window, heads=4)
    expected = {"scale": 0.25, "window_size": (back, 0)}
    assert calls == [expected, {**expected, "enable_gqa": True} if gqa else expected]
