"""Results of operations that a layer keeps to be computed again without them: which, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

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

WIDE = 256
"""A product over so many numbers, or fewer (the second one of a LoRA, scores of attention), costs a card no more time
than to write its result and read it again."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of an operation by its schema."""

    name: str
    view: bool
    writes: bool
    dropout: int
    """Position of its probability of dropping attention weights; -1 without one."""


@cache
def kind_of(func: Any) -> Kind:
    """Of an operation, as a dispatch mode is given it."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return Kind(str(func), view=False, writes=False, dropout=-1)
    names = [argument.name for argument in schema.arguments]
    dropout = names.index("dropout_p") if "dropout_p" in names else -1
    view = func.is_view or schema.name == "aten::_unsafe_view"  # whose schema does not say so
    return Kind(schema.name, view=view, writes=schema.is_mutable, dropout=dropout)


def is_asked(kind: Kind, keep: Literal["attention", "products"]) -> bool:
    """Whether results of this operation are to be kept, where that pays."""
    return kind.name in ATTENTION or (keep == "products" and kind.name in PRODUCTS)


def is_costly(kind: Kind, args: Any, kwargs: Any) -> bool:
    """Whether to repeat the operation costs more than to keep its result; one that draws random numbers is repeated,
    or what is drawn after it would differ.
    """
    left = PRODUCTS.get(kind.name)
    if left is not None:
        return bool(args[left].shape[-1] > WIDE)
    dropout = kwargs.get("dropout_p", args[kind.dropout] if -1 < kind.dropout < len(args) else 0.0)
    return not dropout


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
        self.given = [tensor._version for tensor in tensors_in(self.value)] == self.versions
        return self.given

    def take(self) -> Any:
        """The value, which is not held any longer."""
        value, self.value = self.value, None
        return value


@dataclass(eq=False, slots=True)
class Kept:
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
        for tensor in tensors_in(value):
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
                result.versions = [tensor._version for tensor in tensors_in(result.value)]

    def forget(self, tensors: list[Tensor]) -> None:
        """Have results repeated that were changed in place."""
        for tensor in tensors:
            for position in self.about.pop(_key(tensor), ()):
                self.results[position] = None


def _detached(out: Any) -> Any:
    """Without a graph, which would hold it; its versions go on with the original's."""
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        if isinstance(out, Tensor):
            return out.detach()
        return tuple(one.detach() if isinstance(one, Tensor) else one for one in out)


def tensors_in(values: Any) -> list[Tensor]:
    """Those in an operation's arguments or results, in their order."""
    if isinstance(values, Tensor):
        return [values]
    if not isinstance(values, (tuple, list)):
        return []
    return [tensor for value in values for tensor in tensors_in(value)]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]
