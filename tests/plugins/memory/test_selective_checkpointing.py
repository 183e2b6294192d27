"""`gradient-checkpointing` with `keep`: what is kept is not computed again, and no bit of a gradient changes."""

from __future__ import annotations

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
from fitune.memory.levers import levers
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune_plugins.memory import kept_results
from fitune_plugins.memory.gradient_checkpointing import GradientCheckpointing, GradientCheckpointingOptions
from fitune_plugins.memory.selective_checkpointing import contexts
from support.architectures import CONFIGS, TARGETS
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
    of_mlps = f"{start}nothing, of each mlp"
    assert (of_mlps in offered) == (keep != "nothing")
    offered.pop(of_mlps, None)
    assert {name.removeprefix(start) for name in offered if name.startswith(start)} == set(KEEP) - {keep}
    for name, lever in offered.items():
        if name.startswith(start):
            (use,) = read_recipe(path, registry, lever.overrides).strategies
            assert use.options.keep == name.removeprefix(start)
