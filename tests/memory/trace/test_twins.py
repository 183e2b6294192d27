"""Memory twins: kernels that a forecast cannot run are stood for, and a twin is proven equal to its kernel."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fitune import MemoryStrategy, MemoryTwin, ModelError, NoOptions, PluginError, Strategy, hookimpl
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.shapes import of_recipe
from fitune.memory.trace.twins import twins_of
from fitune.recipe.reader import read_recipe
from fitune.testing import assert_twin, open_registry

A10G = find_card("a10g")


class _Squared(torch.autograd.Function):
    """A kernel that needs values, as a compiled one would: it keeps a float64 copy of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.flatten()[0].item() < -1e9:  # a question to values, whose answer nobody knows beforehand
            x = x.clamp_min(-1e9)
        scratch = torch.empty(SCRATCH, dtype=torch.uint8, device=x.device)
        ctx.save_for_backward(x.double())
        out = x * x
        del scratch
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad: Tensor = (2 * ctx.saved_tensors[0] * grads[0]).to(grads[0].dtype)
        return grad


class _Twin(torch.autograd.Function):
    """The same without a question to values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.double())
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Squared.backward(ctx, *grads)


def _kernel(x: Tensor) -> Tensor:
    return cast(Tensor, _Squared.apply(x))  # type: ignore[no-untyped-call]


def _twin(x: Tensor) -> Tensor:
    return cast(Tensor, _Twin.apply(x))  # type: ignore[no-untyped-call]


class _SquaredNorm(Strategy):
    """Squares what the model's last norm gives, by the kernel."""

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        norm = next(m for name, m in model.named_modules() if name.endswith("model.norm"))
        norm.register_forward_hook(lambda module, args, out: sys.modules["my_kernels"].squared(out))
        return model


SCRATCH = 12345 * 512
TWIN = MemoryTwin(
    name="squared", replaces="my_kernels:squared", twin=_twin, scratch=lambda arguments, results: [SCRATCH]
)


class _Plugin:
    def __init__(self, *twins: MemoryTwin) -> None:
        self.twins = twins

    @hookimpl
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[NoOptions]]:
        """Offer the strategy."""
        yield MemoryStrategy(name="squared", summary="Squares", options=NoOptions, make=lambda options: _SquaredNorm())

    @hookimpl
    def ft_memory_twins(self) -> Iterable[MemoryTwin]:
        """Offer the twins."""
        return self.twins


@pytest.fixture(autouse=True)
def kernels() -> Iterator[ModuleType]:
    """The module in which the kernel is looked up."""
    module = ModuleType("my_kernels")
    module.__dict__["squared"] = _kernel
    sys.modules["my_kernels"] = module
    yield module
    del sys.modules["my_kernels"]


def forecast_with(recipe_path: Path, *twins: MemoryTwin, strategy: str = "squared") -> Forecast:
    """The forecast of the tiny recipe with the kernel in it."""
    registry = open_registry(_Plugin(*twins))
    recipe = read_recipe(recipe_path, registry, [f'memory.strategy=[{{use="{strategy}"}}]'])
    return forecast(recipe, of_recipe(recipe), A10G, twins_of(registry))


def test_a_kernel_that_needs_values_is_stood_for_by_its_twin(recipe_path: Path, kernels: ModuleType) -> None:
    found = forecast_with(recipe_path, TWIN)
    log, tokens = found.trace.log, found.shapes.training[0].input_ids.numel()
    copies = [b for b in log.blocks if b.dtype == "float64" and b.phase in ("forward", "loss")]
    assert {b.bytes for b in copies} == {tokens * 32 * 8}  # the hidden size is 32
    assert {b.bytes for b in log.blocks if b.operation == "squared"} == {SCRATCH}
    assert {b.kind for b in log.blocks if b.operation == "squared"} == {"kernel scratch"}
    assert kernels.squared is _kernel


def test_without_a_twin_such_a_kernel_is_an_error_that_names_it(recipe_path: Path) -> None:
    with pytest.raises(ModelError, match=r"its model calls aten\._local_scalar_dense"):
        forecast_with(recipe_path)


def test_a_twin_of_nothing_is_an_error(recipe_path: Path) -> None:
    wrong = dataclasses.replace(TWIN, replaces="my_kernels:cubed")
    with pytest.raises(PluginError, match=r'memory twin "squared" replaces "my_kernels:cubed", which is not there'):
        forecast_with(recipe_path, wrong)


def test_an_operation_gets_its_scratch(recipe_path: Path) -> None:
    twin = MemoryTwin(name="mm", operation="aten.silu.default", scratch=lambda arguments, results: [7 * 512])
    log = forecast_with(recipe_path, TWIN, twin).trace.log
    found = [b for b in log.blocks if b.operation == "aten.silu.default" and b.kind == "kernel scratch"]
    assert found
    assert {b.bytes for b in found} == {7 * 512}


def test_a_right_twin_is_proven() -> None:
    assert_twin(TWIN, torch.randn(5, 3, requires_grad=True))


@pytest.mark.parametrize(
    ("twin", "says"),
    [
        (lambda x: x * x, r"keeps \[\] bytes for the backward pass, not \[120\]"),
        (lambda x: _twin(x)[:2], r"gives \[\(\(2, 3\), torch.float32\)\], not \[\(\(5, 3\), torch.float32\)\]"),
        (lambda x: _twin(x).double(), "torch.float64"),
    ],
)
def test_a_wrong_twin_is_told(twin: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        assert_twin(dataclasses.replace(TWIN, twin=twin), torch.randn(5, 3, requires_grad=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_scratch_is_measured() -> None:
    x = torch.randn(1024, 256, device="cuda", requires_grad=True)
    with pytest.raises(AssertionError, match="its scratch is said to be"):
        assert_twin(dataclasses.replace(TWIN, scratch=lambda arguments, results: [SCRATCH, 512]), x)
    assert_twin(TWIN, x)
