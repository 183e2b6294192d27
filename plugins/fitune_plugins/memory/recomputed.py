"""Parts of a forward pass that keep their inputs alone, and are computed again when the backward pass asks for more.

What a part saves inside of it is replaced by its number, and what others save of the part's result by the way to get
it: the part, and the view of its result that was saved. The first to ask has the part computed once, for all that ask
soon after. Autograd's own graph stays as it is, so gradients are equal to the last bit. It is the way of
`torch.utils.checkpoint` without reentrance, but for parts that are a few operations long, and for their results too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Function = Callable[..., Tensor]
"""Tensors to a tensor, the same each time: it draws no random numbers and changes nothing in place."""


class _Recipe(Protocol):
    """Stands for a saved tensor."""

    def tensor(self) -> Tensor: ...


Packed = _Recipe | tuple[Tensor, int]
"""What autograd keeps: a recipe, or the tensor itself and its version."""


class _Enough(Exception):
    """Ends a computation once all that its inside saves is there."""


class _Part:
    """One computation of a part, and what was computed again of it."""

    __slots__ = ("__weakref__", "count", "function", "given", "inputs", "result", "saved")

    def __init__(self, function: Function, inputs: tuple[tuple[Packed, bool], ...], given: set[int]) -> None:
        self.function = function
        self.inputs = inputs
        """Each with whether it requires a gradient."""
        self.given = given
        """Storages of the inputs."""
        self.count = 0
        """Tensors that were saved inside, inputs aside."""
        self.saved: dict[int, Tensor] = {}
        self.result: Tensor | None = None

    def compute(self, *, whole: bool) -> None:
        """Compute again what was saved inside and, if `whole`, the result."""
        inputs = [_unpack(packed).detach().requires_grad_(wants) for packed, wants in self.inputs]
        given = {_key(tensor) for tensor in inputs}
        count = None if whole else self.count
        saved: list[Tensor] = []

        def keep(tensor: Tensor) -> None:
            if _key(tensor) not in given:
                saved.append(tensor)
                if len(saved) == count:
                    raise _Enough

        result: Tensor | None = None
        try:
            with torch.enable_grad(), saved_tensors_hooks(keep, _unpack):
                result = self.function(*inputs).detach()
        except _Enough:
            pass
        finally:
            found = dict(enumerate(saved))
            saved.clear()  # the graph of these tensors holds `keep`, which would hold them
        if len(found) != self.count:
            raise RuntimeError(
                f"{self.function} saved {self.count} tensors at first and {len(found)} when it was computed again"
            )
        self.saved = found
        self.result = result


class _Inside:
    """A tensor that was saved inside of a part, by its number."""

    __slots__ = ("number", "part")

    def __init__(self, part: _Part) -> None:
        self.part = part
        self.number = part.count
        part.count += 1

    def tensor(self) -> Tensor:
        part = self.part
        part.result = None  # whoever saved it came later, and so has been served
        if self.number not in part.saved:
            part.compute(whole=False)
        return part.saved.pop(self.number)


class _View:
    """A view of a part's result."""

    __slots__ = ("offset", "part", "shape", "stride")

    def __init__(self, part: _Part, tensor: Tensor) -> None:
        self.part = part
        self.shape, self.stride, self.offset = tensor.shape, tensor.stride(), tensor.storage_offset()

    def tensor(self) -> Tensor:
        if self.part.result is None:
            self.part.compute(whole=True)
        result = self.part.result
        assert result is not None
        return result.as_strided(self.shape, self.stride, self.offset)


class Recomputation:
    """Computes parts, and knows whose results are about."""

    def __init__(self) -> None:
        self._active = False
        self._running: _Part | None = None
        self._results: dict[int, tuple[weakref.ref[torch.UntypedStorage], _Part, torch.dtype, int]] = {}
        """By storage: the part whose result is there, its type and its version."""

    @contextmanager
    def around_step(self) -> Iterator[None]:
        """Around the forward and backward passes of a step: outside of it, parts are computed as if nothing was."""
        self._active = True
        try:
            with saved_tensors_hooks(self._pack, _unpack):
                yield
        finally:
            self._active = False
            self._running = None
            self._results.clear()

    def run(self, function: Function, *inputs: Tensor) -> Tensor:
        """Compute a part; in a backward pass, within another part and without gradients as if nothing was."""
        if not self._active or self._running is not None or not torch.is_grad_enabled() or _in_backward():
            return function(*inputs)
        packed = tuple((self._pack(tensor), tensor.requires_grad) for tensor in inputs)
        self._running = part = _Part(function, packed, {_key(tensor) for tensor in inputs})
        try:
            result = function(*inputs)
        finally:
            self._running = None
        if result.requires_grad:
            self._know(result, part)
        return result

    def _know(self, result: Tensor, part: _Part) -> None:
        storage = result.untyped_storage()
        key = storage._cdata
        if key in part.given:
            return  # the result is an input

        def gone(_: object) -> None:
            self._results.pop(key, None)

        self._results[key] = weakref.ref(storage, gone), part, result.dtype, result._version

    def _pack(self, tensor: Tensor) -> Packed:
        key = _key(tensor)
        running = self._running
        if running is not None and key not in running.given:
            return _Inside(running)
        known = self._results.get(key)
        if known is not None:
            _, part, dtype, version = known
            if tensor.dtype == dtype and tensor._version == version:
                return _View(part, tensor)
        return tensor, tensor._version


def _unpack(packed: Any) -> Tensor:
    if type(packed) is not tuple:
        recipe: _Recipe = packed
        return recipe.tensor()
    tensor: Tensor = packed[0]
    if tensor._version != packed[1]:  # torch does not look at it where there are hooks
        raise RuntimeError(
            f"a tensor of shape {list(tensor.shape)} that is needed for the gradient was changed in place: it is at "
            f"version {tensor._version}, and was saved at version {packed[1]}"
        )
    return tensor


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]


def _in_backward() -> bool:
    return torch._C._current_autograd_node() is not None
