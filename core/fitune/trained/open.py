"""Opening a run: from its directory to the model that was trained, with its tokenizer, ready to be asked.

RUN/recipe.toml            the recipe, every choice explicit
RUN/adapter, or model      what was trained, once the run has ended
RUN/checkpoints/step-N/    the same directory, as it was after N steps

The model is composed as the run composed it: the base with what memory strategies do to it, e.g. quantise, then the
adapter, loaded where a run attaches a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fitune.checkpoint.final import final_damage
from fitune.errors import ModelError, RecipeError, RunError, nearest, sentences
from fitune.plugin.options import toml_text
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.recipe.places import model_place
from fitune.recipe.reader import read_recipe
from fitune.recipe.source import TomlSource
from fitune.runs.base import UNKNOWN, kept_base, must_be_base
from fitune.runs.card import CARD
from fitune.runs.layout import CHECKPOINTS, RECIPE
from fitune.runs.provenance import changed_recipe
from fitune.runs.used_plugins import kept_plugins, must_be_trained_with, must_have_plugins, plugins_of
from fitune.trained.checkpoints import BEST, LAST, best, checkpoints, has_weights, nothing_there, sound
from fitune.trained.plain import dequantized, unpacked_or_base, unpacks
from fitune.trained.templates import kept_templates

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fitune.compose.model import Strategies
    from fitune.plugin.dataflow import DataContext
    from fitune.plugin.strategy import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run's directory holds."""

    directory: Path
    recipe: Recipe
    weights: Path
    """Directory of what was trained."""
    checkpoint: str | None
    """Name of the checkpoint that it belongs to; None for what the run ended with."""
    base: str | None = None
    """The base that it was trained on, as the run kept it: a commit or a digest; None where that is not known."""
    notices: tuple[str, ...] = ()
    """What the user should know, e.g. that a checkpoint is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A trained model on its device, in evaluation mode."""

    trained: Trained
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: DataContext
    strategies: Strategies
    plan: Plan
    accelerator: Accelerator

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return cast("torch.device", self.accelerator.device)


def find(
    directory: Path,
    registry: Registry,
    checkpoint: str | None = None,
    overrides: Sequence[str] = (),
    model: Path | None = None,
) -> Trained:
    """What was trained in a run's directory: at its end, or by the name of a checkpoint ("last" for the newest,
    "best" for that of the best evaluation). `model` is where its base is now, if not where it was. Plugins must be
    those that it was trained with, unless the registry takes others.

    The data that the recipe names need not be there. Reads no weight. Raises the errors of `fitune.errors`.
    """
    if not (directory / RECIPE).is_file():
        what = "no such directory" if not directory.exists() else f"it holds no {RECIPE}"
        which = "a directory that ft run wrote"
        if (directory / "config.json").is_file():
            what = "it holds a model, which transformers loads as it stands"
            which = "the run that it was merged from, or train on it: ft new --model"
        raise RunError(f"{directory} is no run's directory: {what}. Give {which}")
    base = [f"{key}={toml_text(str(path.absolute()))}" for key, path in model_place(model).items()]
    asked = [*overrides, *base]
    templates = list(kept_templates(directory, TomlSource.read(directory / RECIPE, asked)))
    asked += [override for override, _ in templates]
    recipe, others = _read(directory, registry, asked)
    kind = recipe.adapter.record.directory
    found = checkpoints(directory, kind)
    kept = kept_base(directory)
    unknown = (*others, *(told for _, told in templates), *(() if kept is not None or is_whole(recipe) else (UNKNOWN,)))
    if (changed := changed_recipe(directory)) is not None:
        unknown = (*unknown, changed)
    if checkpoint is None and has_weights(directory / kind):
        must_be_whole(directory, kind)
        return Trained(
            directory=directory,
            recipe=recipe,
            weights=directory / kind,
            checkpoint=None,
            base=kept,
            notices=unknown,
        )
    if not found:
        raise RunError(
            f"{directory}: {sentences(nothing_there(directory, kind), f'Let the run end: ft run {directory}')}"
        )
    if checkpoint == BEST:
        checkpoint = best(directory, found)
    if checkpoint not in (None, LAST, *found):
        raise RunError(f'{directory} has no whole checkpoint "{checkpoint}". {nearest(str(checkpoint), found)}')
    name, notices = sound(directory, found if checkpoint in (None, LAST) else [str(checkpoint)])
    if checkpoint is None:
        notices.append(f"the run has not ended: this is its checkpoint {name}")
    weights = directory / CHECKPOINTS / name / kind
    return Trained(
        directory=directory,
        recipe=recipe,
        weights=weights,
        checkpoint=name,
        base=kept,
        notices=(*unknown, *notices),
    )


def _read(run: Path, registry: Registry, overrides: Sequence[str]) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe of a run, and what is to be told of plugins that are others than it was trained with."""
    kept = kept_plugins(run)
    try:
        recipe = read_recipe(run / RECIPE, registry, overrides, look=False)
    except RecipeError:
        must_have_plugins(run, kept, registry)
        raise
    others = must_be_trained_with(run, kept, plugins_of(registry, recipe), allowed=registry.takes_other_plugins)
    return recipe, (() if others is None else (others,))


def must_be_whole(directory: Path, kind: str) -> None:
    """Raise `RunError` if what a run ended with is not as it was written."""
    wrong = final_damage(directory, kind)
    if wrong is not None:
        raise RunError(
            f"{directory / kind} is not what was trained: {wrong}. Write it again from the run's checkpoint: ft run "
            f"{directory}; or use that as it is: --checkpoint {LAST}"
        )


def must_write(trained: Trained, asked: str) -> None:
    """Raise `RunError` if what was trained writes no text, which is `asked` for."""
    name = trained.recipe.objective.record.name
    if not trained.recipe.objective.record.writes:
        raise RunError(
            f'{asked}: {trained.directory} was trained for the objective "{name}", and writes no text. Evaluate it: '
            f"ft eval {trained.directory}; its {CARD} shows how transformers reads it"
        )


def is_whole(recipe: Recipe) -> bool:
    """Whether what was trained is a model of its own, which needs no base."""
    return recipe.adapter.record.load_whole is not None


def open_base(trained: Trained, *, plain: bool = False) -> Opened:
    """The base model that was trained on, quantised where the run's was; `plain` gives it with those numbers, but in
    the model's own type, or one that holds them. Raises the errors of `fitune.errors`; another base than that is a
    `RunError`.
    """
    from fitune.compose.model import base_model

    must_be_base(trained.directory, trained.recipe, trained.base)
    return _opened(trained, unpacked_or_base if plain else base_model, plain=plain)


def open_whole(trained: Trained) -> Opened:
    """What was trained, where it is a model of its own: whatever became of its base."""
    from fitune.compose.calling import call_plugin

    use = trained.recipe.adapter
    load = use.record.load_whole
    assert load is not None
    return _opened(
        trained,
        lambda recipe, plan, device: call_plugin(use, load, use.options, trained.weights, device),
        whole=True,
    )


def _opened(
    trained: Trained,
    load: Callable[[Recipe, Plan, torch.device], PreTrainedModel],
    *,
    plain: bool = False,
    whole: bool = False,
) -> Opened:
    """The model that `load` gives; `whole` says that it is what was trained."""
    import torch

    from fitune.compose.devices import make_accelerator, set_allocator, set_deterministic
    from fitune.compose.model import converted, know_padding, loaded, planned
    from fitune.compose.tokens import with_tokens
    from fitune.data.prepare import context_of

    recipe = trained.recipe
    strategies, plan = planned(recipe, gpu=torch.cuda.is_available())
    set_allocator(plan)
    set_deterministic(recipe.general.deterministic)
    accelerator = make_accelerator()
    tokenizer = tokenizer_for(trained)
    model = load(recipe, plan, accelerator.device)
    model = loaded(strategies, model if whole else with_tokens(recipe, model))
    if plain and plan.quantized and not unpacks(plan):
        model = dequantized(model)
    model = model if whole else converted(recipe, model)
    if recipe.objective.record.convert is not None:
        know_padding(model, tokenizer)
    model.eval()
    return Opened(
        trained=trained,
        model=model,
        tokenizer=tokenizer,
        context=context_of(recipe, tokenizer),
        strategies=strategies,
        plan=plan,
        accelerator=accelerator,
    )


def tokenizer_for(trained: Trained) -> PreTrainedTokenizerBase:
    """The base's tokenizer; where a model of its own was trained and the base is gone, the one that was saved with it.

    Raises `ModelError`.
    """
    from transformers import AutoTokenizer

    from fitune.data.tokenizer import tokenizer_of

    try:
        return tokenizer_of(trained.recipe)
    except ModelError:
        saved = trained.directory / trained.recipe.adapter.record.directory
        if not (is_whole(trained.recipe) and (saved / "tokenizer_config.json").is_file()):
            raise
        return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(str(saved), trust_remote_code=False))


def with_trained(opened: Opened) -> Opened:
    """A base model that was opened, with what was trained. Raises `ModelError`."""
    from fitune.compose.calling import call_plugin

    use, weights = opened.trained.recipe.adapter, opened.trained.weights
    if use.record.load is None:
        raise ModelError(
            f'the adapter "{use.record.name}" cannot be loaded again: its plugin gives no "load" (fitune.Adapter)'
        )
    return replace(opened, model=call_plugin(use, use.record.load, use.options, opened.model, weights))


def open_run(trained: Trained, *, base: bool = False) -> Opened:
    """The trained model as its run evaluates it, with all that memory strategies do to it.

    With `base`, as it was before the first step.
    """
    from accelerate.utils import set_seed

    from fitune.checkpoint.begin import begun_from
    from fitune.compose.attention import isolate_documents
    from fitune.compose.model import begun, prepared

    recipe = trained.recipe
    opened = open_whole(trained) if is_whole(recipe) and not base else open_base(trained)
    if base:
        set_seed(recipe.general.seed)  # a new adapter draws its first weights
        model = begun(recipe, opened.model, begun_from(recipe))
    else:
        model = opened.model if is_whole(recipe) else with_trained(opened).model
    model = prepared(opened.strategies, model)
    if recipe.several:
        isolate_documents(model)
    model.requires_grad_(False)
    model.eval()
    return replace(opened, model=model)
