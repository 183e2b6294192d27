"""`fp8`: numbers in 8 bits, layers whose products are made of them, and the strategy that makes such layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BitsAndBytesConfig

from fitune import ModelError, NoOptions, Plan, RecipeError
from fitune.plugin.recipe import Recipe
from fitune_plugins.memory.fused_lora import FusedLora
from fitune_plugins.speed.fp8 import Fp8, Fp8Options
from fitune_plugins.speed.fp8_linear import Fp8Linear, convert
from fitune_plugins.speed.kernels.fp8 import LARGEST, product, to_fp8, transposed
from support.fast_models import fast, plain_model, seeded

EIGHT = torch.float8_e4m3fn
HALF_A_STEP = 2.0**-4
"""Of 3 bits of mantissa, relative to the number; a number near 0 is off by half of the smallest, 2 ** -10."""


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("columns", [False, True])
def test_each_number_is_rounded_by_the_scale_of_its_row(columns: bool, dtype: torch.dtype) -> None:
    sizes = torch.logspace(-20 if dtype != torch.float16 else -3, 4, 12)[:, None]
    x = (_random(12, 48) * sizes).to(dtype)
    by = torch.rand(48, generator=torch.Generator().manual_seed(1)) + 0.1 if columns else None
    rounded, scale = to_fp8(x, by)
    assert (rounded.dtype, rounded.shape, scale.dtype, scale.shape) == (EIGHT, x.shape, torch.float32, (12, 1))
    exact = x.double() * (1 if by is None else by.double())
    off = (rounded.double() * scale.double() - exact).abs()
    allowed = (exact.abs() * HALF_A_STEP).maximum(scale.double() * 2.0**-10) * (1 + 1e-5)
    assert (off <= allowed).all()
    assert (rounded.double().abs().amax(1) == LARGEST).all()
    assert off.max() > 0


def test_rows_of_zeros_and_of_what_is_no_number() -> None:
    x = _random(4, 16)
    x[0], x[1, 3], x[2, 5] = 0, torch.nan, torch.inf
    rounded, scale = to_fp8(x)
    assert not rounded[0].float().any()
    assert 0 < scale[0] < 1e-20
    ones = to_fp8(torch.ones(3, 16))
    made = product(rounded, scale, ones[0], ones[1].t(), torch.float32)
    assert not made[0].any()
    assert made[1].isnan().all()
    assert not made[2].isfinite().any()
    assert made[3].isfinite().all()


def test_a_transpose_is_laid_out_anew() -> None:
    rounded, _ = to_fp8(_random(32, 48))
    turned = transposed(rounded)
    assert turned.is_contiguous()
    assert torch.equal(turned.float(), rounded.float().t())
    assert transposed(rounded.to("meta")).shape == (48, 32)


def test_a_product_is_that_of_the_rounded_numbers() -> None:
    x, right = to_fp8(_random(20, 64)), to_fp8(_random(48, 64, seed=1))
    wanted = (x[0].double() * x[1]) @ (right[0].double() * right[1]).t()
    torch.testing.assert_close(
        product(*x, right[0], right[1].t(), torch.float32).double(), wanted, rtol=1e-5, atol=1e-5
    )
    assert product(*x, right[0], right[1].t(), torch.bfloat16).dtype == torch.bfloat16


def _linear(bias: bool, *, turned: bool) -> tuple[Any, Tensor]:
    """A layer of 8 bits `[48, 64]`, and its weight as it is taken, in float64."""
    torch.manual_seed(0)
    linear: Any = nn.Linear(64, 48, bias=bias).to(torch.bfloat16).requires_grad_(False)
    before = linear.weight.double()
    convert(linear, turned=turned)
    weight = linear.weight.double() * linear.scale.double().t()
    assert 0 < (weight - before).norm() < 0.04 * before.norm()
    return linear, weight


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_layer_and_its_gradient(bias: bool, turned: bool) -> None:
    """Against the dequantised weight: inputs and gradients are rounded too, by 3 % of each."""
    linear, weight = _linear(bias, turned=turned)
    assert (type(linear), linear.weight.dtype) == (Fp8Linear, EIGHT)
    assert (linear.turned is None) is not turned
    x = _random(2, 10, 64, seed=2).bfloat16().requires_grad_()
    made = linear(x)
    assert (made.shape, made.dtype, made.is_contiguous()) == ((2, 10, 48), torch.bfloat16, True)
    exact = x.double() @ weight.t() + (linear.bias.double() if bias else 0)
    assert 0 < (made.double() - exact).norm() < 0.04 * exact.norm()
    grad = _random(2, 10, 48, seed=3).bfloat16()
    (found,) = torch.autograd.grad(made, x, grad)
    truth = grad.double() @ weight
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert 0 < (found.double() - truth).norm() < 0.04 * truth.norm()


def test_both_layouts_give_the_same() -> None:
    x = _random(10, 64).bfloat16()
    results = []
    for turned in (False, True):
        linear, _ = _linear(True, turned=turned)
        leaf = x.clone().requires_grad_()
        made = linear(leaf)
        results.append((made.detach(), torch.autograd.grad(made.float().square().sum(), leaf)[0]))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def _prepared(model: Any, **options: Any) -> Fp8:
    strategy = Fp8(Fp8Options(**options))
    strategy.plan(Plan(gpu=True))
    strategy.prepare(model)
    return strategy


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("more", [None, fast, lambda model: FusedLora(NoOptions()).prepare(model)])
def test_adapters_train_on_it(kind: str, more: Callable[[Any], Any] | None) -> None:
    """Near to what they do on bfloat16; heads and embeddings stay as they are."""
    model = plain_model(kind).bfloat16()
    wanted = seeded(model)
    _prepared(model)
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert all((one is Fp8Linear) is name.endswith("base_layer") for name, one in kinds.items())
    if more is not None:
        more(model)
    found = seeded(model)
    assert found[0].item() == pytest.approx(wanted[0].item(), rel=0.02)
    for one, other in zip(found[1], wanted[1], strict=True):
        assert (one.float() - other.float()).norm() < 0.35 * other.float().norm()


def test_few_kernels_compute_what_its_layers_do() -> None:
    model = plain_model("llama").bfloat16()
    _prepared(model)
    wanted = seeded(model)
    found = seeded(fast(model))
    assert found[0].item() == pytest.approx(wanted[0].item(), rel=2e-3)
    for one, other in zip(found[1], wanted[1], strict=True):
        assert (one.float() - other.float()).norm() < 0.1 * other.float().norm()


def test_layers_that_share_a_linear_round_it_once() -> None:
    model = plain_model("llama", "q_proj").bfloat16()
    first, second = model.get_base_model().model.layers
    second.mlp.down_proj = first.mlp.down_proj
    before = first.mlp.down_proj.weight.float()
    _prepared(model)
    made = first.mlp.down_proj
    torch.testing.assert_close(made.weight.float() * made.scale.t(), before, rtol=0.07, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda model: model.float(), "no frozen linear layer in bfloat16"),
        (lambda model: model.half(), "no frozen linear layer in bfloat16"),
        (lambda model: model.bfloat16().requires_grad_(), "no frozen linear layer in bfloat16"),
    ],
)
def test_a_model_that_has_nothing_for_it(change: Callable[[Any], Any], why: str) -> None:
    model = change(plain_model("llama"))
    with pytest.raises(ModelError, match=why):
        _prepared(model)


def test_widths_that_are_no_multiples() -> None:
    model = plain_model("llama", hidden_size=72, head_dim=18, intermediate_size=120).bfloat16()
    with pytest.raises(ModelError, match="multiples of 16"):
        _prepared(model)


def test_what_is_quantised_already() -> None:
    plan = Plan(gpu=True, quantization=BitsAndBytesConfig(load_in_4bit=True))
    with pytest.raises(ModelError, match=r"the model is quantised already\. Keep one of the two"):
        Fp8(Fp8Options()).plan(plan)


def test_without_a_gpu_it_says_that_it_does_nothing() -> None:
    strategy, model = Fp8(Fp8Options()), plain_model("llama").bfloat16()
    assert strategy.plan(Plan(gpu=False)).notices == ("fp8 has no effect: its products are for NVIDIA GPUs",)
    strategy.prepare(model)
    assert not any(isinstance(module, Fp8Linear) for module in model.modules())


def test_weights_of_8_bits_do_not_train(read: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match='"fp8" cannot be used with "none": it trains every weight'):
        read('memory.strategy=[{use="fp8"}]', 'adapter={use="none"}')


class _Fills(TorchDispatchMode):
    """Counts tensors that are filled with ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run it, and look at its name."""
        self.count += "ones" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("turned", [False, True])
def test_scales_of_the_gradients_product_are_made_once(turned: bool) -> None:
    linear = nn.Linear(32, 16, bias=False)
    convert(linear, turned=turned)
    grad = _random(4, 16, seed=3)
    with _Fills() as fills:
        made = linear.grad_of_input(grad)  # type: ignore[operator]
        torch.ones(2)
    assert fills.count == 1, "the one that shows that they are seen"
    assert (made - grad @ (linear.weight.float() * linear.scale.view(-1, 1))).norm() < 0.05 * made.norm()  # type: ignore[operator]
