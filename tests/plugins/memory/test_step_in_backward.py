"""`step-in-backward`: the weights of ordinary AdamW, to the bit, without its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fitune import MemoryStrategy, NoOptions, RecipeError, RunError, Strategy
from fitune.compose.model import planned
from fitune.memory.cards.cards import find_card
from fitune.memory.changes import levers_of_strategies
from fitune.memory.fit.choices import choices_for
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.shapes import of_recipe
from fitune.plugin.model import decay_groups
from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import assert_strategy, open_registry, write_recipe, write_tiny_model
from fitune.testing.contracts.trial import Trial, must_go_on_to_the_bit, weights
from fitune.train.loop import train as steps_of
from fitune_plugins.memory.adamw_in_backward import AdamWInBackward
from support.architectures import recipe_of
from support.made_plugins import giving
from support.nothing import nothing
from support.real_steps import both_logs, events
from support.tiny import metrics, parts_of, train

USE = 'memory.strategy=[{use="step-in-backward"}]'
UNCLIPPED, FULL = "train.max_grad_norm=0", 'adapter={use="none"}'
NAME = "step-in-backward"


def made(name: str, strategy: Strategy) -> MemoryStrategy[NoOptions]:
    """The record of a strategy."""
    return MemoryStrategy(name=name, summary="For a test", options=NoOptions, make=lambda options: strategy)


def test_contract(tmp_path: Path) -> None:
    assert_strategy(nothing(), NAME, tmp_path)


def test_full_fine_tuning_goes_on_to_the_bit(tmp_path: Path) -> None:
    changes = {
        "memory": {"strategy": [{"use": NAME}]},
        "adapter": {"use": "none"},
        "train": {"steps": 4, "max_grad_norm": 0.0, "weight_decay": 0.1},
    }
    must_go_on_to_the_bit(Trial(plugin=nothing(), directory=tmp_path, changes=changes), "model")


@pytest.mark.parametrize(
    ("adapter", "more"),
    [
        (FULL, ('model.dtype="float32"',)),
        (FULL, ('model.dtype="bfloat16"',)),
        (FULL, ('model.dtype="bfloat16"', "train.master_weights=false")),
        ('adapter={use="lora", targets="all-linear"}', ('model.dtype="bfloat16"', "train.micro_batch=3")),
    ],
)
@pytest.mark.parametrize("checkpointed", ["", ', {use="gradient-checkpointing"}, {use="chunked-loss"}'])
def test_it_learns_what_is_learnt_without_it_to_the_bit(
    recipe_path: Path, tmp_path: Path, adapter: str, more: tuple[str, ...], checkpointed: str
) -> None:
    """Weights, losses and norms, of steps with other numbers of tokens, and with weights that are decayed."""
    own = USE if not checkpointed else f"{USE[:-1]}{checkpointed}]"
    how = (adapter, *more, UNCLIPPED, "train.weight_decay=0.1", "train.steps=4")
    others = f"memory.strategy=[{checkpointed.removeprefix(', ')}]"
    for name, strategies in (("with", own), ("without", others)):
        train(recipe_path, tmp_path / name, *how, strategies)
    found, expected = (metrics(tmp_path / name) for name in ("with", "without"))
    keys = ("loss", "grad_norm", "learning_rate")
    assert [[one[key] for key in keys] for one in found] == [[one[key] for key in keys] for one in expected]
    assert len({one["grad_norm"] for one in found}) == 4
    assert_equal(weights(tmp_path / "with"), weights(tmp_path / "without"))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each tensor, to the bit."""
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_tied_embeddings_and_parameters_without_a_gradient(recipe_path: Path) -> None:
    """What is used twice has one gradient; what is used nowhere is decayed, as by ordinary AdamW."""
    found: list[list[Tensor]] = []
    plugin = giving(made("tying", _Tying()))
    for own in (f', {{use="{NAME}"}}', ""):
        how = (f'memory.strategy=[{{use="tying"}}{own}]', FULL, UNCLIPPED, "train.weight_decay=0.5")
        parts = parts_of(recipe_path, *how, plugins=[plugin])
        list(steps_of(parts))
        found.append([m.detach().clone() for m in parts.step.trainables.masters])
        assert all(m.grad is None for m in parts.step.trainables.masters)
        assert all(p.grad is None for p in parts.step.trainables.parameters)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert next(one for one in found[0] if one.shape == (5, 5)).max() < 1


class _Tying(Strategy):
    """Makes the head of a model its embeddings, with a weight beside it that nothing uses."""

    def loaded(self, model: Any) -> Any:
        model.lm_head.weight = model.model.embed_tokens.weight
        model.unused = nn.Parameter(torch.ones(5, 5))
        return model


def test_a_checkpoint_goes_on_without_it(recipe_path: Path, tmp_path: Path) -> None:
    """It is AdamW's, and the strategy leaves nothing in it."""
    parts = parts_of(recipe_path, USE, FULL, UNCLIPPED, "train.steps=2")
    list(steps_of(parts))
    plain = parts_of(recipe_path, FULL, UNCLIPPED, "train.steps=2")
    list(steps_of(plain))
    assert type(parts.step.optimizer) is type(plain.step.optimizer)
    one, other = parts.step.optimizer.state_dict(), plain.step.optimizer.state_dict()
    assert one["param_groups"] == other["param_groups"]
    for number, state in one["state"].items():
        assert all(torch.equal(state[key], other["state"][number][key]) for key in state)
        assert state.keys() == other["state"][number].keys()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), '"step-in-backward" changes weights as gradients come, before the norm of all is known'),
        (
            (UNCLIPPED, "train.accumulation=2"),
            "a step is one micro-batch, and here it is 2. Accumulate nothing, or remove",
        ),
        ((UNCLIPPED, 'train.non_finite="skip"'), "a step cannot be left out that turns out not to be finite"),
    ],
)
def test_what_it_cannot_have_is_refused(recipe_path: Path, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        read_recipe(recipe_path, open_registry(), [USE, *overrides])
    assert said in raised.value.lines[0]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ('{use="accumulation", steps=4}', "a step is one micro-batch, and here it is 4"),
        ('{use="lion"}', "both make the optimizer"),
        ('{use="fsdp"}', "it changes weights before the processes' gradients are summed"),
    ],
)
def test_what_it_cannot_stand_beside_is_refused(recipe_path: Path, other: str, said: str) -> None:
    strategies = f'memory.strategy=[{{use="{NAME}"}}, {other}]'
    with pytest.raises(RecipeError) as raised:
        read_recipe(recipe_path, open_registry(), [strategies, UNCLIPPED])
    assert said in raised.value.lines[0]


def test_what_it_cannot_have_is_refused_as_a_run_is_composed(recipe_path: Path) -> None:
    """What no recipe says: the number of processes, and the numbers that a checkpoint is in."""
    recipe = read_recipe(recipe_path, open_registry(), [USE, UNCLIPPED])
    with pytest.raises(RunError, match=r"before 2 processes could sum theirs. Train on one GPU, or remove"):
        planned(recipe, gpu=True, processes=2)
    assert planned(recipe, gpu=True)[1].unrecorded == "step-in-backward changes weights within it"
    write_tiny_model(recipe_path.parent / "model", dtype="float16")
    with pytest.raises(RunError, match='Set the model\'s dtype to "bfloat16", or remove'):
        parts_of(recipe_path, USE, UNCLIPPED, 'model.dtype="float16"')


# ------------------------------------------------------------------------------------------------ what is not finite


class _Poison(Strategy):
    """Makes the gradient of the embeddings' output no number: the last that the backward pass gives."""

    def prepare(self, model: Any) -> Any:
        def poisoned(module: object, inputs: object, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda grad: grad * float("nan"))

        model.get_input_embeddings().register_forward_hook(poisoned)
        return model


def test_a_loss_that_is_no_number_changes_nothing(recipe_path: Path) -> None:
    parts = parts_of(recipe_path, USE, FULL, UNCLIPPED)
    with torch.no_grad():
        parts.run.model.get_output_embeddings().weight[0, 0] = float("inf")
    before = [m.detach().clone() for m in parts.step.trainables.masters]
    with pytest.raises(RunError, match=r"step 1: the loss is nan and .* No weight was changed by it"):
        list(steps_of(parts))
    assert all(torch.equal(one, other) for one, other in zip(parts.step.trainables.masters, before, strict=True))
    assert parts.step.trainables.changed() == 0


def test_a_gradient_that_is_no_number_is_told_with_what_came_before_it(recipe_path: Path) -> None:
    strategies = f'memory.strategy=[{{use="poison"}}, {{use="{NAME}"}}]'
    parts = parts_of(recipe_path, strategies, FULL, UNCLIPPED, plugins=[giving(made("poison", _Poison()))])
    masters = parts.step.trainables.masters
    before = [m.detach().clone() for m in masters]
    every = len(masters)
    with pytest.raises(RunError, match=f"its gradient's norm nan.* {every - 1} of {every} tensors were changed before"):
        list(steps_of(parts))
    same = [torch.equal(one, other) for one, other in zip(masters, before, strict=True)]
    assert same.count(True) == 1
    assert parts.run.model.get_input_embeddings().weight is parts.step.trainables.parameters[same.index(True)]


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_changes_behind_what_is_not_finite(fused: bool) -> None:
    """With the kernel that is told on the device, and without it."""
    random = torch.Generator().manual_seed(0)
    masters = [nn.Parameter(torch.randn(shape, generator=random)) for shape in ((6, 4), (4,), (5, 4))]
    before = [m.detach().clone() for m in masters]
    optimizer = torch.optim.AdamW(decay_groups(masters), lr=0.1, fused=fused)
    owner = AdamWInBackward(masters, optimizer)
    owner.begin(torch.tensor(3.0), 7)
    owner.take(masters[2], torch.ones(5, 4))
    owner.take(masters[1], torch.full((4,), float("inf")))
    owner.take(masters[0], torch.ones(6, 4))
    assert owner.changed() == 1
    assert [torch.equal(one, other) for one, other in zip(masters, before, strict=True)] == [True, True, False]
    assert owner.norms()[2] == pytest.approx(20**0.5)
    assert not owner.norms()[1].isfinite()
    owner.begin(torch.tensor(3.0), 7)  # the next step is as if nothing had been
    for master in masters:
        owner.take(master, torch.ones_like(master))
    assert owner.changed() == 3
    assert [int(optimizer.state[m]["step"]) for m in masters] == [1, 1, 2]


# ------------------------------------------------------------------------------------------------------ the forecast


def _forecast(directory: Path, *overrides: str) -> Forecast:
    recipe = read_recipe(directory / "recipe.toml", open_registry(), [UNCLIPPED, *overrides])
    return forecast(recipe, of_recipe(recipe), find_card("h100"))


def test_a_forecast_has_no_gradients(tmp_path: Path) -> None:
    """6 bytes a parameter are gone, but for the largest of the model."""
    recipe_of(tmp_path, "llama", lora=False, length=16, changes={"hidden_size": 256, "num_hidden_layers": 6})
    plain, own = _forecast(tmp_path), _forecast(tmp_path, USE)
    parameters = plain.trace.parameters
    assert own.trace.trainable == parameters
    kinds = [{entry.kind: entry.bytes for entry in found.ledger.entries} for found in (plain, own)]
    assert kinds[0]["gradients"] > 3.9 * parameters
    assert kinds[1].get("gradients", 0) < 0.1 * parameters
    assert kinds[0]["optimizer state"] == kinds[1]["optimizer state"] > 8 * parameters
    assert plain.allocated - own.allocated > 3 * parameters


@pytest.mark.parametrize("lora", [True, False])
def test_what_is_traced_is_what_is_done(tmp_path: Path, lora: bool) -> None:
    """Operation by operation, with an evaluation behind the steps."""
    recipe_of(tmp_path, "llama", length=32, lora=lora, evaluates=True)
    recipe = read_recipe(tmp_path / "recipe.toml", open_registry(), [USE, UNCLIPPED])
    forecast, real = both_logs(recipe, micro_batches=1)
    assert events(forecast) == events(real)


def _choices(recipe: Recipe, processes: int = 1) -> Iterator[str]:
    config = recipe.model.record.build_model(recipe.model.options).config  # type: ignore[misc]
    return (choice.name for choice in choices_for(recipe, open_registry(), config, (), processes=processes))


def test_a_fit_may_take_it_where_nothing_else_changes(recipe_path: Path) -> None:
    for overrides, may in (
        ((UNCLIPPED,), True),
        ((), False),
        ((UNCLIPPED, "train.accumulation=2"), False),
        ((UNCLIPPED, 'train.non_finite="skip"'), False),
    ):
        assert (NAME in _choices(read_recipe(recipe_path, open_registry(), overrides))) is may
    assert NAME not in _choices(read_recipe(recipe_path, open_registry(), [UNCLIPPED]), processes=2)


def test_a_lever_says_what_goes_with_it(recipe_path: Path) -> None:
    for overrides, name, exact in (([], f"{NAME}, without clipping", False), ([UNCLIPPED], NAME, True)):
        recipe = read_recipe(recipe_path, open_registry(), overrides)
        config = recipe.model.record.build_model(recipe.model.options).config  # type: ignore[misc]
        levers = {one.name: one for one in levers_of_strategies(recipe, open_registry(), config, 1)}
        assert levers[name].exact is exact
        read_recipe(recipe_path, open_registry(), [*overrides, *levers[name].overrides])
        assert not [one for one in levers_of_strategies(recipe, open_registry(), config, 2) if NAME in one.name]


def test_it_is_refused_where_a_fit_would_accumulate(tmp_path: Path) -> None:
    from fitune.memory.fit.choices import composed

    registry = open_registry()
    recipe = read_recipe(write_recipe(tmp_path / "recipe"), registry, [UNCLIPPED])
    assert composed(recipe, registry, [{"use": NAME}], 1, 1).strategies
    with pytest.raises(RecipeError, match="a step is one micro-batch, and here it is 4"):
        composed(recipe, registry, [{"use": NAME}], 1, 4)
