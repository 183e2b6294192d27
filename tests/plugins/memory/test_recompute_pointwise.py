"""`recompute-pointwise` changes no bit of a gradient, and keeps of norms and gated MLPs what goes into them alone."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fitune import Batch, ModelError, NoOptions
from fitune.compose.loss import plain_loss
from fitune.testing import write_recipe
from fitune_plugins.memory.gradient_checkpointing import GradientCheckpointing, GradientCheckpointingOptions
from fitune_plugins.memory.recompute_pointwise import RecomputePointwise
from support.architectures import CHUNKED_LOSS, CONFIGS, GRADIENT_CHECKPOINTING, TARGETS, recipe_of
from support.kept import saved, traced
from support.packed import FAMILIES, LOSSES, tiny, two_rows
from support.real_steps import both_logs, events
from support.tiny import gradients, make_batch, with_lora

NAME = "recompute-pointwise"
FUSED = "fused-rms-norm"


def _model(kind: str, *, lora: bool, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **CONFIGS[kind], initializer_range=0.1)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if lora:
        targets = json.loads(TARGETS.get(kind, '"all-linear"'))
        model = with_lora(model, *([targets] if isinstance(targets, str) else targets), dropout=dropout)
    trained: PreTrainedModel = model.train()
    return trained


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two rows, the second shorter."""
    tokens = torch.randint(3, 512, (2, 24), generator=torch.Generator().manual_seed(1)).tolist()
    return make_batch([(tokens[0], tokens[0]), (tokens[1][:15], tokens[1][:15])])


def _step(model: PreTrainedModel, batches: list[Batch], strategy: RecomputePointwise | None) -> list[Tensor | None]:
    """Losses and gradients of a step of these micro-batches, with the same random numbers each time."""
    torch.manual_seed(7)
    losses: list[Tensor | None] = []
    with contextlib.nullcontext() if strategy is None else strategy.around_step():
        for batch in batches:
            loss = plain_loss(model, batch)
            loss.backward()
            losses.append(loss.detach())
    return losses + [p.grad for p in model.parameters() if p.requires_grad]


def _prepared(model: PreTrainedModel) -> RecomputePointwise:
    strategy = RecomputePointwise(NoOptions())
    strategy.prepare(model)
    return strategy


def _wrapped(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules() if "forward" in module.__dict__]


def _equal(found: list[Tensor | None], expected: list[Tensor | None]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


@pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "phi3",
        "deepseek_v3",
        "mixtral",
        "olmo2",
        "cohere",
        "falcon",
        "gpt_oss",
    ],
)
@pytest.mark.parametrize(("lora", "dropout"), [(True, 0.0), (True, 0.1), (False, 0.0)])
def test_loss_and_gradients_are_equal_to_the_last_bit(kind: str, lora: bool, dropout: float, batch: Batch) -> None:
    plain, model = (_model(kind, lora=lora, dropout=dropout) for _ in range(2))
    found = _step(model, [batch, batch], _prepared(model))
    assert _equal(found, _step(plain, [batch, batch], None))


@pytest.mark.parametrize("kind", ["llama", "phi3", "gemma2"])
def test_so_they_are_in_bfloat16(kind: str, batch: Batch) -> None:
    plain, model = (_model(kind, lora=True, dtype=torch.bfloat16) for _ in range(2))
    assert _equal(_step(model, [batch], _prepared(model)), _step(plain, [batch], None))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows(family: str, loss: str) -> None:
    found = []
    for again in (False, True):
        model = tiny(family)
        strategy = _prepared(model) if again else None
        with contextlib.nullcontext() if strategy is None else strategy.around_step():
            LOSSES[loss](model, two_rows()).backward()
        found.append([p.grad for p in model.parameters()])
    assert _equal(*found)


@pytest.mark.parametrize(
    ("kind", "norms", "mlps"),
    [("llama", 5, 2), ("qwen3", 9, 2), ("gemma2", 9, 2), ("phi3", 5, 2), ("deepseek_v3", 9, 2), ("mixtral", 5, 0)],
)
def test_what_is_computed_again(kind: str, norms: int, mlps: int) -> None:
    """DeepSeek's first MLP and the shared experts of its second layer are gated MLPs; routed experts are left alone."""
    model = _model(kind, lora=False)
    names = list(model.state_dict())
    _prepared(model)
    wrapped = _wrapped(model)
    assert len([name for name in wrapped if name.endswith("Norm")]) == norms
    assert len([name for name in wrapped if name.endswith("MLP")]) == mlps
    assert len(wrapped) == norms + mlps
    assert list(model.state_dict()) == names


def test_an_mlp_of_another_form_is_left_alone() -> None:
    model: Any = _model("llama", lora=False)

    class OtherMLP(type(model.model.layers[0].mlp)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))
            return out

    model.model.layers[0].mlp.__class__ = OtherMLP
    _prepared(model)
    assert _wrapped(model).count("LlamaMLP") == 1
    assert "OtherMLP" not in _wrapped(model)


def test_a_model_without_norms_is_refused() -> None:
    model: Any = _model("llama", lora=False)
    del model.model.layers, model.model.norm
    with pytest.raises(ModelError, match="LlamaForCausalLM has no norm and no gated MLP that are known"):
        _prepared(model)


def _counts(model: PreTrainedModel, strategy: RecomputePointwise, batch: Batch) -> list[tuple[int, int]]:
    """How often each layer multiplies by its gate's weight, and how often it takes the activation."""
    counts = []
    for layer in (module for name, module in model.named_modules() if name.endswith(".mlp")):
        counts.append([0, 0])
        for number, module in enumerate((layer.gate_proj, layer.act_fn)):

            def count(*_: object, counted: list[int] = counts[-1], number: int = number) -> None:
                counted[number] += 1

            module.register_forward_pre_hook(count)
    _step(model, [batch], strategy)
    return [(products, activations) for products, activations in counts]


@pytest.mark.parametrize("first", [NAME, GRADIENT_CHECKPOINTING])
def test_checkpointed_layers_are_left_alone(first: str, batch: Batch) -> None:
    """The first of the two; wherever the strategies stand."""
    model = _model("llama", lora=True)
    checkpointing = GradientCheckpointing(GradientCheckpointingOptions(layers=1))
    if first == GRADIENT_CHECKPOINTING:
        checkpointing.prepare(model)
    strategy = _prepared(model)
    if first == NAME:
        checkpointing.prepare(model)
    found = _step(model, [batch], strategy)
    assert _equal(found, _step(_model("llama", lora=True), [batch], None))
    assert _counts(model, strategy, batch) == [(2, 2), (1, 2)]


def test_evaluation_computes_once(batch: Batch) -> None:
    model = _model("llama", lora=True)
    strategy = _prepared(model)
    model.eval()
    with torch.no_grad():
        plain = plain_loss(_model("llama", lora=True).eval(), batch)
        assert torch.equal(plain_loss(model, batch), plain)
    assert _counts(model.train(), strategy, batch) == [(1, 2), (1, 2)]


@pytest.mark.parametrize(
    ("stages", "fused"),
    [
        ("", ""),
        ('data.stage=[{use="chat"}, {use="tokenize"}, {use="truncate"}, {use="pack"}]', ""),
        ("", f'{{use="{FUSED}"}}, {{use="fused-lora"}}, '),
    ],
)
def test_in_a_run(stages: str, fused: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"adapter": {"use": "lora", "targets": "all-linear", "dropout": 0.1}})
    others = f'memory.strategy=[{fused}{{use="accumulation", steps=2}}, {{use="{CHUNKED_LOSS}", tokens=16}}]'
    plain = gradients(recipe, others, *filter(None, [stages]))
    found = gradients(recipe, others, f'memory.strategy=[{{use="{NAME}"}}]', *filter(None, [stages]))
    assert len(found) == 3
    pairs = [pair for one, other in zip(found, plain, strict=True) for pair in zip(one, other, strict=True)]
    assert all(torch.equal(one, other) for one, other in pairs)


# ------------------------------------------------------------------------------------------------------- forecasts

HIDDEN, INNER, ROWS, LENGTH = 64, 128, 2, 64
TOKENS = ROWS * LENGTH
HALF, FLOAT = 2, 4


def test_what_a_layer_keeps(tmp_path: Path) -> None:
    """LoRA on all linear layers of two Llama layers. The first norm of all is left as it is, as no gradient goes
    through it; so the difference is that of three norms in layers, of the last norm and of two MLPs.
    """
    plain, found = traced(tmp_path / "plain"), traced(tmp_path / "found", NAME)
    norm = TOKENS * (HIDDEN * (FLOAT + HALF) + FLOAT) - TOKENS * HIDDEN * HALF
    """A copy in float32, the result and a number a row, less the input."""
    last = TOKENS * (HIDDEN * FLOAT + FLOAT) - TOKENS * HIDDEN * HALF
    """Its result goes into the head, which is frozen and keeps nothing."""
    mlp = TOKENS * INNER * 2 * HALF
    """The activation and the product; the outputs of gate and up stay."""
    assert saved(plain.log) - saved(found.log) == 3 * norm + last + 2 * mlp
    assert found.flops_per_token == plain.flops_per_token


def test_with_one_kernel_to_a_norm(tmp_path: Path) -> None:
    """Behind `fused-rms-norm`, whose norms keep their input and a number a row already."""
    plain, found = traced(tmp_path / "plain", FUSED), traced(tmp_path / "found", FUSED, NAME)
    norm, row, mlp = TOKENS * HIDDEN * HALF, TOKENS * FLOAT, TOKENS * INNER * 2 * HALF
    assert saved(plain.log) - saved(found.log) == 3 * norm + 4 * row + 2 * mlp


def test_checkpointed_layers_keep_no_more(tmp_path: Path) -> None:
    plain = traced(tmp_path / "plain", GRADIENT_CHECKPOINTING)
    found = traced(tmp_path / "found", NAME, GRADIENT_CHECKPOINTING)
    last = TOKENS * (HIDDEN * FLOAT + FLOAT) - TOKENS * HIDDEN * HALF
    assert saved(plain.log) - saved(found.log) == last
    assert found.flops_per_token == plain.flops_per_token


@pytest.mark.parametrize(
    ("name", "strategies", "lora"),
    [
        ("llama", (NAME,), True),
        ("llama", (NAME, GRADIENT_CHECKPOINTING), False),
        ("qwen3", (NAME, CHUNKED_LOSS), False),
        ("gemma2", (NAME,), True),
        ("phi3", (NAME,), True),
        ("deepseek_v3", (NAME,), True),
    ],
)
def test_a_forecast_does_what_a_run_does(name: str, strategies: tuple[str, ...], lora: bool, tmp_path: Path) -> None:
    forecast, real = both_logs(recipe_of(tmp_path, name, *strategies, lora=lora, length=32))
    assert events(forecast) == events(real)
