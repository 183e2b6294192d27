"""Products, softmax and plain ops whose memory `kernels.py` measures."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from kernel_attention import BF16, FP16, FP32, Case, aten, attention_cases
from kernel_calls import Tensors, both, call, normal, pair, with_ids
from kernel_lists import bitsandbytes_cases, list_cases


def softmax_cases() -> dict[str, Case]:
    """Softmax, log-softmax and the losses made of them."""
    cases: dict[str, Case] = {}
    scores, logits = (1, 32, 1024, 1024), (2047, 102400)
    for dtype, to_float in ((BF16, False), (FP32, False), (FP16, True), (BF16, True)):
        kind = f"{str(dtype)[6:]}{' to float' * to_float}"
        for shape in (scores, (2047, 32000)):
            for op, undo in (
                (aten._softmax, aten._softmax_backward_data),
                (aten._log_softmax, aten._log_softmax_backward_data),
            ):
                forward = functools.partial(lambda x, op, up: op(x, -1, up), op=op, up=to_float)
                backward = functools.partial(lambda g, y, x, undo: undo(g, y, -1, x.dtype), undo=undo)
                cases[f"{op.__name__} {kind} {list(shape)}"] = pair(normal(shape, dtype=dtype), forward, backward)
    for dtype in (FP32, BF16):
        loss_of = with_ids(normal(logits, dtype=dtype, grad=True), (2047,), 102400)
        cases[f"cross_entropy {str(dtype)[6:]} {list(logits)}"] = both(loss_of, F.cross_entropy)
        cases[f"cross_entropy sum {str(dtype)[6:]} {list(logits)}"] = both(
            loss_of, functools.partial(F.cross_entropy, reduction="sum")
        )
    cases["cross_entropy bfloat16 upcast"] = both(
        with_ids(normal(logits, grad=True), (2047,), 102400), lambda x, y: F.cross_entropy(x.float(), y)
    )
    cases["nll_loss float32"] = pair(
        with_ids(normal((2047, 32000), dtype=FP32), (2047,), 32000),
        lambda x, y: aten.nll_loss_forward(x, y, None, 1, -100),
        lambda g, out, x, y: aten.nll_loss_backward(g, x, y, None, 1, -100, out[1]),
    )
    cases["softmax to float32 bfloat16"] = both(normal(scores, grad=True), lambda x: F.softmax(x, -1, dtype=FP32))
    cases["logsumexp float32"] = both(normal((2047, 32000), dtype=FP32, grad=True), lambda x: x.logsumexp(-1))
    return cases


def index_cases() -> dict[str, Case]:
    """Embeddings, indexing, gathering, sorting."""
    cases: dict[str, Case] = {}
    for vocab, width, rows in ((32000, 2048, 2048), (102400, 4096, 2048), (32000, 2048, 512), (32000, 2048, 4096)):
        for dtype in (BF16, FP32):
            cases[f"embedding {str(dtype)[6:]} [{vocab}, {width}] of {rows}"] = pair(
                with_ids(normal((vocab, width), dtype=dtype), (1, rows), vocab),
                lambda w, i: aten.embedding(w, i),
                functools.partial(lambda g, _, w, i, n: aten.embedding_dense_backward(g, i, n, -1, False), n=vocab),
            )
    table = with_ids(normal((2048, 4096), grad=True), (1024,), 2048)
    pick = with_ids(normal((2048, 4096), grad=True), (2048, 16), 4096)
    coin = with_ids(normal((2048, 4096), grad=True), (2048,), 2)
    cases |= {
        "index by int64": both(table, lambda x, i: x[i]),
        "index by bool": both(coin, lambda x, i: x[i == 1]),
        "index_select": both(table, lambda x, i: x.index_select(0, i)),
        "index_add": both(
            with_ids(normal((2048, 4096), (1024, 4096), grad=True), (1024,), 2048), lambda x, y, i: x.index_add(0, i, y)
        ),
        "index_put accumulate": call(
            with_ids(normal((2048, 4096), (1024, 4096)), (1024,), 2048),
            lambda x, y, i: x.index_put_((i,), y, accumulate=True),
        ),
        "index_put": call(
            with_ids(normal((2048, 4096), (1024, 4096)), (1024,), 2048), lambda x, y, i: x.index_put_((i,), y)
        ),
        "gather": both(pick, lambda x, i: x.gather(1, i)),
        "scatter_add": call(pick, lambda x, i: x.detach().scatter_add(1, i, x.detach()[:, :16])),
        "nonzero": call(coin, lambda x, i: i.nonzero()),
        "nonzero_static": call(coin, lambda x, i: torch.nonzero_static(i, size=1024)),
        "one_hot": call(coin, lambda x, i: F.one_hot(i, 64)),
        "bincount": call(coin, lambda x, i: i.bincount(minlength=64)),
        "unique": call(pick, lambda x, i: i.unique()),
    }
    for shape in ((1, 102400), (2048, 64), (64, 32000)):
        data = normal(shape, dtype=FP32)
        for name in ("argmax", "argsort", "sort"):
            cases[f"{name} {list(shape)}"] = call(
                data, functools.partial(lambda x, name: getattr(x, name)(-1), name=name)
            )
        cases[f"topk 8 {list(shape)}"] = call(data, lambda x: x.topk(8))
        cases[f"cumsum {list(shape)}"] = call(data, lambda x: x.cumsum(-1))
        cases[f"multinomial {list(shape)}"] = call(data, lambda x: x.softmax(-1).multinomial(1))
    cases["cumsum int64 [2048]"] = call(coin, lambda x, i: i.cumsum(0))
    return cases


def plain_cases() -> dict[str, Case]:
    """Elementwise ops, reductions and norms."""
    hidden = (2048, 4096)
    one, two = normal(hidden, grad=True), normal(hidden, hidden)
    cases: dict[str, Case] = {
        "native_dropout": pair(
            normal(hidden),
            lambda x: aten.native_dropout(x, 0.1, True),
            lambda g, out, x: aten.native_dropout_backward(g, out[1], 1 / 0.9),
        ),
        "dropout": both(one, lambda x: F.dropout(x, 0.1)),
        "silu": both(one, F.silu),
        "silu times": both(normal(hidden, hidden, grad=True), lambda x, y: F.silu(x) * y),
        "gelu": both(one, F.gelu),
        "gelu tanh": both(one, lambda x: F.gelu(x, approximate="tanh")),
        "rotate half": both(one, lambda x: torch.cat((-x[..., 2048:], x[..., :2048]), -1)),
        "broadcast multiply": both(normal(hidden, (4096,), grad=True), lambda x, y: x * y),
        "expand, sum over rows": call(two, lambda x, y: x.sum(0)),
        "cat": call(two, lambda *x: torch.cat(x, -1)),
        "stack": call(two, lambda *x: torch.stack(x)),
        "repeat_interleave": both(normal((1, 8, 2048, 128), grad=True), lambda x: x.repeat_interleave(4, 1)),
        "repeat_interleave by tensor": call(
            with_ids(normal((8,)), (64,), 4), lambda x, i: torch.arange(64, device=i.device).repeat_interleave(i)
        ),
        "contiguous": call(two, lambda x, y: x.t().contiguous()),
        "masked_fill": both(one, lambda x: x.masked_fill(x.detach() > 0, 0)),
        "where": call(two, lambda x, y: torch.where(x > 0, x, y)),
        "tril": call(two, lambda x, y: x.tril()),
        "arange": call(two, lambda x, y: torch.arange(2048, device=x.device)),
        "to float32": both(one, lambda x: x.float()),
        "copy_ to bfloat16": call(two, lambda x, y: x.copy_(y.float())),
        "isfinite all": call(two, lambda x, y: x.isfinite().all()),
        "pow mean rsqrt": both(one, lambda x: x * x.float().pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()),
    }
    for dtype in (BF16, FP32):
        for shape in (hidden, (11008, 4096), (102400, 4096)):
            kind = f"{str(dtype)[6:]} {list(shape)}"
            data = normal(shape, dtype=dtype)
            cases[f"sum {kind}"] = call(data, lambda x: x.sum())
            cases[f"sum of rows {kind}"] = call(data, lambda x: x.sum(-1))
            cases[f"sum over rows {kind}"] = call(data, lambda x: x.sum(0))
            cases[f"mean to float32 {kind}"] = call(data, lambda x: x.mean(dtype=FP32))
            cases[f"vector_norm {kind}"] = call(data, lambda x: torch.linalg.vector_norm(x))
            cases[f"max {kind}"] = call(data, lambda x: x.max())
    for dtype, rows, width in ((BF16, 2048, 4096), (FP32, 2048, 4096), (BF16, 4096, 2048), (BF16, 131072, 128)):
        kind = f"{str(dtype)[6:]} {[rows, width]}"
        scale = normal((rows, width), (width,), dtype=dtype)
        cases[f"layer_norm {kind}"] = pair(
            normal((rows, width), (width,), (width,), dtype=dtype),
            functools.partial(lambda x, w, b, n: aten.native_layer_norm(x, [n], w, b, 1e-5), n=width),
            functools.partial(
                lambda g, out, x, w, b, n: aten.native_layer_norm_backward(g, x, [n], out[1], out[2], w, b, [True] * 3),
                n=width,
            ),
        )
        for wanted in ([True, True], [True, False]):
            cases[f"_fused_rms_norm, weight gradient {wanted[1]} {kind}"] = pair(
                scale,
                functools.partial(lambda x, w, n: aten._fused_rms_norm(x, [n], w, 1e-6), n=width),
                functools.partial(
                    lambda g, out, x, w, n, wanted: aten._fused_rms_norm_backward(g, x, [n], out[1], w, wanted),
                    n=width,
                    wanted=wanted,
                ),
            )
        graph = normal((rows, width), (width,), dtype=dtype, grad=True)
        cases[f"rms_norm {kind}"] = both(
            graph, functools.partial(lambda x, w, n: F.rms_norm(x, (n,), w, 1e-6), n=width)
        )
    return cases


def product_cases() -> dict[str, Case]:
    """Matrix products and convolutions, after the workspaces are there."""
    cases: dict[str, Case] = {}
    shapes = [(2048, 4096, 4096), (2048, 4096, 11008), (2048, 11008, 4096), (16, 4096, 4096), (1, 4096, 4096)]
    shapes += [
        (2048, 4096, 4),
        (4, 2048, 4096),
        (4096, 4, 4096),
        (8, 8, 65536),
        (2047, 4096, 102400),
        (2047, 4095, 2048),
    ]
    for dtype in (BF16, FP16, FP32):
        for m, k, n in shapes:
            if dtype == BF16 or n < 100000:
                cases[f"mm {str(dtype)[6:]} {[m, k, n]}"] = call(normal((m, k), (k, n), dtype=dtype), torch.mm)
        data = normal((2048, 4096), (11008, 4096), (11008,), dtype=dtype, grad=True)
        cases[f"linear with bias {str(dtype)[6:]}"] = both(data, F.linear)
        data = normal((1, 2048, 4096), (11008, 4096), dtype=dtype, grad=True)
        cases[f"linear {str(dtype)[6:]}"] = both(data, F.linear)
        cases[f"addmm {str(dtype)[6:]}"] = call(normal((4096,), (2048, 4096), (4096, 4096), dtype=dtype), torch.addmm)
        batch = normal((32, 1024, 1024), (32, 1024, 128), (32, 128, 1024), dtype=dtype)
        cases[f"bmm {str(dtype)[6:]}"] = call(batch, lambda x, y, z: torch.bmm(y, z))
        cases[f"baddbmm {str(dtype)[6:]}"] = call(batch, torch.baddbmm)
        scores = normal((1, 32, 1024, 128), (1, 32, 1024, 128), dtype=dtype, grad=True)
        cases[f"matmul by transpose {str(dtype)[6:]}"] = both(scores, lambda q, k: q @ k.transpose(2, 3))
        rotary = normal((1, 64, 1), (1, 1, 2048), dtype=dtype)
        cases[f"matmul of rotary {str(dtype)[6:]}"] = call(rotary, torch.matmul)
    for name, groups, width in (("depthwise", 4096, 4), ("patches", 1, 14)):
        data = normal((1, 4096 if groups > 1 else 64, 2048), (4096, 1 if groups > 1 else 64, width), grad=True)
        cases[f"conv1d {name}"] = both(data, functools.partial(F.conv1d, padding=width - 1, groups=groups))
    images = normal((4, 3, 224, 224), (1024, 3, 14, 14), grad=True)
    cases["conv2d of patches"] = both(images, functools.partial(F.conv2d, stride=14))

    def experts(device: str) -> Tensors:
        tokens, weights = normal((4096, 2048), (16, 2048, 1024), grad=True)(device)
        return tokens, weights, torch.arange(256, 4097, 256, dtype=torch.int32, device=device)

    grouped: Any = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if grouped is not None:
        cases["grouped_mm bfloat16"] = both(experts, lambda x, w, ends: grouped(x, w, offs=ends))
    return cases


def all_cases() -> dict[str, Case]:
    """Every case, by name, in the order of measuring."""
    return {
        **product_cases(),
        **softmax_cases(),
        **index_cases(),
        **plain_cases(),
        **list_cases(),
        **attention_cases(),
        **bitsandbytes_cases(),
    }
