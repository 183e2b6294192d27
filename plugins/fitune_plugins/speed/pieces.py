"""The three pieces of a decoder layer, each one operation of autograd: projections, output, gated MLP.

Each keeps what its backward pass cannot have cheaply, and computes what is pointwise again: of the projections the
layer's input (and q and k before their norms, where a model has such), of the output what attention gave (which
attention keeps anyway), of the MLP its input, gate and up. The input of a layer is passed through the projections, so
that the residual's gradient comes back to where the norm's is, and both are added as one kernel writes them.

Shapes: B rows, S tokens of each, M = B x S, H width, N outputs, I width of the MLP, D of a head, P padded rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fitune_plugins.speed import kernels
from fitune_plugins.speed.layer_parts import Mlp, Norm, Output, Projections
from fitune_plugins.speed.linears import NO_FOLD, Fold, Group

_rope: Callable[..., tuple[Tensor, Tensor]] = kernels.rope
_rope_backward: Callable[..., Tensor] = kernels.rope_backward


def project(x: Tensor, cos: Tensor | None, sin: Tensor | None, part: Projections, *, training: bool) -> list[Tensor]:
    """q `[B, S, heads, D]`, k and v `[B, S, key heads, D]`, and x itself, which stands for the residual."""
    apply: Callable[..., Any] = _Project.apply
    return list(apply(x, cos, sin, part, training, *part.group.parameters))


def output(attended: Tensor, residual: Tensor, part: Output, *, training: bool) -> Tensor:
    """`residual + o(attended)`, `[B, S, H]`."""
    apply: Callable[..., Tensor] = _Output.apply
    return apply(attended, residual, part, training, *part.group.parameters)


def mlp(x: Tensor, part: Mlp, *, training: bool) -> Tensor:
    """`x + down(act(gate(norm(x))) * up(norm(x)))`, `[B, S, H]`."""
    apply: Callable[..., Tensor] = _Mlp.apply
    return apply(x, part, training, *part.group.parameters, *part.down.parameters)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor | None, sin: Tensor | None, part: Projections, training: bool, *parameters: Any
    ) -> tuple[Tensor, ...]:
        group, (rows, tokens) = part.group, x.shape[:2]
        flat = x.reshape(rows * tokens, -1)
        hidden = flat if part.norm is None else part.norm(flat)
        masks = group.masks(hidden, training=training)
        low = group.low(hidden, masks)
        made = group.products(hidden)
        del hidden
        q, k, v = _three(part, made)
        folds = [group.folded(low, 0), group.folded(low, 1)] if len(made) == 3 else [NO_FOLD, NO_FOLD]
        if len(made) == 3:
            for at, one in enumerate(made):
                (group.add_if_large if at < 2 and part.whole_norms is None else group.add)(one, low, at)
            if part.whole_norms is not None:
                folds = [NO_FOLD, NO_FOLD]
        else:
            group.add(made[0], low, 0)
        kept: list[Tensor | None] = [None, None]
        if part.head_norms is not None or part.whole_norms is not None:
            kept = [q, k]
        if part.whole_norms is not None:
            q, k = (norm(one) for norm, one in zip(part.whole_norms, (q, k), strict=True))
        angles = _angles(cos, sin) if part.rotary else (None, None)
        if part.rotary or part.head_norms is not None:
            norms = part.norms_of_heads()
            q, k = _rope(q, k, *_turning(part, angles, q), *folds[0], *folds[1], *norms, part.head_dim)
        else:
            for at, one in enumerate((q, k)):
                if folds[at][0] is not None:
                    group.add(one, low, at)
        ctx.part, ctx.shape = part, (rows, tokens)
        ctx.save_for_backward(flat, low, *angles, *kept, *masks)
        shaped = [t.reshape(rows, tokens, -1, part.head_dim) for t in (q, k, v)]
        return (*shaped, x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        part: Projections = ctx.part
        group = part.group
        flat, low, cos, sin, q, k, *masks = ctx.saved_tensors
        dq, dk, dv = (_dense_rows(g.reshape(flat.shape[0], -1, part.head_dim)) for g in grads[:3])
        dresidual = _dense_rows(grads[3].reshape(flat.shape))
        folds = [NO_FOLD, NO_FOLD]
        if len(group.linears) == 3 and part.whole_norms is None:
            folds = [group.folded(low, 0), group.folded(low, 1)]
        raw = (q, k) if part.head_norms is not None else (None, None)
        if part.rotary or part.head_norms is not None:
            angles = _turning(part, (cos, sin), flat)
            norms = part.norms_of_heads()
            dqkv = _rope_backward(dq, dk, dv, *angles, *raw, *folds[0], *folds[1], *norms, part.head_dim)
        else:
            dqkv = torch.cat([one.flatten(1) for one in (dq, dk, dv)], dim=1)
        del dq, dk, dv, grads
        ends = part.ends
        if part.whole_norms is not None:
            for norm, one, columns in zip(
                part.whole_norms, (q, k), (slice(0, ends[0]), slice(ends[0], ends[1])), strict=True
            ):
                dqkv[:, columns].copy_(norm.backward(dqkv[:, columns], one)[0])
        parts = [dqkv[:, linear.rows] for linear in group.linears]
        dlow = group.grad_of_low(parts)
        if not ctx.needs_input_grad[0]:
            hidden = flat if part.norm is None else part.norm(flat)
            return None, None, None, None, None, *group.grads(hidden, low, dlow, parts, masks)
        dh = group.grad_of_input(parts)
        fold = group.down_part(dlow) if group.folds_down(masks) and part.norm is not None else NO_FOLD
        if fold[0] is None:
            dh = group.add_down(dh, dlow, masks)
        if part.norm is None:
            dx, hidden = dh.add_(dresidual), flat
        else:
            dx, hidden = part.norm.backward(dh, flat, low=fold, residual=dresidual, again=group.down is not None)
        del dh
        made = group.grads(hidden, low, dlow, parts, masks)
        return dx.view(*ctx.shape, -1), None, None, None, None, *made


class _Output(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attended: Tensor, residual: Tensor, part: Output, training: bool, *parameters: Any) -> Tensor:
        group = part.group
        flat, base = attended.reshape(-1, group.linears[0].module.in_features), residual.reshape(-1, group.outputs)
        masks = group.masks(flat, training=training)
        low = group.low(flat, masks)
        made, kept = _onto(group, flat, low, base, part.norm, part.multiplier)
        ctx.part, ctx.shape = part, attended.shape
        ctx.save_for_backward(flat, low, kept, *masks)
        return made.view(residual.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        part: Output = ctx.part
        flat, low, kept, *masks = ctx.saved_tensors
        d = _before(_dense_rows(grads[0].reshape(-1, part.group.outputs)), kept, part.norm, part.multiplier)
        dlow = part.group.grad_of_low([d])
        made = part.group.grads(flat, low, dlow, [d], masks)
        dattended = part.group.add_down(part.group.grad_of_input([d]), dlow, masks)
        return dattended.view(ctx.shape), grads[0], None, None, *made


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, part: Mlp, training: bool, *parameters: Any) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        hidden = flat if part.norm is None else part.norm(flat)
        masks = part.group.masks(hidden, training=training)
        low = part.group.low(hidden, masks)
        gate, up, folds = _gate_and_up(part, hidden, low)
        del hidden
        act = kernels.gated(gate, up, *folds[0], *folds[1], part.act)
        keep = not part.recompute
        if not keep:
            del gate, up
        masks_down = part.down.masks(act, training=training)
        low_down = part.down.low(act, masks_down)
        made, kept = _onto(part.down, act, low_down, flat, part.after, part.multiplier)
        ctx.part, ctx.masks = part, len(masks)
        both = (gate, up) if keep else (None, None)
        ctx.save_for_backward(flat, low, low_down, kept, *both, *masks, *masks_down)
        return made.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        part: Mlp = ctx.part
        flat, low, low_down, kept, gate, up, *masks = ctx.saved_tensors
        masks, masks_down = masks[: ctx.masks], masks[ctx.masks :]
        group, down = part.group, part.down
        dz = _dense_rows(grads[0].reshape(flat.shape))
        d = _before(dz, kept, part.after, part.multiplier)
        dlow = down.grad_of_low([d])
        dact = down.grad_of_input([d])
        fold = down.down_part(dlow) if down.folds_down(masks_down) else NO_FOLD
        if fold[0] is None:
            dact = down.add_down(dact, dlow, masks_down)
        if part.recompute:
            hidden = flat if part.norm is None else part.norm(flat)
            gate, up, _ = _gate_and_up(part, hidden, low)
            del hidden
        folds = _folds(part, low)
        dgu, act = kernels.gated_backward(dact, *fold, gate, up, *folds[0], *folds[1], part.act, down.down is not None)
        del dact, gate, up
        of_down = down.grads(act, low_down, dlow, [d], masks_down)
        del act, d
        parts = [dgu[:, linear.rows] for linear in group.linears]
        dlow = group.grad_of_low(parts)
        dh = group.grad_of_input(parts)
        fold = group.down_part(dlow) if group.folds_down(masks) and part.norm is not None else NO_FOLD
        if fold[0] is None:
            dh = group.add_down(dh, dlow, masks)
        if part.norm is None:
            dx, hidden = dh.add_(dz), flat
        else:
            dx, hidden = part.norm.backward(dh, flat, low=fold, residual=dz, again=group.down is not None)
        del dh
        of_group = group.grads(hidden, low, dlow, parts, masks)
        return dx.view(grads[0].shape), None, None, *of_group, *of_down


def _dense_rows(grad: Tensor) -> Tensor:
    """The gradient, with a unit stride along its last axis, as kernels take it: plain attention of one row gives keys'
    gradient the other way round, and what is expanded has a stride of 0.
    """
    return grad if grad.stride(-1) == 1 else grad.contiguous()


def _three(part: Projections, made: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of three products, or of one."""
    if len(made) == 3:
        return made[0], made[1], made[2]
    q, k, v = part.ends
    return made[0][:, :q], made[0][:, q:k], made[0][:, k:v]


def _angles(cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor, Tensor]:
    assert cos is not None
    assert sin is not None
    return cos.reshape(-1, cos.shape[-1]), sin.reshape(-1, sin.shape[-1])


def _turning(part: Projections, angles: tuple[Any, Any], like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines; of no column where nothing turns."""
    if part.rotary:
        return angles
    return like.new_empty((1, 0)), like.new_empty((1, 0))


def _folds(part: Mlp, low: Tensor | None) -> tuple[Fold, Fold]:
    """What the kernel of the activation adds to gate and up as it goes."""
    if len(part.group.linears) == 1:
        return NO_FOLD, NO_FOLD
    return part.group.folded(low, 0), part.group.folded(low, 1)


def _gate_and_up(part: Mlp, hidden: Tensor, low: Tensor | None) -> tuple[Tensor, Tensor, tuple[Fold, Fold]]:
    """Gate and up, without what the kernel adds."""
    made = part.group.products(hidden)
    if len(made) == 1:
        both = part.group.add(made[0], low, 0)
        return both[:, : part.width], both[:, part.width :], _folds(part, low)
    for at, one in enumerate(made):
        part.group.add_if_large(one, low, at)
    return made[0], made[1], _folds(part, low)


def _onto(
    group: Group, x: Tensor, low: Tensor | None, residual: Tensor, norm: Norm | None, multiplier: float
) -> tuple[Tensor, Tensor | None]:
    """The residual plus a linear's result, and that result where a norm of it stands between them."""
    y = group.add_if_large(group.products(x)[0], low, 0)
    fold = group.folded(low, 0)
    if norm is None:
        kernels.onto_residual_(y, residual, *fold, multiplier)
        return y, None
    if fold[0] is not None:
        group.add(y, low, 0)
    made = norm(y)
    kernels.onto_residual_(made, residual, None, None, multiplier)
    return made, y


def _before(grad: Tensor, kept: Tensor | None, norm: Norm | None, multiplier: float) -> Tensor:
    """The gradient of a linear's result, from that of the sum that it was added to."""
    d = grad if multiplier == 1 else grad * multiplier
    if norm is None:
        return d
    assert kept is not None
    return norm.backward(d, kept)[0]
