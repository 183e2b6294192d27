"""The model of a run: loaded, changed by its memory strategies, with its adapter on; and the optimizer of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import torch
from accelerate.utils import set_seed

from fitune.compose import cudnn_guard, flash_attention
from fitune.compose.attention import isolate_documents
from fitune.compose.calling import call_for, call_for_callable, call_for_model, call_plugin, wrong
from fitune.compose.causal import must_be_causal
from fitune.compose.optimizer import Trainables
from fitune.compose.order import in_order, told_order
from fitune.compose.owned import must_suit_owner
from fitune.compose.tokens import told_of_tokens, with_tokens
from fitune.compose.weights import weights_to_blame
from fitune.data.prepare import Prepared
from fitune.errors import ModelError, PluginError
from fitune.plugin.model import ADDED, added_modules, added_tokens, decay_groups, unwrapped
from fitune.plugin.recipe import Recipe, Use
from fitune.plugin.records import MemoryStrategy
from fitune.plugin.strategy import OptimizerSettings, Plan, Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


P = ParamSpec("P")
T = TypeVar("T")

SCORES = ("loss", "log_probs")
"""What a strategy may compute in the place of the plain ones (`Plan`), for an objective that asks for it (`Scores`)."""

Strategies: TypeAlias = "tuple[tuple[Use[MemoryStrategy[Any]], Strategy], ...]"
"""The recipe's memory strategies at work, in its order, each with the table that it comes from."""

AMID_A_LAYER = (
    "memory that runs out in one process amid a layer ends all processes, since the others wait for it there. ft run "
    "--gpus starts them again with less, from the newest checkpoint; under another launcher the run ends"
)
"""What is told where processes wait for each other so."""


def planned(
    recipe: Recipe, *, gpu: bool, processes: int = 1, capability: tuple[int, int] | None = None
) -> tuple[Strategies, Plan]:
    """The recipe's memory strategies, and what they decide before a weight is read, in so many processes; in a forecast
    for a card of this compute capability.
    """
    uses = in_order(recipe.strategies)
    strategies = tuple((use, call_for(use, "make", Strategy, use.record.make, use.options)) for use in uses)
    look, stored = recipe.model.record.stored, None
    if look is not None:
        stored = call_plugin(recipe.model, look, recipe.model.options)
    notices = (*recipe.notices, *((stored.notice,) if stored is not None and stored.notice else ()))
    accumulation = recipe.train.accumulation or 1
    plan = Plan(
        gpu=gpu,
        capability=capability,
        processes=processes,
        accumulation=accumulation,
        stored=stored,
        notices=notices,
    )
    for use, strategy in strategies:
        before, plan = plan, call_for(use, "plan", Plan, strategy.plan, plan)
        given = [what for what in SCORES if getattr(plan, what) is not getattr(before, what)]
        plan = replace(plan, replaced=(*before.replaced, *((use.record.name, what) for what in given)))
    if stored is not None and plan.quantization is not None:
        raise ModelError(
            f"the checkpoint is quantised already ({stored.name}), and a [[memory.strategy]] would do so again. Remove "
            "that strategy, or load a checkpoint that is not quantised"
        )
    plan = replace(plan, unrecorded=must_suit_owner(uses, plan) or plan.unrecorded)
    behind = (AMID_A_LAYER,) if plan.interlocked and plan.gpu and recipe.memory.recoveries else ()
    return strategies, replace(plan, notices=(*told_order(recipe.strategies, uses), *plan.notices, *behind))


def adapted(
    recipe: Recipe, strategies: Strategies, model: PreTrainedModel, start: Path | None = None
) -> PreTrainedModel:
    """The base model, with the tokens that the recipe adds, changed by the strategies, as the objective trains it, with
    its adapter: a new one, or what was saved in `start`.
    """
    return begun(recipe, converted(recipe, loaded(strategies, with_tokens(recipe, model))), start)


def loaded(strategies: Strategies, model: PreTrainedModel) -> PreTrainedModel:
    """The base model, changed by the strategies, with an attention that has a gradient on every card."""
    cudnn_guard.switch_on()
    for use, strategy in strategies:
        model = call_for_model(use, "loaded", strategy.loaded, model)
    return model


def converted(recipe: Recipe, model: PreTrainedModel) -> PreTrainedModel:
    """The base model in the form that the recipe's objective trains, the same for each seed."""
    use = recipe.objective
    if use.record.convert is None:
        return model
    set_seed(recipe.general.seed)
    before = list(model.parameters())
    found = call_for_model(use, "convert", use.record.convert, use.options, model)
    known = {id(parameter) for parameter in before}
    new = [name.rpartition(".")[0] for name, parameter in found.named_parameters() if id(parameter) not in known]
    setattr(found, ADDED, tuple(dict.fromkeys(new)))
    return found


def know_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a model that looks for the end of a text know what stands behind it."""
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def begun(recipe: Recipe, model: PreTrainedModel, start: Path | None) -> PreTrainedModel:
    """A model with its adapter as a run begins with it."""
    use = recipe.adapter
    model = call_for_model(use, "attach", use.record.attach, use.options, model)
    for name in added_modules(model):
        if not any(p.requires_grad for p in unwrapped(model).get_submodule(name).parameters()):
            raise PluginError(
                f'the adapter "{use.record.name}" does not train "{name}", which the objective '
                f'"{recipe.objective.record.name}" has added to the model (fitune.added_modules). Name another adapter'
            )
    of_tokens = unwrapped(model).get_input_embeddings().parameters() if added_tokens(model) else ()
    if of_tokens and not any(p.requires_grad for p in of_tokens):
        raise PluginError(
            f'the adapter "{use.record.name}" does not train the rows of the tokens that [model] adds '
            "(fitune.added_tokens). Name another adapter"
        )
    if start is not None and use.record.fill is not None:
        call_plugin(use, use.record.fill, use.options, model, start)
    return model


def prepared(strategies: Strategies, model: PreTrainedModel) -> PreTrainedModel:
    """The model, with its adapter and on its device, changed by the strategies and shared out over the processes, in
    training mode.
    """
    return distributed(strategies, changed(strategies, model))


def changed(strategies: Strategies, model: PreTrainedModel) -> PreTrainedModel:
    """The model, with its adapter, changed by the strategies."""
    for use, strategy in strategies:
        model = call_for_model(use, "prepare", strategy.prepare, model)
    return model


def distributed(strategies: Strategies, model: PreTrainedModel) -> PreTrainedModel:
    """The changed model, shared out over the processes, in training mode."""
    for use, strategy in strategies:
        model = call_for_model(use, "distribute", strategy.distribute, model)
    model.train()
    return model


def called(strategies: Strategies, compute: Callable[P, T]) -> Callable[P, T]:
    """What calls the model, as strategies have it."""
    for use, strategy in reversed(strategies):
        compute = call_for_callable(use, "whole", strategy.whole, compute)
    return compute


def told(recipe: Recipe, strategies: Strategies, model: PreTrainedModel) -> tuple[str, ...]:
    """What the adapter and the strategies say of the prepared model."""
    adapter = recipe.adapter
    said = [*told_of_tokens(unwrapped(model))]
    said += call_plugin(adapter, adapter.record.told, adapter.options, model)
    for use, strategy in strategies:
        said += call_plugin(use, strategy.told, model)
    return tuple(said)


def must_not_see_later(recipe: Recipe, strategies: Strategies, model: PreTrainedModel) -> None:
    """Raise `ModelError` if a model that is to write what comes next sees it; one that gives scores may."""
    if recipe.objective.record.convert is None:
        with weights_to_blame(model):
            must_be_causal(model, partial(called, strategies))


def with_documents_apart(
    plan: Plan, recipe: Recipe, strategies: Strategies, model: PreTrainedModel, data: Prepared
) -> Plan:
    """Where rows hold several documents, make the model keep them apart, and say how; `ModelError` if it cannot."""
    plan = flash_attention.put(plan, recipe, model)
    if not recipe.several:
        return plan
    packs = any(use.record.packs for use in recipe.stages)
    with weights_to_blame(model):
        isolated = isolate_documents(model, partial(called, strategies))
        if isolated.reason and flash_attention.current() != flash_attention.OWN:
            plan = flash_attention.take_out(plan, isolated.reason)
            isolated = isolate_documents(model, partial(called, strategies))
    apart = f"{'packed documents' if packs else 'answers'} are kept apart by {isolated}"
    efficiency = f"packing efficiency {data.tokens / (len(data.rows) * recipe.train.length):.4f}"
    return replace(plan, notices=(*plan.notices, apart, *([efficiency] if packs else ())))


def built(recipe: Recipe) -> PreTrainedModel:
    """The recipe's base model on the meta device, without weights. Raises `ModelError`."""
    record = recipe.model.record
    if record.build_model is None:
        raise ModelError(
            f'the model loader "{record.name}" cannot build its model without weights (ModelLoader.build_model), so a '
            "run with it cannot be forecast"
        )
    return call_for_model(recipe.model, "build_model", record.build_model, recipe.model.options)


def base_model(recipe: Recipe, plan: Plan, device: torch.device) -> PreTrainedModel:
    """The base model, quantised as the plan says. Raises `ModelError` if its loader cannot quantise."""
    record, options = recipe.model.record, recipe.model.options
    if plan.quantization is None:
        return call_for_model(recipe.model, "load_model", record.load_model, options, device)
    if record.load_quantized is None:
        raise ModelError(
            f'the model loader "{record.name}" cannot quantise, which a [[memory.strategy]] asks for. Remove that '
            "strategy, or name a model loader that quantises (ft plugins lists them)"
        )
    load = record.load_quantized
    return call_for_model(recipe.model, "load_quantized", load, options, device, plan.quantization)


def make_optimizer(
    recipe: Recipe, strategies: Strategies, trainables: Trainables, *, fused: bool
) -> torch.optim.Optimizer:
    """The one that a strategy makes, or AdamW. Raises `PluginError` if two strategies make one."""
    train = recipe.train
    settings = OptimizerSettings(
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        fused=fused,
    )
    found: list[tuple[str, torch.optim.Optimizer]] = []
    for use, strategy in strategies:
        made: object = call_plugin(use, strategy.make_optimizer, trainables.masters, settings)
        if isinstance(made, torch.optim.Optimizer):
            found.append((use.record.name, made))
        elif made is not None:
            raise wrong(use, "make_optimizer", made, "a torch.optim.Optimizer, or None")
    if len(found) > 1:
        names = " and ".join(f'"{name}"' for name, _ in found)
        raise PluginError(f"the memory strategies {names} both make an optimizer. Keep one of them")
    if found:
        return found[0][1]
    return torch.optim.AdamW(
        decay_groups(trainables.masters),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=settings.fused,
    )
