"""`fast-layers` outside of training, in what it saves and takes over, and where it leaves a layer alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fitune import NoOptions, Plan, decay_groups
from fitune.compose.optimizer import Trainables
from fitune_plugins.speed.fast_layers import NAME, FastLayers
from support.fast_models import BATCH, assert_same, fast, is_fast, plain_model, seeded
from support.tiny import make_batch

IDS = torch.arange(5, 25)[None]


def _layers(model: Any) -> list[Any]:
    return list(model.get_base_model().model.layers)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi3", "smollm3"])
def test_adapters_that_are_off_or_merged(kind: str) -> None:
    model = plain_model(kind, r=5).double().eval()
    wanted = model(IDS, use_cache=False).logits
    with model.disable_adapter():
        base = model(IDS, use_cache=False).logits
    assert (wanted - base).abs().max() > 1e-3
    fast(model)
    torch.testing.assert_close(model(IDS, use_cache=False).logits, wanted, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(model(IDS, use_cache=False).logits, base, rtol=0, atol=0)
    model.merge_adapter()
    torch.testing.assert_close(model(IDS, use_cache=False).logits, wanted, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(model(IDS, use_cache=False).logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # which peft asks for
def test_another_adapter_is_computed_where_it_is_the_active_one() -> None:
    from peft import LoraConfig

    second = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    plain, changed = plain_model("llama"), fast(plain_model("llama"))
    for model in (plain, changed):
        model.add_adapter("second", second)
        model.eval()
    changed.load_state_dict(plain.state_dict())
    first = changed(IDS, use_cache=False).logits
    for model in (plain, changed):
        model.set_adapter("second")
    wanted = plain(IDS, use_cache=False).logits
    assert (first - wanted).abs().max() > 1e-3
    torch.testing.assert_close(changed(IDS, use_cache=False).logits, wanted, rtol=1e-4, atol=1e-4)


def test_off_for_some_rows_of_a_training_step() -> None:
    """As a reference is for preferences: the gradient of what was computed before is there."""
    model = plain_model("llama").double()

    def twice() -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(1)
        made = model(**BATCH.inputs()).logits
        with torch.no_grad(), model.disable_adapter():
            reference = model(**BATCH.inputs()).logits
        loss = (made - reference).square().sum()
        return loss.detach(), list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))

    wanted = twice()
    fast(model)
    assert_same(twice(), wanted)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "smollm3"])
def test_answers_are_the_same(kind: str) -> None:
    """With a cache, without one, and in training mode."""
    model = plain_model(kind).double().eval()
    asked: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    wanted = model.generate(input_ids=IDS, **asked)
    fast(model)
    for use_cache in (True, False):
        assert torch.equal(model.generate(input_ids=IDS, use_cache=use_cache, **asked), wanted)


def test_what_is_saved_is_what_peft_saves(tmp_path: Path) -> None:
    plain, changed = plain_model("phi3", r=5), fast(plain_model("phi3", r=5))
    for name, model in (("plain", plain), ("fast", changed)):
        model.save_pretrained(tmp_path / name)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "fast"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    said = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("plain", "fast")]
    assert said[0] == said[1]
    assert changed.state_dict().keys() == plain.state_dict().keys()


def test_what_is_loaded_is_computed_with() -> None:
    """Views stay views: by `load_state_dict`, and by a step in place."""
    other = plain_model("llama", r=5).double()
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    model = fast(plain_model("llama", r=5).double())
    model.load_state_dict(other.state_dict())
    assert_same(seeded(model), seeded(other))


@pytest.mark.parametrize("r", [1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_that_a_step_pairs_lies_alike(r: int, dtype: torch.dtype) -> None:
    """Parameter, gradient, master, its gradient and the optimizer's state: fused steps go by where numbers lie."""
    model = fast(plain_model("llama", r=r).to(dtype))
    trainables = Trainables(model, masters=True)
    optimizer = torch.optim.AdamW(decay_groups(trainables.masters), lr=1e-3, fused=True)
    for _ in range(2):
        for _ in range(2):
            torch.autograd.backward(model(**BATCH.inputs()).logits.float().logsumexp(-1).sum())
            for parameter in trainables.parameters:
                assert parameter.grad is not None
                assert _lies(parameter.grad) == _lies(parameter)
            trainables.gather()
        trainables.finish(10, 1.0)
        for parameter, master in zip(trainables.parameters, trainables.masters, strict=True):
            assert master.grad is not None
            assert _lies(parameter) == _lies(master) == _lies(master.grad)
        optimizer.step()
        for master in trainables.masters:
            assert {_lies(optimizer.state[master][key]) for key in ("exp_avg", "exp_avg_sq")} == {_lies(master)}
        trainables.publish()
    assert r == 1 or any(p.stride(0) == 1 for p in trainables.parameters)


def _lies(tensor: Tensor) -> tuple[int, ...]:
    """Strides of the dimensions that have more than one element."""
    return tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def test_training_is_the_same_step_by_step() -> None:
    """With fused AdamW, over several steps in float32."""
    found = []
    for change in (lambda model: model, fast):
        model = change(plain_model("llama", r=6))  # type: ignore[no-untyped-call]
        trainables = Trainables(model, masters=True)
        optimizer = torch.optim.AdamW(decay_groups(trainables.masters), lr=1e-2, fused=True)
        for _ in range(4):
            loss, grads = seeded(model)
            for parameter, grad in zip(trainables.parameters, grads, strict=True):
                parameter.grad = grad
            optimizer.step()
        found.append((float(loss), [p.detach().clone() for p in trainables.parameters]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def _told(model: Any) -> str:
    strategy = FastLayers(NoOptions())
    strategy.plan(Plan(gpu=True))
    strategy.prepare(model)
    (line,) = strategy.told(model)
    return line


@pytest.mark.parametrize("kind", ["cohere", "mixtral", "qwen3_moe", "gpt_oss", "starcoder2"])
def test_layers_that_are_not_known_are_left_and_told(kind: str) -> None:
    model = plain_model(kind, "q_proj")
    wanted = seeded(model)
    line = _told(model)
    name = type(_layers(model)[0]).__name__
    assert line == (
        f"{NAME}: 0 of 2 decoder layers; 2 are computed by transformers, since {name} is no decoder layer that is "
        "known here"
    )
    found = seeded(model)
    assert torch.equal(found[0], wanted[0])
    assert all(torch.equal(one, other) for one, other in zip(found[1], wanted[1], strict=True))


def _hooked(part: Callable[[Any], nn.Module], kind: str) -> Callable[[Any], None]:
    return lambda layer: getattr(part(layer), f"register_{kind}_hook")(lambda *_: None)


def _train_norm(layer: Any) -> None:
    layer.input_layernorm.weight.requires_grad_()


def _train_base(layer: Any) -> None:
    layer.self_attn.q_proj.base_layer.weight.requires_grad_()


def _own_attention(layer: Any) -> None:
    layer.self_attn.__dict__["forward"] = layer.self_attn.forward


def _scaled(layer: Any) -> None:
    layer.self_attn.v_proj.scaling["default"] = 0.25


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "hook of attention": (_hooked(lambda layer: layer.self_attn, "forward"), "its parts have hooks"),
    "hook of a norm": (_hooked(lambda layer: layer.input_layernorm, "forward_pre"), "its parts have hooks"),
    "hook of a linear": (_hooked(lambda layer: layer.mlp.down_proj, "full_backward"), "its parts have hooks"),
    "hook of an adapter": (
        _hooked(lambda layer: layer.self_attn.q_proj.lora_A["default"], "forward"),
        "its parts have hooks",
    ),
    "norm trains": (_train_norm, "its norms train"),
    "base trains": (_train_base, "layers of the base train too"),
    "attention changed": (_own_attention, "another strategy has changed what it computes"),
    "scalings": (_scaled, "adapters with one input are scaled differently"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_is_not_as_usual_is_left_and_told(change: str) -> None:
    model = plain_model("llama").double()
    first, second = _layers(model)
    alter, why = CHANGES[change]
    alter(first)
    wanted = seeded(model)
    line = _told(model)
    assert line.startswith(f"{NAME}: 1 of 2 decoder layers; 1 are computed by transformers, since {why}")
    assert (is_fast(first), is_fast(second)) == (False, True)
    assert_same(seeded(model), wanted)


def test_hooks_of_the_layer_itself_are_called() -> None:
    model = fast(plain_model("llama"))
    called: list[Tensor] = []
    _layers(model)[0].register_forward_hook(lambda module, inputs, output: called.append(output))
    seeded(model, make_batch([(list(range(5, 15)), list(range(5, 15)))]))
    assert [tuple(one.shape) for one in called] == [(1, 10, 64)]


def test_without_a_gpu_it_says_that_it_does_nothing() -> None:
    strategy, model = FastLayers(NoOptions()), plain_model("llama")
    assert strategy.plan(Plan(gpu=False)).notices == (f"{NAME} has no effect: its kernels are for NVIDIA GPUs",)
    strategy.prepare(model)
    assert not any(map(is_fast, _layers(model)))
