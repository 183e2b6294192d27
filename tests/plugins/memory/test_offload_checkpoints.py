"""`offload-checkpoints` moves the inputs of checkpointed layers to the host, and changes no number."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fitune import ModelError, RecipeError, RunError
from fitune.compose.loss import plain_loss
from fitune.memory.cards.cards import find_card
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.log import Block, MemoryLog
from fitune.memory.trace.run import trace
from fitune.testing import write_recipe
from fitune_plugins.memory import host_memory
from fitune_plugins.memory.gradient_checkpointing import GradientCheckpointing, GradientCheckpointingOptions
from fitune_plugins.memory.host_copies import HostCopy
from fitune_plugins.memory.offload_checkpoints import CHECKPOINT, NAME, OffloadCheckpoints, OffloadCheckpointsOptions
from support.architectures import GRADIENT_CHECKPOINTING, recipe_of
from support.decoders import LAYERS, MODELS, decoder
from support.real_steps import both_logs, events
from support.tiny import assert_close, gradients, loss_and_gradients, make_batch, parts_of

BATCH = make_batch([([3, 7, 1, 4, 9, 9, 2, 5], [3, 7, 1, 4, 9, 9, 2, 5]), ([8, 6, 4, 2, 1], [8, 6, 4, 2, 1])])


def _checkpointed(model: PreTrainedModel, layers: int | None = None) -> PreTrainedModel:
    return GradientCheckpointing(GradientCheckpointingOptions(layers=layers)).prepare(model)


def _offloaded(model: PreTrainedModel, layers: int | None = None, *, prefetch: bool = True) -> PreTrainedModel:
    return OffloadCheckpoints(OffloadCheckpointsOptions(prefetch=prefetch)).prepare(_checkpointed(model, layers))


def _held(model: PreTrainedModel) -> list[int]:
    """Sizes of the blocks of host memory that are free."""
    (memory,) = {
        layer.__dict__[CHECKPOINT].args[1]._copies.memory for layer in model.modules() if CHECKPOINT in layer.__dict__
    }
    sizes = [block.nbytes for block in memory._free]
    assert sum(sizes) == memory.held
    return sizes


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, in order."""
    done: list[str] = []

    def watch(name: str, real: Callable[..., Any]) -> None:
        def note(self: HostCopy, *given: Any) -> Any:
            if name != "fetch" or self._tensor is None:
                done.append("send" if name == "__init__" else name)
            return real(self, *given)

        monkeypatch.setattr(HostCopy, name, note)

    for name in ("__init__", "leave", "fetch", "take"):
        watch(name, getattr(HostCopy, name))
    return done


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_are_those_of_gradient_checkpointing(kind: str, lora: bool) -> None:
    def both(model: PreTrainedModel) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(7)
        return loss_and_gradients(plain_loss, model, BATCH)

    value, expected = both(_checkpointed(decoder(kind, lora=lora, dropout=0.2)))
    model = _offloaded(decoder(kind, lora=lora, dropout=0.2))
    for _ in range(2):
        found_value, found = both(model)
        assert found_value == value
        assert all(map(torch.equal, found, expected))
    hidden = 2 * 8 * 16 * 4
    assert _held(model) == [hidden] * (LAYERS - 1), "all but the last, used again in the second step"


@pytest.mark.parametrize(
    ("layers", "back"),
    [(1, ["take", "fetch"]), (2, ["take", "fetch", "fetch", "take"]), (3, ["fetch", "take", "fetch", "take"])],
)
def test_each_input_is_fetched_before_it_is_needed(layers: int, back: list[str], moves: list[str]) -> None:
    """But for the first of the backward pass, where layers stand behind it that are not checkpointed: nobody asks for
    it before it is taken."""
    model = _offloaded(decoder(), layers)
    loss = plain_loss(model, BATCH)
    assert moves == ["send", "leave"] * (len(back) // 2)
    moves.clear()
    loss.backward()
    assert [name for name in moves if name != "leave"] == back


def test_without_prefetch_each_layer_fetches_its_own(moves: list[str]) -> None:
    _, expected = loss_and_gradients(plain_loss, _checkpointed(decoder()), BATCH)
    _, found = loss_and_gradients(plain_loss, _offloaded(decoder(), prefetch=False), BATCH)
    assert all(map(torch.equal, found, expected))
    assert [name for name in moves if name in ("take", "fetch")] == ["take", "fetch"] * 2


def test_evaluation_moves_nothing(moves: list[str]) -> None:
    model = _offloaded(decoder())
    with torch.no_grad():
        plain_loss(model, BATCH)
    plain_loss(model.eval(), BATCH)
    assert moves == []


@pytest.mark.parametrize("number", [1, 3, 5, 6])
def test_an_error_leaves_nothing_behind(number: int) -> None:
    """Wherever in a forward or backward pass it comes: calls of MLPs are counted, three forward and three again."""
    model = _offloaded(decoder())
    _, expected = loss_and_gradients(plain_loss, _checkpointed(decoder()), BATCH)
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise ValueError("here")

    handles = [
        module.register_forward_pre_hook(fail) for name, module in model.named_modules() if name.endswith(".mlp")
    ]
    with pytest.raises(ValueError, match="here"):
        plain_loss(model, BATCH).backward()
    model.zero_grad()
    for handle in handles:
        handle.remove()
    gc.collect()
    held = _held(model)
    _, found = loss_and_gradients(plain_loss, model, BATCH)
    assert all(map(torch.equal, found, expected))
    assert len(held) <= len(_held(model)) == LAYERS - 1


def test_a_host_without_room_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _offloaded(decoder())
    with monkeypatch.context() as patch:
        patch.setattr(host_memory, "available", lambda: 100)
        with pytest.raises(RunError, match=r"offload-checkpoints: 0\.00 GiB of host memory were asked for"):
            plain_loss(model, BATCH)
    plain_loss(model, BATCH).backward()
    assert len(_held(model)) == LAYERS - 1


def test_rows_of_many_lengths_share_their_memory() -> None:
    model = _offloaded(decoder())
    for length in (3, 8, 5, 2):
        plain_loss(model, make_batch([([4] * length, [4] * length)])).backward()
    assert _held(model) == [8 * 16 * 4] * (LAYERS - 1)


def test_without_checkpointed_layers() -> None:
    with pytest.raises(ModelError, match=r"offload-checkpoints: no layer is checkpointed.*gradient-checkpointing"):
        OffloadCheckpoints(OffloadCheckpointsOptions()).prepare(decoder())


def test_a_recipe_must_checkpoint(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(RecipeError, match='"offload-checkpoints" needs "gradient-checkpointing": it moves the inputs'):
        parts_of(recipe, 'memory.strategy=[{use="offload-checkpoints"}]')


def test_checkpointing_works_before_it_in_whatever_order_they_stand(tmp_path: Path) -> None:
    strategies = 'memory.strategy=[{use="offload-checkpoints"}, {use="gradient-checkpointing"}]'
    plan = parts_of(write_recipe(tmp_path), strategies).run.plan
    order = "memory strategies work in this order, not the recipe's: gradient-checkpointing, offload-checkpoints"
    assert order in plan.notices


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_in_a_run(adapter: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"adapter": {"use": adapter}})
    plain = gradients(recipe, "train.steps=2")
    both = 'memory.strategy=[{use="gradient-checkpointing"}, {use="offload-checkpoints"}]'
    for step, expected in zip(gradients(recipe, "train.steps=2", both), plain, strict=True):
        assert_close(step, expected, relative=1e-5)


# ------------------------------------------------------------------------------------------------------------ forecast


def _traced(directory: Path, *strategies: str, name: str = "llama", **named: Any) -> MemoryLog:
    changes = {"num_hidden_layers": 6}
    recipe = recipe_of(directory, name, *strategies, changes=changes, **named)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace(recipe, shapes_of_recipe(recipe, 1), find_card("a10g")).log


def _alive(log: MemoryLog) -> list[Block]:
    """What the second step's backward pass begins with."""
    start = next(start for start, name, step in log.phases if (name, step) == ("backward", 2))
    alive: dict[int, Block] = {}
    for number in log.events[:start]:
        if number > 0:
            alive[number] = log.blocks[number - 1]
        else:
            del alive[-number]
    return list(alive.values())


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "deepseek_v2", "gpt_oss"])
def test_one_input_of_six_stays_on_the_card(name: str, tmp_path: Path) -> None:
    hidden = (2, 64, 64)
    counts = []
    for at, strategies in enumerate([(GRADIENT_CHECKPOINTING,), (GRADIENT_CHECKPOINTING, NAME)]):
        alive = _alive(_traced(tmp_path / str(at), *strategies, name=name))
        counts.append([b.shape for b in alive if b.dtype == "bfloat16" and b.step == 2].count(hidden))
    assert counts[0] - counts[1] == 5


@pytest.mark.parametrize("name", ["mistral", "gemma2", "phi3", "mixtral", "falcon", "mamba"])
def test_other_architectures_are_traced(name: str, tmp_path: Path) -> None:
    log = _traced(tmp_path, GRADIENT_CHECKPOINTING, NAME, name=name)
    left = set(range(1, len(log.blocks) + 1)) - {-number for number in log.events if number < 0}
    assert not [number for number in left if log.blocks[number - 1].kind == "saved activations"]


@pytest.mark.parametrize("lora", [False, True])
def test_the_card_sees_what_a_forecast_sees(lora: bool, tmp_path: Path) -> None:
    """Blocks of host memory are bytes; a forecast has none."""
    changes = {"num_hidden_layers": 4}
    recipe = recipe_of(tmp_path, "llama", GRADIENT_CHECKPOINTING, NAME, lora=lora, changes=changes)
    forecast, real = both_logs(recipe)
    on_host = {number for number, block in enumerate(real.blocks, 1) if block.dtype == "uint8"}
    assert len(on_host) == 3, "made in the first step, and used again"
    real.events = [number for number in real.events if abs(number) not in on_host]
    assert events(forecast) == events(real)


def test_it_is_what_a_hook_of_torch_would_keep() -> None:
    """Both of torch's ways to keep a checkpoint's inputs (2.11's and 2.13's) ask the hooks that stand around it."""
    seen: list[torch.Size] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tensor.shape)
        return tensor

    model = cast(Any, _checkpointed(decoder()))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model.layers[0](torch.randn(1, 4, 16), position_embeddings=(torch.ones(1, 4, 8), torch.ones(1, 4, 8)))
    assert seen == [torch.Size((1, 4, 16))]
