"""Which module an operation belongs to, in the forward pass and in the backward pass.

In the forward pass it is the innermost module that is being called. In the backward pass it is the one in which the
autograd node was made: nodes are numbered in the order in which they are made, so noting the number at which each
module is entered and left is enough, and no tensor is touched.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from fitune.plugin import strategy as alike
from fitune.plugin.model import unwrapped

TUNERS = "peft.tuners."
"""Where peft's adapters are, whose modules compute in much Python."""

OUTSIDE = ""
"""The name of being in no module."""


class ModuleTracker:
    """Knows the module of what is being computed."""

    def __init__(self, model: nn.Module) -> None:
        inner = unwrapped(model)
        self._names: dict[nn.Module, str] = {module: name for name, module in inner.named_modules()}
        self._body: nn.Module = inner.base_model
        self._stack: list[nn.Module] = []
        self._numbers: list[int] = []
        self._marks: list[tuple[str, bool]] = []
        self._failed = (0, OUTSIDE)
        self._calls = self._tuned = 0
        self.in_head = False
        """Whether the model's last layer has been left: what follows is the loss."""

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Follow the calls of modules."""
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def start(self) -> None:
        """A forward pass begins."""
        self._stack.clear()
        self._numbers.clear()
        self._marks.clear()
        self.in_head = False
        self._mark()

    def take_calls(self) -> tuple[int, int]:
        """How many modules were called since this was asked last, and how many of them within one of peft's."""
        found = self._calls, self._tuned
        self._calls = self._tuned = 0
        return found

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._calls += alike.times()
        if self._stack and type(self._stack[-1]).__module__.startswith(TUNERS):
            self._tuned += alike.times()
        self._stack.append(module)
        if module is self._body:
            self.in_head = False  # a second forward pass of one loss, say
        self._mark()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and self._failed[0] != id(error):  # not the error itself, which keeps tensors alive
            self._failed = (id(error), self._innermost())
        while self._stack and self._stack.pop() is not module:
            pass  # modules that an exception left, e.g. the one that ends a recomputation early
        if module is self._body:
            self.in_head = True
        self._mark()

    def _mark(self) -> None:
        number = torch._C._autograd._get_sequence_nr()
        if self._numbers and self._numbers[-1] == number:
            self._marks[-1] = (self._innermost(), self.in_head)
            return
        self._numbers.append(number)
        self._marks.append((self._innermost(), self.in_head))

    def _innermost(self) -> str:
        """The innermost module that is a part of the model."""
        for module in reversed(self._stack):
            name = self._names.get(module)
            if name is not None:
                return name
        return OUTSIDE

    def failed(self, error: BaseException) -> str:
        """The module that this error came from: the innermost that it passed, or where the computation stands."""
        return self._failed[1] if self._failed[0] == id(error) else self.now()[0]

    def now(self) -> tuple[str, bool, bool]:
        """(module, whether it is behind the model's last layer, whether a forward pass is computed again)."""
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return self._innermost(), self.in_head, False
        if self._stack:  # in the backward pass, modules are called to be computed again
            return self._innermost(), False, True
        in_pieces = alike.module()
        if in_pieces is not None:
            return self._names.get(in_pieces, OUTSIDE), False, False
        at = bisect_right(self._numbers, node._sequence_nr()) - 1
        # The largest number stands for the accumulation of a gradient, which belongs to no forward pass.
        if at < 0 or node.name() == "torch::autograd::AccumulateGrad":
            return OUTSIDE, False, False
        name, in_head = self._marks[at]
        return name, in_head, False
