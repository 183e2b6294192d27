"""`gradient-checkpointing` with `keep`: what is kept is not computed again, and no bit of a gradient changes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fitune import Batch, ModelError
from fitune.compose.loss import plain_loss
from fitune.memory.cards.cards import find_card
from fitune.memory.levers import levers
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.log import MemoryLog
from fitune.memory.trace.run import Trace, trace
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune_plugins.memory import kept_results
from fitune_plugins.memory.gradient_checkpointing import GradientCheckpointing, GradientCheckpointingOptions
from fitune_plugins.memory.selective_checkpointing import contexts
from support import real_steps
from support.architectures import CONFIGS, TARGETS, recipe_of
from support.real_steps import both_logs, events
from support.tiny import gradients, make_batch, with_lora

Keep = Literal["nothing", "attention", "products"]
Losses = tuple[Tensor, list[Tensor | None]]
KEEP: tuple[Keep, ...] = ("nothing", "attention", "products")
LAYERS = 2
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture(autouse=True)
def _tiny_products_are_kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every product of a tiny model, but those over a rank of 4, were one over thousands of numbers."""
    monkeypatch.setattr(kept_results, "WIDE", 8)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two rows of one length: a mask would keep the CPU from its kernel."""
    tokens = torch.randint(3, 512, (2, 24), generator=torch.Generator().manual_seed(1)).tolist()
    return make_batch([(row, row) for row in tokens])


def _model(
    kind: str, *, lora: bool = True, dropout: float = 0.0, config: dict[str, Any] | None = None
) -> PreTrainedModel:
    torch.manual_seed(0)
    made = AutoConfig.for_model(kind, **{**CONFIGS[kind], "initializer_range": 0.1, **(config or {})})
    model = AutoModelForCausalLM.from_config(made)
    if lora:
        targets = ["q_proj", "kv_b_proj"] if kind in TARGETS else ["all-linear"]
        model = with_lora(model, *targets, dropout=dropout)
    return cast(PreTrainedModel, model.train())


def _checkpointed(model: PreTrainedModel, keep: Keep, layers: int | None = None) -> PreTrainedModel:
    return GradientCheckpointing(GradientCheckpointingOptions(keep=keep, layers=layers)).prepare(model)


def _step(model: PreTrainedModel, batch: Batch) -> Losses:
    """Loss and gradients of two micro-batches."""
    torch.manual_seed(7)
    losses = []
    for _ in range(2):
        loss = plain_loss(model, batch)
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses), [p.grad for p in model.parameters() if p.requires_grad]


def _same(found: Losses, expected: Losses) -> None:
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found[1], expected[1], strict=True):
        assert one is other is None or (one is not None and other is not None and torch.equal(one, other))


@contextmanager
def _operations() -> Iterator[Counter[str]]:
    """Counts what is computed."""
    found: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found[func._schema.name] += 1
            return func(*args, **(kwargs or {}))

    with Count():  # type: ignore[no-untyped-call]
        yield found


@pytest.mark.parametrize("keep", KEEP[1:])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma", "phi3", "deepseek_v3", "gpt_neox", "mixtral"])
def test_gradients_are_equal_to_the_last_bit(kind: str, lora: bool, keep: Keep, batch: Batch) -> None:
    expected = _step(_model(kind, lora=lora), batch)
    _same(_step(_checkpointed(_model(kind, lora=lora), keep), batch), expected)


@pytest.mark.parametrize(("keep", "attention"), [("attention", 0.0), ("products", 0.0), ("products", 0.5)])
def test_dropout_drops_the_same_units_again(keep: Keep, attention: float, batch: Batch) -> None:
    """Also behind attention that is not computed again; attention that draws random numbers itself is."""
    config = {"attention_dropout": attention}
    expected = _step(_model("llama", dropout=0.5, config=config), batch)
    _same(_step(_checkpointed(_model("llama", dropout=0.5, config=config), keep), batch), expected)
    other = _step(_model("llama", config=config), batch)
    assert not torch.equal(other[0], expected[0])


@pytest.mark.parametrize(("layers", "again"), [(None, 2), (1, 1)])
def test_what_is_kept_is_not_computed_again(layers: int | None, again: int, batch: Batch) -> None:
    done = {}
    for keep in (None, *KEEP):
        model = _model("llama", lora=False)
        if keep is not None:
            model = _checkpointed(model, keep, layers)
        loss = plain_loss(model, batch)
        with _operations() as done[keep]:
            loss.backward()
    plain = done[None]
    assert plain[ATTENTION] == 0
    products = 6  # of the seven of a layer; the last is needed by nothing in it
    assert done["nothing"][ATTENTION] == again
    assert done["nothing"]["aten::mm"] == plain["aten::mm"] + again * products
    assert done["attention"][ATTENTION] == 0
    assert done["attention"]["aten::mm"] == plain["aten::mm"] + again * products
    assert done["products"][ATTENTION] == 0
    assert done["products"]["aten::mm"] == plain["aten::mm"]
    assert done["products"]["aten::silu"] == again


def test_the_second_product_of_a_lora_is_computed_again(batch: Batch) -> None:
    """As large as the layer's own, it is a product over the rank alone."""
    done = {}
    for keep in (None, "products"):
        model = _model("llama")
        if keep is not None:
            model = _checkpointed(model, "products")
        loss = plain_loss(model, batch)
        with _operations() as done[keep]:
            loss.backward()
    assert done["products"]["aten::mm"] == done[None]["aten::mm"] + LAYERS * 6


# ------------------------------------------------------------------------------------- what is done to a kept result

WEIGHT = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
LOW = torch.randn(16, 2, generator=torch.Generator().manual_seed(3))


class _Added(torch.autograd.Function):
    """A LoRA branch onto the result of its layer, where it stands."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        out = hidden @ WEIGHT
        out.addmm_(hidden @ LOW, LOW.T)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] @ (WEIGHT + LOW @ LOW.T).T


def _with_a_branch(hidden: Tensor) -> Tensor:
    out = cast(Tensor, _Added.apply(hidden))  # type: ignore[no-untyped-call]
    return out.exp().sin()


def _read_before(hidden: Tensor) -> Tensor:
    out = hidden @ WEIGHT
    before = out + 1
    with torch.no_grad():
        out.addmm_(hidden, WEIGHT)
    return before.exp() * out.sin()


def _changed(hidden: Tensor) -> Tensor:
    out = hidden @ WEIGHT
    out += 1
    return out.exp().sin()


def _gradient(layer: Callable[[Tensor], Tensor], context: Any) -> tuple[Tensor, int]:
    """And the products of the backward pass."""
    hidden = torch.randn(4, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    inputs = hidden * 1
    out = layer(inputs) if context is None else checkpoint(layer, inputs, use_reentrant=False, context_fn=context)
    with _operations() as done:
        out.sum().backward()
    assert hidden.grad is not None
    return hidden.grad, done["aten::mm"] + done["aten::addmm_"]


@pytest.mark.parametrize(("layer", "repeated"), [(_with_a_branch, 0), (_read_before, 2), (_changed, 1)])
def test_results_that_are_changed_in_place(layer: Callable[[Tensor], Tensor], repeated: int) -> None:
    """A product may be added to one; otherwise it is computed again."""
    expected, products = _gradient(layer, None)
    found, again = _gradient(layer, contexts("products"))
    assert torch.equal(found, expected)
    assert again - products == repeated


@pytest.mark.parametrize("keep", KEEP[1:])
def test_a_result_that_is_changed_behind_the_layer_is_computed_again(keep: Keep) -> None:
    def gradient(change: bool, context: Any) -> Tensor:
        seen: list[Tensor] = []

        def layer(x: Tensor) -> Tensor:
            seen.append(F.scaled_dot_product_attention(x, x, x) if keep == "attention" else x[0, 0] @ WEIGHT)
            return seen[-1].exp().sin()

        hidden = torch.randn(1, 2, 4, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = layer(hidden) if context is None else checkpoint(layer, hidden, use_reentrant=False, context_fn=context)
        if change:
            with torch.no_grad():
                seen[0].add_(1)
        out.sum().backward()
        assert hidden.grad is not None
        return hidden.grad

    assert keep != "nothing"
    assert torch.equal(gradient(True, contexts(keep)), gradient(False, None))


def test_one_that_was_read_in_a_list_is_computed_again() -> None:
    def layer(hidden: Tensor) -> Tensor:
        out = hidden @ WEIGHT
        before = torch.cat([out, out])
        with torch.no_grad():
            out.addmm_(hidden, WEIGHT)
        return before.exp().sum() * out.sin()

    assert torch.equal(_gradient(layer, contexts("products"))[0], _gradient(layer, None)[0])


@pytest.mark.parametrize("keep", KEEP[1:])
def test_a_second_backward_pass_is_an_error(keep: Keep) -> None:
    def layer(x: Tensor) -> Tensor:
        return (F.scaled_dot_product_attention(x, x, x) if keep == "attention" else x @ WEIGHT).exp().sin()

    assert keep != "nothing"
    hidden = torch.randn(1, 2, 4, 16).requires_grad_()
    out = checkpoint(layer, hidden, use_reentrant=False, context_fn=contexts(keep))
    out.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass only"):
        out.sum().backward()


# ------------------------------------------------------------------------------------------------ options and a run


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"attn_implementation": "eager"}, 'computed by "eager"'),
        ({"attention_dropout": 0.1}, "drops attention weights"),
    ],
)
def test_attention_that_cannot_be_kept_is_refused(config: dict[str, Any], why: str) -> None:
    model = _model("llama", lora=False, config=config)
    with pytest.raises(ModelError, match=f'keep = "attention" would keep nothing of LlamaForCausalLM: .*{why}'):
        _checkpointed(model, "attention")
    _checkpointed(model, "products")


@pytest.mark.parametrize("keep", KEEP[1:])
def test_in_a_run(keep: Keep, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"adapter": {"use": "lora", "targets": "all-linear", "dropout": 0.1}})
    others = 'memory.strategy=[{use="chunked-loss", tokens=16}, {use="accumulation", steps=2}]'
    plain = gradients(recipe, others)
    found = gradients(recipe, others, f'memory.strategy=[{{use="gradient-checkpointing", keep="{keep}", layers=1}}]')
    assert len(found) == 3
    pairs = [pair for one, other in zip(found, plain, strict=True) for pair in zip(one, other, strict=True)]
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("keep", KEEP)
def test_levers_are_what_else_may_be_kept(keep: Keep, tmp_path: Path) -> None:
    registry, path = open_registry(), write_recipe(tmp_path / "recipe")
    recipe = read_recipe(path, registry, [f'memory.strategy=[{{use="gradient-checkpointing", keep="{keep}"}}]'])
    config = AutoConfig.for_model("llama", **CONFIGS["llama"])
    offered = {lever.name: lever for lever in levers(recipe, registry, config)}
    start = "gradient-checkpointing, layers keep "
    assert {name.removeprefix(start) for name in offered if name.startswith(start)} == set(KEEP) - {keep}
    for name, lever in offered.items():
        if name.startswith(start):
            (use,) = read_recipe(path, registry, lever.overrides).strategies
            assert use.options.keep == name.removeprefix(start)


# ------------------------------------------------------------------------------------------------------- forecasts

ROWS, LENGTH, HIDDEN, HEADS, SIZE = 2, 64, 64, 4, 16
TOKENS = ROWS * LENGTH
HALF, FLOAT = 2, 4


def _strategy(keep: Keep) -> str:
    return f'gradient-checkpointing", keep = "{keep}'


def _traced(directory: Path, *strategies: str, name: str = "llama", **named: Any) -> Trace:
    recipe = recipe_of(directory, name, *strategies, **named)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace(recipe, shapes_of_recipe(recipe, 1), find_card("a10g"))


def _saved(log: MemoryLog) -> int:
    """Bytes of activations that the second step's backward pass begins with."""
    start = next(start for start, phase, step in log.phases if (phase, step) == ("backward", 2))
    alive: dict[int, int] = {}
    for number in log.events[:start]:
        if number > 0:
            alive[number] = log.blocks[number - 1].bytes
        else:
            del alive[-number]
    return sum(size for number, size in alive.items() if log.blocks[number - 1].kind == "saved activations")


def test_what_attention_takes_and_saves(tmp_path: Path) -> None:
    nothing, found = (_traced(tmp_path / keep, _strategy(keep)) for keep in KEEP[:2])
    one = TOKENS * HIDDEN * HALF + ROWS * HEADS * LENGTH * FLOAT + 2 * 8 + 8
    """The result, a number for each of its rows, and the state of random numbers."""
    assert _saved(found.log) - _saved(nothing.log) == LAYERS * one
    assert nothing.flops_per_token - found.flops_per_token == LAYERS * 4 * HEADS * LENGTH * SIZE


def test_products_are_computed_once(tmp_path: Path) -> None:
    plain = _traced(tmp_path / "plain", lora=False)
    found = _traced(tmp_path / "found", _strategy("products"), lora=False)
    assert found.flops_per_token == plain.flops_per_token
    assert _saved(found.log) < _saved(plain.log)


def test_so_they_are_of_fused_adapters(tmp_path: Path) -> None:
    """Whose second product is added to the first layer's result where that stands."""
    plain = _traced(tmp_path / "plain", "fused-lora")
    found = _traced(tmp_path / "found", "fused-lora", _strategy("products"))
    assert found.flops_per_token == plain.flops_per_token


def test_attention_between_documents_is_kept(tmp_path: Path) -> None:
    for keep in KEEP[:2]:
        log = _traced(tmp_path / keep, _strategy(keep), packed=True).log
        kernels = [b for b in log.blocks if b.step == 2 and b.operation == "torch_attn._varlen_attn.default"]
        assert ({b.phase for b in kernels} == {"forward"}) is (keep == "attention")


@pytest.mark.parametrize("card", ["t4", "h100"])
def test_other_kernels_are_kept(card: str, tmp_path: Path) -> None:
    """The memory-efficient one, and cuDNN's."""
    dtype = "float16" if card == "t4" else "bfloat16"
    recipe = recipe_of(tmp_path, "llama", _strategy("attention"), dtype=dtype, changes={"num_key_value_heads": HEADS})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = trace(recipe, shapes_of_recipe(recipe, 1), find_card(card)).log
    kernel = "efficient" if card == "t4" else "cudnn"
    name = f"aten._scaled_dot_product_{kernel}_attention.default"
    assert {block.phase for block in log.blocks if block.operation == name} == {"forward"}


@pytest.mark.parametrize("keep", KEEP[1:])
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
def test_a_forecast_does_what_a_run_does(
    name: str, keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the CPU's own attention kernel in both."""

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return cast(Tensor, kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0])

    monkeypatch.setattr(real_steps, "_attention", attention)
    forecast, real = both_logs(recipe_of(tmp_path, name, _strategy(keep), length=32))
    assert events(forecast) == events(real)
    assert any("flash_attention_for_cpu" in block.operation for block in real.blocks)
