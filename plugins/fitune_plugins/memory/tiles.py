"""A module that treats every token by itself, computed a tile of tokens at a time.

Nothing is kept for the backward pass but the input: each tile is computed again there. Of what a module makes between
its input and its result, only a tile stands at any time. Arctic Long Sequence Training, arXiv 2506.13996, section 3.3
(`TiledMLP`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fitune import standing_for

ALIKE = 3
"""Tiles that a forecast traces of each module: the first, one that stands for the others, and the last."""


class Tiled:
    """Stands for a module's `forward`; what it is called with beside one tensor goes to the module as it is."""

    def __init__(self, module: nn.Module, tokens: int, *, random: bool) -> None:
        """`random`: whether the module may draw random numbers, e.g. to drop units."""
        self.forward: Callable[..., Tensor] = module.forward
        self.module = module
        self.tokens = tokens
        self.random = random

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The module's result."""
        if len(inputs) != 1 or named or not isinstance(inputs[0], Tensor) or inputs[0].ndim < 2:
            return self.forward(*inputs, **named)
        x: Tensor = inputs[0]
        trained = [p for p in self.module.parameters() if p.requires_grad]
        if not torch.is_grad_enabled() or not (x.requires_grad or trained):
            return self.compute(x)
        keep: Callable[..., Tensor] = _Input.apply
        tile: Callable[..., Tensor] = _Tiles.apply
        return tile(keep(x, x.new_empty(0).requires_grad_()), x, self, *trained)

    def compute(self, x: Tensor) -> Tensor:
        """Tile by tile, written into one tensor."""
        axis, tiles = self._tiles(x)
        if len(tiles) == 1:
            return self.forward(x)
        out: Tensor | None = None
        for tile in tiles:
            with standing_for(tile.times):
                result = self.forward(x.narrow(axis, tile.start, tile.length).contiguous())
                if out is None:
                    shape = [*result.shape]
                    shape[axis] = x.shape[axis]
                    out = result.new_empty(shape)
                out.narrow(axis, tile.start, tile.length).copy_(result)
                del result  # or it would stand beside the next one
        return cast(Tensor, out)

    def gradients(self, x: Tensor, grad: Tensor, wants_x: bool, trained: list[nn.Parameter]) -> list[Tensor | None]:
        """Of the input, and of what trains, in its own type; sums over tiles are made in float32."""
        axis, tiles = self._tiles(x)
        of_x = torch.empty_like(x) if wants_x and len(tiles) > 1 else None
        sums: list[Tensor] = []
        for tile in tiles:
            part = partial(torch.narrow, dim=axis, start=tile.start, length=tile.length)
            with standing_for(tile.times, self.module):
                found = self._of_tile(part(x), part(grad), wants_x, trained)
                if of_x is not None:
                    part(of_x).copy_(found.pop(0))
                elif wants_x:
                    of_x = found.pop(0)
                _add(sums, found, exact=len(tiles) == 1)
                del found
        return [of_x, *(total.to(p.dtype) for total, p in zip(sums, trained, strict=True))]

    def _of_tile(self, x: Tensor, grad: Tensor, wants_x: bool, trained: list[nn.Parameter]) -> list[Tensor]:
        piece = x.detach().contiguous().requires_grad_(wants_x)  # a module may take `view`s of it, as GPT-2's do
        with torch.enable_grad():
            result = self.forward(piece)
        wanted = [*([piece] if wants_x else []), *trained]
        return list(torch.autograd.grad(result, wanted, grad, materialize_grads=True))

    def _tiles(self, x: Tensor) -> tuple[int, list[_Tile]]:
        """The axis to cut along, which is the longest but the last, and the tiles; without values not all of them."""
        axis = max(range(x.ndim - 1), key=lambda at: x.shape[at])
        rows = 1 if x.ndim == 2 else x.shape[1 if axis == 0 else 0]
        step = max(1, self.tokens // max(1, rows))
        whole = x.shape[axis]
        tiles = [_Tile(start, min(step, whole - start)) for start in range(0, whole, step)] or [_Tile(0, 0)]
        if x.is_meta and len(tiles) > ALIKE:
            tiles = [tiles[0], replace(tiles[1], times=len(tiles) - 2), tiles[-1]]
        return axis, tiles


@dataclass(frozen=True, slots=True)
class _Tile:
    """A stretch of the axis that is cut along."""

    start: int
    length: int
    times: int = 1
    """How many tiles like this one it stands for."""


def _add(sums: list[Tensor], found: list[Tensor], *, exact: bool) -> None:
    if sums:
        for total, one in zip(sums, found, strict=True):
            total += one
    else:
        sums += [one if exact or one.dtype == torch.float64 else one.float() for one in found]


class _Input(torch.autograd.Function):
    """Keeps a tensor for `_Tiles`.

    Apart from it so that a checkpointed layer, which is computed again until all that it keeps is there, stops here if
    this is the last of that: the tiles themselves are not computed a third time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, always: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        return x.new_empty(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[None, None]:
        return None, None


class _Tiles(torch.autograd.Function):
    """Computes tiles, forward and backward."""

    @staticmethod
    def forward(ctx: Any, kept: Tensor, x: Tensor, tiled: Tiled, *trained: nn.Parameter) -> Tensor:
        ctx.kept, ctx.tiled, ctx.trained = kept.grad_fn, tiled, list(trained)
        ctx.random = _random_state(x.device) if tiled.random and tiled.module.training else None
        return tiled.compute(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.kept.saved_tensors
        with _as_in(ctx.random, x.device):
            of_x, *of_trained = ctx.tiled.gradients(x, grad, ctx.needs_input_grad[1], ctx.trained)
        return None, of_x, None, *of_trained


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Of the host, and of the card."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextlib.contextmanager
def _as_in(state: tuple[Tensor, Tensor | None] | None, device: torch.device) -> Iterator[None]:
    """Random numbers as they were drawn from this state on."""
    if state is None:
        yield
        return
    of_host, of_card = state
    with torch.random.fork_rng(devices=[] if of_card is None else [device]):
        torch.set_rng_state(of_host)
        if of_card is not None:
            torch.cuda.set_rng_state(of_card, device)
        yield
