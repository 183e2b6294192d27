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
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]

ATTENTION = frozenset(
    {
        *(f"aten::_scaled_dot_product_{kernel}_attention" for kernel in ("flash", "efficient", "cudnn")),
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_fused_attention_overrideable",
        "aten::_flash_attention_forward",
        "aten::_efficient_attention_forward",
        "torch_attn::_varlen_attn",
        "flash_attn::_flash_attn_forward",
        "flash_attn::_flash_attn_varlen_forward",
    }
)
PRODUCTS = {
    "aten::mm": 0,
    "aten::bmm": 0,
    "aten::linear": 0,
    "aten::addmm": 1,
    "aten::baddbmm": 1,
    "aten::_grouped_mm": 0,
    "aten::_scaled_mm": 0,
    "bitsandbytes::gemm_4bit": 0,
}
"""Each with the position of its left matrix."""
ADDED = frozenset({"aten::addmm_", "aten::baddbmm_"})
"""Products that are added to what is there."""
SCALED_DOT_PRODUCT = torch._C._nn.scaled_dot_product_attention
"""What `torch.nn.functional` calls by this name, unless a forecast has it call something else."""
WIDE = 256
"""A product over so many numbers, or fewer (the second one of a LoRA, scores of attention), costs a card no more time
than to write its result and read it again."""


def contexts(keep: Literal["attention", "products"]) -> Contexts:
    """The `context_fn` of a checkpoint that keeps this."""

    def both() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        kept = _Kept(keep)
        if keep == "attention":
            return _Within(_Keeping(kept)), _Within(_Giving(kept))
        return _Keeping(kept), _Giving(kept)

    return both


@dataclass(eq=False, slots=True)
class _Result:
    """What one operation gave."""

    value: Any
    versions: list[int] | None = None
    """Of its tensors when the watch over them ended: until then, what changes them is seen."""
    used: bool = False
    """Whether another operation has read it."""
    whole: _Result | None = None
    """Of a product that was added to another result: that one, whose value is the whole."""
    given: bool = False
    """Whether its value was given back."""

    def give(self) -> bool:
        """Whether the value can be given back: it was not changed in place. Raises `RuntimeError` the second time."""
        if self.whole is not None:
            return self.whole.given
        if self.value is None:
            raise RuntimeError("a checkpointed layer that keeps results can go through one backward pass only")
        self.given = [tensor._version for tensor in _tensors(self.value)] == self.versions
        return self.given

    def take(self) -> Any:
        """The value, which is not held any longer."""
        value, self.value = self.value, None
        return value


@dataclass(eq=False, slots=True)
class _Kept:
    """Results of one computation of a layer."""

    keep: Literal["attention", "products"]
    results: list[_Result | None] = field(default_factory=list)
    """Of every operation that might be kept, in order; None for those to be repeated."""
    about: dict[int, list[int]] = field(default_factory=dict)
    """By storage, while the layer is computed at first: the positions of the results that it holds."""

    def add(self, out: Any) -> None:
        """Keep what an operation gave; nothing of it if that is None."""
        if out is None:
            self.results.append(None)
            return
        value = _detached(out)
        for tensor in _tensors(value):
            self.about.setdefault(_key(tensor), []).append(len(self.results))
        self.results.append(_Result(value))

    def add_to(self, tensor: Tensor) -> None:
        """Keep a product that was added to a result; neither of them if that was read before."""
        positions = self.about.get(_key(tensor), [])
        found = [result for result in (self.results[position] for position in positions) if result is not None]
        if not found or any(result.used for result in found):
            self.forget([tensor])
            self.results.append(None)
            return
        positions.append(len(self.results))
        self.results.append(_Result((), whole=found[0]))

    def read(self, tensors: list[Tensor]) -> None:
        """Note that these were read."""
        for tensor in tensors:
            for position in self.about.get(_key(tensor), ()):
                result = self.results[position]
                if result is not None:
                    result.used = True

    def close(self) -> None:
        """The watch ends, for a while or for good."""
        self.about.clear()
        for result in self.results:
            if result is not None and result.versions is None:
                result.versions = [tensor._version for tensor in _tensors(result.value)]

    def forget(self, tensors: list[Tensor]) -> None:
        """Have results repeated that were changed in place."""
        for tensor in tensors:
            for position in self.about.pop(_key(tensor), ()):
                self.results[position] = None


class _Keeping(TorchDispatchMode):
    """Around the first computation."""

    supports_higher_order_operators = True

    def __init__(self, kept: _Kept) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = kept

    def begin(self) -> None:
        """A layer is computed."""

    def __exit__(self, *error: Any) -> None:
        self._kept.close()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kept, kind = self._kept, _kind(func)
        if kind.view:
            return out
        given = _tensors((*args, *kwargs.values()) if kwargs else args) if kept.about else []
        if kind.writes:
            in_place = given[:1] if kind.name.endswith("_") else given
            kept.read(given[len(in_place) :])
            if kind.name in ADDED:
                kept.add_to(args[0])
            else:
                kept.forget(in_place)
            return out
        kept.read(given)
        if _is_asked(kind, kept.keep):
            kept.add(out if _is_costly(kind, args, kwargs or {}) else None)
        return out


class _Giving(TorchDispatchMode):
    """Around the computation that is made again."""

    supports_higher_order_operators = True

    def __init__(self, kept: _Kept) -> None:
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
        kind = _kind(func)
        if kind.name in ADDED or _is_asked(kind, self._kept.keep):
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
    return isinstance(func, OpOverload) and _kind(func).name in ATTENTION


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is known of an operation by its schema."""

    name: str
    view: bool
    writes: bool
    dropout: int
    """Position of its probability of dropping attention weights; -1 without one."""


@cache
def _kind(func: Any) -> _Kind:
    schema = getattr(func, "_schema", None)
    if schema is None:
        return _Kind(str(func), view=False, writes=False, dropout=-1)
    names = [argument.name for argument in schema.arguments]
    dropout = names.index("dropout_p") if "dropout_p" in names else -1
    view = func.is_view or schema.name == "aten::_unsafe_view"  # whose schema does not say so
    return _Kind(schema.name, view=view, writes=schema.is_mutable, dropout=dropout)


def _is_asked(kind: _Kind, keep: Literal["attention", "products"]) -> bool:
    return kind.name in ATTENTION or (keep == "products" and kind.name in PRODUCTS)


def _is_costly(kind: _Kind, args: Any, kwargs: Any) -> bool:
    """Whether to repeat the operation costs more than to keep its result; one that draws random numbers is repeated,
    or what is drawn after it would differ.
    """
    left = PRODUCTS.get(kind.name)
    if left is not None:
        return bool(args[left].shape[-1] > WIDE)
    dropout = kwargs.get("dropout_p", args[kind.dropout] if -1 < kind.dropout < len(args) else 0.0)
    return not dropout


def _detached(out: Any) -> Any:
    """Without a graph, which would hold it; its versions go on with the original's."""
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        if isinstance(out, Tensor):
            return out.detach()
        return tuple(one.detach() if isinstance(one, Tensor) else one for one in out)


def _tensors(values: Any) -> list[Tensor]:
    """Those in an operation's arguments or results, in their order."""
    if isinstance(values, Tensor):
        return [values]
    if not isinstance(values, (tuple, list)):
        return []
    return [tensor for value in values for tensor in _tensors(value)]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]
