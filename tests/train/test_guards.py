"""Guards: which losses are spikes and which are noise, what shows that nothing trains, and the rows that are kept."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from fitune import Example, MemoryForecast, MemoryReport, Origin
from fitune.plugin.recipe import Train
from fitune.testing import write_tiny_model, write_tiny_tokenizer
from fitune.train.bad_rows import MOST, keep_rows
from fitune.train.guards import (
    WINDOW,
    SpikeGuard,
    SpikeState,
    Watcher,
    non_finite_text,
    over_forecast,
    zero_gradients,
)
from support.tiny import make_batch, with_lora
from support.told import step

if TYPE_CHECKING:
    from fitune.compose.loss_scaling import StepCheck
    from fitune.compose.parts import Parts

Noise = Callable[[random.Random], float]
GIB = 2**30

NOISES: dict[str, Noise] = {
    **{f"log-normal {sd}": lambda r, sd=sd: math.exp(r.gauss(0, sd)) for sd in (0.02, 0.1, 0.3, 0.8)},  # type: ignore[misc]
    "gamma 1": lambda r: r.gammavariate(1, 1),
    "gamma 0.5": lambda r: r.gammavariate(0.5, 2),
    "none": lambda r: 1.0,
}


def _curve(noise: Noise, steps: int, seed: int = 0) -> Iterator[float]:
    """Losses of a run that learns."""
    generator = random.Random(seed)
    return (float((0.8 + 2.5 * math.exp(-step / 80)) * noise(generator)) for step in range(steps))


def _told(guard: SpikeGuard, losses: list[float]) -> list[int]:
    return [step for step, loss in enumerate(losses) if guard.observe(loss) is not None]


@pytest.mark.parametrize("name", NOISES)
def test_ordinary_noise_is_no_spike(name: str) -> None:
    for seed in range(3):
        assert _told(SpikeGuard(), list(_curve(NOISES[name], 1000, seed))) == []


@pytest.mark.parametrize(("name", "times"), [("none", 2), ("log-normal 0.02", 2), ("log-normal 0.1", 3)])
def test_a_spike_is_told_of_once(name: str, times: float) -> None:
    losses = list(_curve(NOISES[name], 500))
    losses[300:310] = [loss * times for loss in losses[300:310]]
    losses[320] *= 2 * times
    assert _told(SpikeGuard(), losses) == [300]


def test_a_loss_that_stays_up_becomes_the_usual_one() -> None:
    guard = SpikeGuard()
    up = [1.0] * 100 + [3.0] * 200
    assert _told(guard, up) == [100]
    assert _told(guard, [9.0]) == [0]


def test_a_spike_is_described() -> None:
    guard = SpikeGuard()
    for _ in range(40):
        assert guard.observe(1.25) is None
    said = guard.observe(6)
    assert said is not None
    assert said.startswith("the loss is 6, and 1.25 in the median of the 40 steps before. ")


def test_what_is_too_early_too_small_or_no_number_is_no_spike() -> None:
    assert _told(SpikeGuard(), [1.0] * 31 + [50.0]) == []
    assert _told(SpikeGuard(), [0.01] * 100 + [0.4]) == []  # forty times the median, and yet a loss of little
    assert _told(SpikeGuard(), [0.0] * 100 + [1.0]) == [100]
    guard = SpikeGuard()
    assert _told(guard, [1.0] * 100 + [math.nan, math.inf]) == []
    assert all(math.isfinite(loss) for loss in guard.state().losses)


@pytest.mark.parametrize("cut", [10, 299, 301, 305, 400])
def test_a_guard_that_goes_on_says_what_it_would_have_said(cut: int) -> None:
    losses = list(_curve(NOISES["log-normal 0.1"], 500))
    losses[300:303] = [9.0, 14.0, 30.0]
    losses[420] = 60.0
    whole, first = SpikeGuard(), SpikeGuard()
    expected = _told(whole, losses)
    assert expected == [300, 420]
    before = _told(first, losses[:cut])
    state = SpikeState(**json.loads(json.dumps(asdict(first.state()))))
    second = SpikeGuard(state)
    assert before + [cut + step for step in _told(second, losses[cut:])] == expected
    assert second.state() == whole.state()
    assert len(whole.state().losses) == WINDOW


# ------------------------------------------------------------------------------------------------- zero gradients


def _norms(model: Any, rows: int = 2) -> dict[str, float]:
    """Norms of the gradients of a first step."""
    from fitune.compose.loss import plain_loss

    tokens = list(range(1, 20))
    plain_loss(model, make_batch([(tokens, tokens)] * rows)).backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in trained}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return write_tiny_model(tmp_path_factory.mktemp("guards") / "model")


@pytest.fixture
def model(place: Path) -> Any:
    """The tiny model, loaded."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(place)


def test_a_new_lora_is_well(model: Any) -> None:
    norms = _norms(with_lora(model, "all-linear", random=False))
    assert any("lora_A" in name for name, norm in norms.items() if norm == 0)  # as B is zero
    assert zero_gradients(norms) is None


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_new_dora_is_well(model: Any) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=True, task_type="CAUSAL_LM")
    norms = _norms(get_peft_model(model, config))
    assert sum("lora_magnitude_vector" in name for name in norms) == 4
    assert zero_gradients(norms) is None


def test_full_fine_tuning_is_well(model: Any) -> None:
    norms = _norms(model)
    assert len(norms) > 20
    assert zero_gradients(norms) is None


def test_an_adapter_that_is_cut_off(model: Any) -> None:
    adapted: Any = with_lora(model, "q_proj", "v_proj", random=False)
    values = adapted.base_model.model.model.layers[1].self_attn.v_proj
    values.register_forward_hook(lambda module, inputs, output: output.detach())
    said = zero_gradients(_norms(adapted))
    assert said is not None
    # The other layer's are needed for its own loss; this one's attention still weighs nothing without values.
    assert "2 of the 8 parameters that should train have no gradient: model.layers.1.self_attn.v_proj. " in said


def test_nothing_trains(model: Any) -> None:
    adapted = with_lora(model, "q_proj")
    adapted.lm_head.weight.data.zero_()
    said = zero_gradients(_norms(adapted))
    assert said is not None
    assert said.startswith("nothing trains: the gradient of each of the 4 parameters that should is zero. ")


@pytest.mark.parametrize("kind", ["{}.down_proj.weight", "{}.down_proj.lora_A.default.weight"])
def test_experts_without_a_token_are_well(kind: str) -> None:
    norms = {f"model.layers.3.mlp.experts.{kind.format(number)}": float(number == 5) for number in range(8)}
    assert zero_gradients({**norms, "model.layers.3.mlp.gate.weight": 1.0}) is None
    dead = dict.fromkeys(norms, 0.0)
    said = zero_gradients({**dead, "model.norm.weight": 1.0})
    assert said is not None
    assert "8 of the 9 parameters" in said
    assert "no gradient: model.layers.3.mlp.experts. " in said


def test_names_are_few() -> None:
    norms = {f"model.layers.{n}.self_attn.q_proj.lora_{k}.default.weight": 0.0 for n in range(9) for k in "AB"}
    said = zero_gradients({**norms, "model.layers.9.self_attn.q_proj.lora_B.default.weight": 1.0})
    assert said is not None
    assert "layers.2.self_attn.q_proj and 6 more. " in said
    assert "layers.3." not in said
    assert zero_gradients({}) is None


# ------------------------------------------------------------------------------------------------------ kept rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer of single bytes."""
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


def _example(tokenizer: Any, row: int, prompt: str, answer: str) -> Example:
    question, ids = tokenizer(prompt).input_ids, tokenizer(prompt + answer).input_ids
    labels = [-100] * len(question) + ids[len(question) :]
    return Example(
        input_ids=np.array(ids, dtype=np.int32),
        labels=np.array(labels, dtype=np.int32),
        origin=Origin(file="data.jsonl", row=row),
    )


def test_the_rows_of_a_step_are_kept(tokenizer: Any, tmp_path: Path) -> None:
    rows = [_example(tokenizer, 7, "Zwei? ", "Zwölf"), _example(tokenizer, 9, "a", "b")]
    file = keep_rows(tmp_path, 120, rows, tokenizer, math.nan, math.inf)
    assert file == tmp_path / "non-finite" / "step-120.jsonl"
    first, second = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert (first["file"], first["row"], first["step"]) == ("data.jsonl", 7, 120)
    assert (first["loss"], first["grad_norm"]) == ("nan", "inf")
    assert (first["text"], first["trained_text"]) == ("Zwei? Zwölf", "Zwölf")
    assert (first["tokens"], first["targets"], first["lengths"]) == (12, 6, [12])
    assert torch.tensor(first["labels"])[-6:].equal(torch.tensor(first["input_ids"])[-6:])
    assert second["row"] == 9


def test_rows_that_cannot_be_kept_harm_nothing(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = _example(tokenizer, 1, "a", "b")
    assert keep_rows(tmp_path / "gone", 1, [row], tokenizer, 1, 1) is None

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert keep_rows(tmp_path, 1, [row], tokenizer, 1, 1) is None
    assert list((tmp_path / "non-finite").iterdir()) == []


def test_not_all_steps_of_a_long_run_are_kept(tokenizer: Any, tmp_path: Path) -> None:
    row = _example(tokenizer, 1, "a", "b")
    kept = [keep_rows(tmp_path, step, [row], tokenizer, 1, 1) for step in range(MOST + 2)]
    assert [file is None for file in kept] == [False] * MOST + [True] * 2
    assert keep_rows(tmp_path, 0, [row], tokenizer, 1, 1) == kept[0]  # a step that is made again


def test_what_is_said_of_such_a_step(tmp_path: Path) -> None:
    said = non_finite_text(3, math.nan, math.inf, tmp_path / "step-3.jsonl")
    assert said == f"step 3: the loss is nan and its gradient's norm inf. Its rows are in {tmp_path / 'step-3.jsonl'}"
    assert non_finite_text(3, 1.0, 1.0, None).endswith("Its rows could not be kept")


@pytest.mark.parametrize(
    ("allocated", "peak", "told"),
    [
        (10.0, 10.0, None),
        (10.0, 10.09, None),
        (10.0, 10.2, "10.20 GiB of the card, and 10.00 GiB was forecast: 2.0% more"),
    ],
)
def test_a_card_that_gives_more_than_was_forecast(allocated: float, peak: float, told: str | None) -> None:
    """Falcon's 4.18 GiB were forecast as 2.47 once, and nobody was told."""
    forecast = MemoryForecast(card="H100", allocated=int(allocated * GIB))
    found = over_forecast(forecast, MemoryReport(kind="gpu", peak=int(peak * GIB)))
    assert (found is None) if told is None else (found is not None and told in found)


def test_what_is_no_card_or_was_not_forecast_is_not_compared() -> None:
    much = MemoryReport(kind="gpu", peak=9 * GIB)
    assert over_forecast(None, much) is None
    assert over_forecast(MemoryForecast(card="H100", error="no config"), much) is None
    assert over_forecast(MemoryForecast(card="H100", allocated=GIB), MemoryReport(kind="host", peak=9 * GIB)) is None


def test_it_is_told_once_for_each_composition() -> None:
    watcher, check = Watcher(), cast("StepCheck", SimpleNamespace(finite=True, made=True, norms=()))

    def told(number: int, forecast: MemoryForecast) -> list[str]:
        recipe = SimpleNamespace(train=Train(warmup_steps=9))
        parts = cast("Parts", SimpleNamespace(run=SimpleNamespace(forecast=forecast, recipe=recipe, steps=20)))
        report = step(number, memory=MemoryReport(kind="gpu", peak=3 * GIB))
        return [notice.kind for notice in watcher.observe(parts, report, check, [])]

    first, second = (MemoryForecast(card="H100", allocated=size * GIB) for size in (2, 1))
    assert told(1, first) == ["over forecast"]
    assert told(2, first) == []
    assert told(3, second) == ["over forecast"]
