"""What a checkpointed layer keeps beside its input: the results of its costliest operations, which are not repeated.

`torch.utils.checkpoint` computes a layer in one context and computes it again in another. Here the first keeps results
in their order, and the second gives them back in place of computing them. It is the idea of torch's
`create_selective_checkpoint_contexts`, which refuses results that are changed in place; here a product of matrices may
be added to one (a LoRA branch onto its layer's result), and is then not repeated either. To watch every operation
costs the host more than many of them do; for attention alone, functions of torch are watched, and operations only
within it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fitune_plugins.memory.kept_results import ADDED, ATTENTION, Kept, is_asked, is_costly, kind_of, tensors_in

Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]

SCALED_DOT_PRODUCT = torch._C._nn.scaled_dot_product_attention
"""What `torch.nn.functional` calls by this name, unless a forecast has it call something else."""


def contexts(keep: Literal["attention", "products"]) -> Contexts:
    """The `context_fn` of a checkpoint that keeps this."""

    def both() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        kept = Kept(keep)
        if keep == "attention":
            return _Within(_Keeping(kept)), _Within(_Giving(kept))
        return _Keeping(kept), _Giving(kept)

    return both


class _Keeping(TorchDispatchMode):
    """Around the first computation."""

    supports_higher_order_operators = True

    def __init__(self, kept: Kept) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = kept

    def begin(self) -> None:
        """A layer is computed."""

    def __exit__(self, *error: Any) -> None:
        self._kept.close()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kept, kind = self._kept, kind_of(func)
        if kind.view:
            return out
        given = tensors_in((*args, *kwargs.values()) if kwargs else args) if kept.about else []
        if kind.writes:
            in_place = given[:1] if kind.name.endswith("_") else given
            kept.read(given[len(in_place) :])
            if kind.name in ADDED:
                kept.add_to(args[0])
            else:
                kept.forget(in_place)
            return out
        kept.read(given)
        if is_asked(kind, kept.keep):
            kept.add(out if is_costly(kind, args, kwargs or {}) else None)
        return out


class _Giving(TorchDispatchMode):
    """Around the computation that is made again."""

    supports_higher_order_operators = True

    def __init__(self, kept: Kept) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = kept
        self._next = 0

    def begin(self) -> None:
        """The layer is computed again, from its start."""
        self._next = 0

    def __enter__(self) -> _Giving:
        if self._kept.keep == "products":
            self.begin()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = kind_of(func)
        if kind.name in ADDED or is_asked(kind, self._kept.keep):
            result = self._kept.results[self._next]
            self._next += 1
            if result is not None and result.give():
                return args[0] if result.whole else result.take()
        return func(*args, **(kwargs or {}))


class _Within(TorchFunctionMode):
    """Watches functions, and has a mode watch the operations of attention."""

    def __init__(self, mode: _Keeping | _Giving) -> None:
        super().__init__()
        self._mode = mode

    def __enter__(self) -> _Within:
        self._mode.begin()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_attention(func):
            return func(*args, **(kwargs or {}))
        with self._mode:
            return func(*args, **(kwargs or {}))


def _is_attention(func: Any) -> bool:
    if func is SCALED_DOT_PRODUCT:
        return True
    if isinstance(func, OpOverloadPacket):
        return func._qualified_op_name in ATTENTION
    return isinstance(func, OpOverload) and kind_of(func).name in ATTENTION
