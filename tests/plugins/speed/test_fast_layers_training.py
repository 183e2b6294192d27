"""`fast-layers` in training: dropout, inputs with and without a gradient, checkpoints, tiles."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fitune import Plan
from fitune_plugins.memory import kept_results
from fitune_plugins.memory.gradient_checkpointing import GradientCheckpointing, GradientCheckpointingOptions
from fitune_plugins.memory.tiled_mlp import TiledMlp, TiledMlpOptions
from fitune_plugins.speed.grouping import group, join
from fitune_plugins.speed.linears import Group
from support.fast_models import BATCH, assert_same, fast, is_fast, must_be_the_same, plain_model, seeded
from support.tiny import assert_close

SHARE = 0.4


def _adapted(inputs: int, *outputs: int, r: int = 4) -> tuple[list[Any], Group]:
    """Layers of peft in float64 with one input, and their group."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = nn.ModuleDict({f"l{at}": nn.Linear(inputs, n) for at, n in enumerate(outputs)})
    config = LoraConfig(r=r, lora_alpha=10, lora_dropout=SHARE, target_modules=r"l\d", init_lora_weights=False)
    adapted: Any = get_peft_model(base, config).double().train()
    layers = list(adapted.base_model.model.values())
    made = group(layers)
    join(made)
    return layers, made


@pytest.mark.parametrize("r", [3, 20])
def test_dropout_is_the_formula_with_the_masks_that_were_drawn(r: int) -> None:
    """Low ranks of dropped inputs, and all gradients, against autograd in float64 with the same masks."""
    layers, made = _adapted(24, 8, 12, r=r)
    x = torch.randn(50, 24, dtype=torch.float64)
    grads = [torch.randn(50, n, dtype=torch.float64) for n in (8, 12)]
    torch.manual_seed(3)
    masks = made.masks(x, training=True)
    kept = [float(mask.double().mean()) for mask in masks if mask is not None]
    assert len(kept) == 2
    assert not torch.equal(masks[0], masks[1])  # type: ignore[arg-type]  # each adapter's are its own, as peft's
    assert all(abs(share - (1 - SHARE)) < 0.05 for share in kept)

    low = made.low(x, masks)
    results = [made.add(y, low, at) for at, y in enumerate(made.products(x))]
    dlow = made.grad_of_low(grads)
    dx = made.add_down(made.grad_of_input(grads), dlow, masks)
    found = made.grads(x, low, dlow, grads, masks)

    leaf = x.clone().requires_grad_()
    wanted = []
    for layer, mask in zip(layers, masks, strict=True):
        assert mask is not None
        dropped = leaf * mask / (1 - SHARE)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        wanted.append(layer.base_layer(leaf) + 10 / r * (dropped @ down.t() @ up.t()))
    total = sum((one * grad).sum() for one, grad in zip(wanted, grads, strict=True))
    truth = torch.autograd.grad(total, [leaf, *made.parameters])
    assert_close(results, [one.detach() for one in wanted], relative=1e-12)
    assert_close([dx, *found], truth, relative=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi3", "olmo2"])
def test_dropout_is_drawn_in_training_alone(kind: str) -> None:
    model = plain_model(kind, dropout=SHARE).double()
    plain = seeded(model.eval())
    fast(model)
    assert_same(seeded(model.eval()), plain)
    model.train()
    first, again = seeded(model), seeded(model)
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(one, other) for one, other in zip(first[1], again[1], strict=True))
    assert abs(first[0] - plain[0]) > 1e-3 * plain[0]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_gradients_under_dropout_are_the_slope_of_the_loss(kind: str) -> None:
    """By differences of the loss under the same draws: the backward pass has the masks of the forward."""
    model = fast(plain_model(kind, dropout=SHARE).double())
    trained = [p for p in model.parameters() if p.requires_grad]
    _, grads = seeded(model)
    torch.manual_seed(5)
    along = [torch.randn_like(p) for p in trained]
    slope = sum(float((grad * way).sum()) for grad, way in zip(grads, along, strict=True))
    size = 2e-5

    def moved(by: float) -> float:
        with torch.no_grad():
            for p, way in zip(trained, along, strict=True):
                p += by * way
        torch.manual_seed(1)
        with torch.no_grad():
            logits = model(**BATCH.inputs()).logits[:, :-1]
            found = nn.functional.cross_entropy(logits.flatten(0, 1), BATCH.labels[:, 1:].flatten(), reduction="sum")
            for p, way in zip(trained, along, strict=True):
                p -= by * way
        return float(found)

    measured = (moved(size) - moved(-size)) / (2 * size)
    assert measured == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize("kind", ["llama", "olmo2", "phi3"])
def test_embeddings_that_train_get_their_gradient(kind: str) -> None:
    """By the first layer, whose input needs none otherwise."""
    model = plain_model(kind)
    model.get_input_embeddings().weight.requires_grad_()
    must_be_the_same(model)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # which peft asks for
def test_modules_to_save_beside_adapters() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from support.architectures import CONFIGS

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **CONFIGS["llama"]))
    config = LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], init_lora_weights=False
    )
    must_be_the_same(get_peft_model(base, config).train())


def _checkpointed(model: Any, **options: Any) -> None:
    GradientCheckpointing(GradientCheckpointingOptions(**options)).prepare(model)


@pytest.mark.parametrize("dropout", [0.0, SHARE])
@pytest.mark.parametrize("r", [4, 24])
@pytest.mark.parametrize(
    "options",
    [{}, {"layers": 1}, {"keep": "attention"}, {"keep": "products"}, {"part": "mlp"}, {"part": "mlp", "layers": 1}],
    ids=str,
)
def test_checkpointed_layers_give_the_same(
    options: dict[str, Any], r: int, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_results, "WIDE", 8)  # or no product of a tiny model would be kept
    model = fast(plain_model("llama", dropout=dropout, r=r).double())
    wanted = seeded(model)
    _checkpointed(model, **options)
    found = seeded(model)
    assert torch.equal(found[0], wanted[0])
    assert_close(found[1], wanted[1], relative=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize(
    ("options", "times"), [(None, (1, 1, 1)), ({}, (2, 2, 2)), ({"part": "mlp"}, (1, 2, 1))], ids=str
)
def test_what_is_computed_again(
    kind: str, options: dict[str, Any] | None, times: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Projections, gate and up, and down."""
    model = fast(plain_model(kind))
    if options is not None:
        _checkpointed(model, **options)
    counts = Counter[int]()
    products = Group.products

    def counted(one: Group, x: Tensor) -> list[Tensor]:
        counts[id(one)] += 1
        return products(one, x)

    monkeypatch.setattr(Group, "products", counted)
    seeded(model)
    for layer in model.base_model.model.model.layers:
        parts = layer.__dict__["forward"].parts
        assert tuple(counts[id(one)] for one in (parts.projections.group, parts.mlp.group, parts.mlp.down)) == times


@pytest.mark.parametrize("kind", ["llama", "gemma2", "olmo2", "granite"])
@pytest.mark.parametrize("options", [None, {}, {"part": "mlp"}], ids=str)
def test_tiled_mlps_stay_tiled(kind: str, options: dict[str, Any] | None) -> None:
    model = plain_model(kind, residual_multiplier=0.3) if kind == "granite" else plain_model(kind)
    wanted = seeded(model.double())
    strategy = TiledMlp(TiledMlpOptions(tokens=7))
    strategy.plan(Plan(gpu=True))
    strategy.prepare(model)
    fast(model)
    layer = model.base_model.model.model.layers[0]
    assert is_fast(layer)
    assert layer.__dict__["forward"].parts.mlp is None
    if options is not None:
        _checkpointed(model, **options)
    assert_same(seeded(model), wanted)
