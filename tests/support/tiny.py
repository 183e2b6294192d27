"""What the tests of training share: runs of the tiny recipe, and what they leave behind."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from fitune import Batch, EvalReport, MemoryStrategy, NoOptions, OptimizerSettings, Run, StepReport, Strategy, hookimpl
from fitune.compose.parts import Parts, compose
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from fitune.train.run import run

Gradients = list[list[Tensor]]


class GradientRecorder:
    """A plugin: strategy `record`, plain SGD that keeps the gradients of each step."""

    def __init__(self) -> None:
        self.steps: Gradients = []

    @hookimpl
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[NoOptions]]:
        """Offer it."""
        yield MemoryStrategy(
            name="record", summary="Keeps gradients", options=NoOptions, make=lambda options: _Record(self.steps)
        )


class _Record(Strategy):
    def __init__(self, steps: Gradients) -> None:
        self.steps = steps

    def make_optimizer(self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
        """SGD that writes down what it is given."""
        optimizer = torch.optim.SGD(parameters, lr=settings.learning_rate)
        optimizer.register_step_pre_hook(
            lambda *_: self.steps.append([p.grad.clone() for p in parameters if p.grad is not None])
        )
        return optimizer


def gradients(recipe: Path, *overrides: str) -> Gradients:
    """The gradients that each step of a run gives to its optimizer; `memory.strategy` may be among the overrides."""
    recorder = GradientRecorder()
    registry = open_registry(recorder)
    strategies = [o for o in overrides if o.startswith("memory.strategy=[")]
    inside = ", ".join(o.removeprefix("memory.strategy=[").removesuffix("]") for o in strategies)
    others = [o for o in overrides if o not in strategies]
    both = 'memory.strategy=[{use="record"}' + (f", {inside}]" if inside else "]")
    read = read_recipe(recipe, registry, [*others, both, "memory.rehearse=false"])  # whose steps would be kept too
    with tempfile.TemporaryDirectory() as directory:
        run(read, registry, Path(directory))
    return recorder.steps


def train(recipe: Path, directory: Path, *overrides: str, plugins: Sequence[object] = ()) -> Run:
    """Run a recipe as `ft run` does."""
    registry = open_registry(*plugins)
    directory.mkdir(parents=True)
    return run(read_recipe(recipe, registry, overrides), registry, directory)


def parts_of(recipe: Path, *overrides: str, plugins: Sequence[object] = ()) -> Parts:
    """A run that is composed, but not started."""
    return compose(read_recipe(recipe, open_registry(*plugins), overrides), recipe.parent / "run")


def metrics(directory: Path, event: str = "step") -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` of one kind."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


def losses(directory: Path) -> list[float]:
    """The training losses of a run."""
    return [line["loss"] for line in metrics(directory)]


def losses_of(reports: Iterable[object]) -> list[float | None]:
    """The losses of steps and evaluations, as they are reported."""
    return [report.loss for report in reports if isinstance(report, StepReport | EvalReport)]


def adapter(directory: Path) -> dict[str, Tensor]:
    """The saved adapter weights of a run."""
    return load_file(directory / "adapter" / "adapter_model.safetensors")


def assert_close(found: Iterable[Tensor], expected: Iterable[Tensor], *, relative: float = 1e-5) -> None:
    """Each tensor must equal its counterpart, up to `relative` of the largest number in it."""
    pairs = list(zip(found, expected, strict=True))
    assert pairs
    for one, other in pairs:
        assert one.shape == other.shape
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=relative, atol=relative * scale)


def make_batch(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int = 0) -> Batch:
    """A batch of (tokens, labels), padded on the right."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*i, *[pad] * (longest - len(i))] for i, _ in rows])
    labels = torch.tensor([[*w, *[-100] * (longest - len(w))] for _, w in rows])
    targets = int((labels[:, 1:] != -100).sum())
    return Batch(input_ids=ids, labels=labels, targets=targets, tokens=sum(len(i) for i, _ in rows))


def loss_and_gradients(
    loss: Callable[[nn.Module, Batch], Tensor], model: nn.Module, batch: Batch
) -> tuple[Tensor, list[Tensor]]:
    """A loss and the gradients of all that trains."""
    value = loss(model, batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    return value.detach(), list(torch.autograd.grad(value, trained))


def with_lora(
    model: PreTrainedModel, *targets: str, dropout: float = 0.0, random: bool = True, r: int = 4
) -> PreTrainedModel:
    """The model with a LoRA by plain peft; `random` gives it an effect from the start."""
    config = LoraConfig(
        r=r,
        lora_alpha=8,
        lora_dropout=dropout,
        target_modules="all-linear" if targets == ("all-linear",) else list(targets),
        init_lora_weights=not random,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers >= 5.20 by a name that it deprecates.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return cast(PreTrainedModel, get_peft_model(model, config))
