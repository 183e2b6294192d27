"""Changes to a recipe's memory strategies, and the levers that follow from what each strategy's record says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fitune.memory.strategies import accumulating, is_of_several, strategies_of
from fitune.plugin.levers import Change, Lever
from fitune.plugin.options import parse, to_table, toml_text
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import Fit, MemoryStrategy
from fitune.plugin.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def with_strategy(recipe: Recipe, name: str, **options: object) -> Change:
    """The recipe's memory strategies with this one: its options changed where it stands, or put last."""
    tables = [use.table() for use in recipe.strategies]
    for table in tables:
        if table["use"] == name:
            table.update(options)
            break
    else:
        tables.append({"use": name, **options})
    return "memory.strategy", tables


def without_strategy(recipe: Recipe, name: str) -> Change:
    """The recipe's memory strategies without this one."""
    return "memory.strategy", [use.table() for use in recipe.strategies if use.record.name != name]


def without_option(recipe: Recipe, name: str, option: str) -> Change:
    """The recipe's memory strategies, this option of one of them left out."""
    tables = [use.table() for use in recipe.strategies]
    return "memory.strategy", [{k: v for k, v in t.items() if t["use"] != name or k != option} for t in tables]


def strategy_options(recipe: Recipe, name: str) -> Mapping[str, object] | None:
    """The options of a memory strategy of the recipe; None if it is not used."""
    found = [use.table() for use in recipe.strategies if use.record.name == name]
    return found[0] if found else None


def accumulated(recipe: Recipe, registry: Registry, times: int) -> Change | None:
    """So many times the micro-batches to a step, where the recipe says how many; None if nothing sets them."""
    if recipe.train.accumulation is not None:
        return "train.accumulation", recipe.train.accumulation * times
    named = [(use.record, getattr(use.options, use.record.accumulates)) for use in recipe.strategies
             if use.record.accumulates]  # fmt: skip
    if named:
        record, steps = named[-1]
        return with_strategy(recipe, record.name, **{record.accumulates: steps * times})
    first = accumulating(registry)
    return None if first is None else with_strategy(recipe, first.name, **{first.accumulates: times})


def levers_of_strategies(
    recipe: Recipe, registry: Registry, config: PreTrainedConfig, processes: int
) -> Iterator[Lever]:
    """Those that `Fit` tells of, and then every strategy that the recipe does not name, with its default options."""
    records = [record for record in strategies_of(registry) if _goes_with(record, processes)]
    for record in records:
        if record.fit is not None:
            yield from _of_fit(recipe, record, record.fit, config)
    for record in records:
        if strategy_options(recipe, record.name) is None:
            yield _with(recipe, record)


def _goes_with(record: MemoryStrategy[Any], processes: int) -> bool:
    """Whether a run of so many processes can have it: some are made for several, some for one."""
    return "gradients" not in record.makes if processes > 1 else not is_of_several(record)


def _with(recipe: Recipe, record: MemoryStrategy[Any]) -> Lever:
    """A strategy that the recipe does not name, with its default options, and what has to go with it."""
    change = with_strategy(recipe, record.name)
    if "gradients" not in record.makes or not recipe.train.max_grad_norm:
        return Lever(name=record.name, changes=(change,), exact=record.exact, remark=record.summary)
    changes = change, ("train.max_grad_norm", 0.0)
    return Lever(name=f"{record.name}, without clipping", changes=changes, exact=False, remark=record.summary)


def _of_fit(recipe: Recipe, record: MemoryStrategy[Any], fit: Fit, config: PreTrainedConfig) -> Iterator[Lever]:
    """More or fewer layers, and of a strategy that the recipe names other options, or to do without it."""
    table = strategy_options(recipe, record.name)
    if fit.layers:
        yield from _layers(recipe, record, table, config)
    if table is None:
        return
    yield from _settings(recipe, record, fit, table)
    for option in fit.halves:
        yield from _halved(recipe, record, option, table.get(option))
    if fit.layers:
        yield Lever(name=f"without {record.name}", changes=(without_strategy(recipe, record.name),), exact=record.exact)


def _layers(
    recipe: Recipe, record: MemoryStrategy[Any], table: Mapping[str, object] | None, config: PreTrainedConfig
) -> Iterator[Lever]:
    option = record.fit.layers if record.fit else ""
    layers: int = getattr(config.get_text_config(), "num_hidden_layers", 0)
    said = layers if table is None else table.get(option) or layers
    now, half = 0 if table is None else int(str(said)), layers // 2
    if now < half:
        change = with_strategy(recipe, record.name, **{option: half})
        yield Lever(name=f"{record.name}, the first {half} of {layers} layers", changes=(change,), exact=record.exact)
    if table is not None and now < layers:
        change = without_option(recipe, record.name, option)
        yield Lever(name=f"{record.name}, all {layers} layers", changes=(change,), exact=record.exact)


def _settings(recipe: Recipe, record: MemoryStrategy[Any], fit: Fit, table: Mapping[str, object]) -> Iterator[Lever]:
    """The settings that the recipe does not have; an option that is halved is left to that."""
    settings = (*fit.settings, *fit.compared)
    named = [option for option in dict.fromkeys(key for one in settings for key in one) if option not in fit.halves]
    for setting in settings:
        options, problems = parse(record.options, setting)
        if problems:
            continue
        values = {option: value for option, value in to_table(options).items() if option in named}
        changed = {option: value for option, value in values.items() if table.get(option) != value}
        if changed:
            words = ", ".join(f"{_words(fit, option)} {_text(value)}" for option, value in changed.items())
            change = with_strategy(recipe, record.name, **values)
            yield Lever(name=f"{record.name}, {words}", changes=(change,), exact=record.exact or None)


def _halved(recipe: Recipe, record: MemoryStrategy[Any], option: str, number: object) -> Iterator[Lever]:
    if record.fit is not None and isinstance(number, int) and number > 1:
        change = with_strategy(recipe, record.name, **{option: number // 2})
        words = f"{_words(record.fit, option)} {number} to {number // 2} tokens"
        yield Lever(name=f"{record.name}, {words}", changes=(change,), exact=record.exact or None)


def _words(fit: Fit, option: str) -> str:
    return fit.words.get(option, option)


def _text(value: object) -> str:
    return value if isinstance(value, str) else toml_text(value)
