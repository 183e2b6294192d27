"""Attention over rows that are spread over processes: from some tokens of all heads to some heads of all tokens.

Shapes: N processes of a group, B rows, T tokens of a part, S = N x T of a row, H heads, G heads of one process, D head
size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fitune import ModelError, unwrapped

Plain = Callable[..., "tuple[Tensor, None]"]
"""An attention of transformers' interface: `[B, H, S, D]` to `[B, S, H, D]`."""

BEGIN = "row_begin"
"""What a model is called with where it computes a part of rows (`fitune.Batch.inputs`)."""

DOCUMENTS = "cu_seq_lens_q"
"""What it is called with where rows are packed: where documents begin and end, `[documents + 1]`, over all rows."""

LAYERS = ("full_attention", "sliding_attention", "attention")
"""Values of a config's `layer_types` whose layers look at other tokens by attention alone."""

PER_HEAD = ("s_aux", "position_bias", "softcap")
"""What some models give their attention beside heads, and torch's takes not, or not in parts."""

CHANGING = ("dynamic", "longrope")
"""Rotary positions that depend on how long the row at hand is."""

REMOVE = 'Remove the [[memory.strategy]] with use = "context-parallel"'


def spread(model: nn.Module, count: int) -> int:
    """Have a model's attention computed by groups of so many processes; gives this one's place in its group.

    Every process must call it. Raises `ModelError` for a model that cannot be.
    """
    inner = unwrapped(model)
    before = inner.config._attn_implementation
    _must_be_fit(inner, before, count)
    group = _group(count)
    name = f"fitune_{count}_parts_of_{before}"
    plain = ALL_ATTENTION_FUNCTIONS[before]
    AttentionInterface.register(name, functools.partial(attention, plain, group, before == "sdpa"))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[before])
    inner.set_attn_implementation(name)
    if inner.config._attn_implementation != name:
        raise _refused(inner, "does not take transformers' attention interface")
    inner.base_model.register_forward_pre_hook(_without_mask, with_kwargs=True)
    return int(group.rank())


def attention(
    plain: Plain,
    group: dist.ProcessGroup,
    masked: bool,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **named: Any,
) -> tuple[Tensor, None]:
    """An attention of transformers' interface, `[B, H, T + 1, D]` to `[B, T + 1, H, D]`, by `plain` on whole rows;
    `masked` says that this knows documents by a mask alone. Rows that are not in parts go to it as they are.
    """
    if named.pop(BEGIN, None) is None:
        return plain(module, query, key, value, attention_mask, **named)
    if found := [name for name in PER_HEAD if named.get(name) is not None]:
        raise ModelError(f'its attention has a "{found[0]}"')
    if named.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise ModelError("its attention is not causal")
    query, key, value = _heads_of_all(query, key, value, group)
    ends, window = named.get(DOCUMENTS), named.get("sliding_window")
    mask = mask_of(query, ends, window) if masked or ends is None else None
    named.pop("position_ids", None)  # of this part
    of_heads = SimpleNamespace(
        is_causal=True, num_key_value_groups=query.shape[1] // key.shape[1], training=module.training
    )
    out_BSGD = plain(of_heads, query, key, value, mask, **named)[0]
    return _tokens_of_own(out_BSGD, group), None


def mask_of(query_BGSD: Tensor, ends: Tensor | None, window: int | None) -> Tensor | None:
    """Which tokens see which, `[B, 1, S, S]` or `[1, 1, S, S]`, bool; None where each sees all before it."""
    rows, _, length, _ = query_BGSD.shape
    if ends is None and (window is None or window >= length):
        return None
    place = torch.arange(length, device=query_BGSD.device)
    distance = place[:, None] - place[None, :]
    seen = (distance >= 0)[None]
    if window is not None:
        seen = seen & (distance < window)
    if ends is not None:
        every = torch.arange(rows * length, device=query_BGSD.device, dtype=ends.dtype)
        document = torch.bucketize(every, ends, right=True).view(rows, length)
        seen = seen & (document[:, :, None] == document[:, None, :])
    return seen[:, None]


def _heads_of_all(query: Tensor, key: Tensor, value: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """`[B, heads, T + 1, D]` of each to `[B, G, S, D]`: by one exchange."""
    count = group.size()
    repeats = math.lcm(key.shape[1], count) // key.shape[1]  # so that each process has one of keys at least
    if repeats > 1:
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    given = (query, key, value)
    sent = torch.cat([_by_process(tensor, count) for tensor in given], dim=-1)
    got_SBX = _exchange(sent, group).flatten(0, 1)
    parts = got_SBX.split([tensor.shape[1] // count * tensor.shape[3] for tensor in given], dim=-1)
    return [
        part.unflatten(-1, (-1, tensor.shape[3])).permute(1, 2, 0, 3) for part, tensor in zip(parts, given, strict=True)
    ]


def _by_process(tensor: Tensor, count: int) -> Tensor:
    """`[B, heads, T + 1, D]` to `[N, T, B, G x D]`, without the token behind the part."""
    own: Tensor = tensor[:, :, :-1].unflatten(1, (count, -1))
    return own.permute(1, 3, 0, 2, 4).flatten(3)


def _tokens_of_own(out_BSGD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[B, S, G, D]` to `[B, T + 1, H, D]`, with zeros for the token behind the part."""
    got_NTBGD = _exchange(out_BSGD.transpose(0, 1).unflatten(0, (group.size(), -1)), group)
    own_BTNGD: Tensor = F.pad(got_NTBGD.permute(2, 1, 0, 3, 4), (0, 0, 0, 0, 0, 0, 0, 1))
    return own_BTNGD.flatten(2, 3)


def _exchange(sent: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The n-th `[...]` of `[N, ...]` goes to the n-th process; those that came, in their order."""
    apply: Callable[..., Tensor] = _Exchange.apply
    return apply(sent, group)


class _Exchange(torch.autograd.Function):
    """Keeps nothing: gradients go back the way that their tensors came."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _sent(sent, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sent(grads[0], ctx.group), None


def _sent(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    tensor = tensor.contiguous()
    got = torch.empty_like(tensor)
    dist.all_to_all_single(got, tensor, group=group)
    return got


def _group(count: int) -> dist.ProcessGroup:
    """Of so many processes, this one among them, each with its neighbours by number."""
    world = dist.get_world_size()
    if count == world:
        return cast(dist.ProcessGroup, dist.group.WORLD)
    kind = "cuda" if "nccl" in dist.get_backend() else "cpu"
    return init_device_mesh(kind, (world // count, count), mesh_dim_names=("replicas", "rows")).get_group("rows")


def _without_mask(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Keep transformers from making a mask of a part of rows: it takes one of four dimensions as given. This has no
    element, so that an attention which would need one fails.
    """
    if named.get(BEGIN) is None or named.get("attention_mask") is not None:
        return args, named
    device = (named["input_ids"] if named.get("input_ids") is not None else args[0]).device
    return args, {**named, "attention_mask": torch.empty((1, 1, 0, 0), dtype=torch.bool, device=device)}


def _must_be_fit(inner: PreTrainedModel, attention: str, count: int) -> None:
    """Raise `ModelError` if the model has layers, positions or heads that cannot be spread."""
    config = inner.config.get_text_config()
    for number, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind not in LAYERS:
            raise _refused(inner, f'has layer {number} ("{kind}"), which needs what other processes have')
    if any(isinstance(module, nn.Conv1d) for module in inner.modules()):
        raise _refused(inner, "has convolutions over tokens, which need what other processes have")
    known = attention in ALL_ATTENTION_FUNCTIONS and attention in ALL_MASK_ATTENTION_FUNCTIONS
    if not known or "flash" in attention:  # a word that transformers looks for in names
        raise _refused(inner, f'computes its attention by "{attention}"')
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if any(kind in str(rope) for kind in CHANGING):
        raise _refused(inner, "has rotary positions that depend on how long a row is")
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int) or heads % count:
        raise _refused(inner, f"has {heads} heads of attention, which {count} processes cannot share evenly")


def _refused(inner: PreTrainedModel, why: str) -> ModelError:
    return ModelError(f"context-parallel: {type(inner).__name__} {why}. {REMOVE}")
