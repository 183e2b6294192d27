"""What records say of each other is found as a recipe is read: what excludes what, what is missing, what is twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitune import MemoryStrategy, PluginError, Recipe, RecipeError, Strategy
from fitune.memory.fit.choices import composed
from fitune.plugin.options import describe
from fitune.plugin.registry import Registry
from fitune.plugin.relations import ROLES
from fitune.testing import open_registry
from support.commands import Capture, refused
from support.made_plugins import giving, strategy

Read = Callable[..., Recipe]
MADE = [
    one.record
    for one in open_registry().provided
    if isinstance(one.record, MemoryStrategy) and not any(o.default is None for o in describe(one.record.options))
]
"""Strategies whose options all have defaults."""


def _told(read: Read, *records: Any, strategies: str) -> list[str]:
    with pytest.raises(RecipeError) as raised:
        read(f"memory.strategy=[{strategies}]", "train.max_grad_norm=0", registry=open_registry(giving(*records)))
    return [line[line.index("]: ") + 3 :] for line in raised.value.lines]


def test_two_that_exclude_each_other_are_told_once_with_why(read: Read) -> None:
    one, two = strategy("one", conflicts_with={"two": "both move it"}), strategy("two", conflicts_with={"one": "no"})
    assert _told(read, one, two, strategies='{use="two"}, {use="one"}') == [
        '"two" cannot be used with "one": no. Remove one of the two'
    ]


def test_a_strategy_may_exclude_what_is_of_another_kind(read: Read) -> None:
    for name in ("lora", "jsonl", "chat", "sft", "hf", "console"):
        told = _told(read, strategy("one", conflicts_with={name: "it may not"}), strategies='{use="one"}')
        assert told == [f'"one" cannot be used with "{name}": it may not. Remove one of the two']


def test_what_is_missing_is_told_with_where_to_write_it(read: Read) -> None:
    for name, where in (("dpo", "Write [objective] with"), ("nf4", "Write a [[memory.strategy]] with")):
        told = _told(read, strategy("one", requires={name: "it adds to that"}), strategies='{use="one"}')
        assert told == [f'"one" needs "{name}": it adds to that. {where} use = "{name}", or remove it']
    told = _told(read, strategy("one", requires={"nowhere": "so"}), strategies='{use="one"}')
    assert told == ['"one" needs "nowhere": so. Install what has "nowhere", or remove it']
    read('memory.strategy=[{use="one"}]', registry=open_registry(giving(strategy("one", requires={"lora": "so"}))))


@pytest.mark.parametrize("role", ROLES)
def test_what_a_run_has_once_is_made_by_one_alone(role: Any, read: Read) -> None:
    one, two = (strategy(name, makes=(role,)) for name in ("one", "two"))
    found = _told(read, one, two, strategies='{use="one"}, {use="two"}')
    assert found == [f'"one" and "two" both {ROLES[role]}. Keep one of them']


def test_ft_check_says_so_before_anything_is_loaded(recipe_path: Path, capsys: Capture) -> None:
    (recipe_path.parent / "model" / "model.safetensors").unlink()
    sets = ("--set", 'memory.strategy=[{use="nf4"}]', "--set", 'adapter={use="none"}')
    told = refused("check", str(recipe_path), *sets, capsys=capsys)
    assert '"nf4" cannot be used with "none": it trains every weight, and 4-bit ones have no gradient' in told


def test_a_fit_composes_nothing_that_a_recipe_may_not_name(read: Read) -> None:
    registry = open_registry(giving(strategy("one", conflicts_with={"lora": "it may not"})))
    with pytest.raises(RecipeError, match='"one" cannot be used with "lora"'):
        composed(read(registry=registry), registry, [{"use": "one"}], 1, None)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"makes": ("optimiser",)}, 'makes "optimiser". Did you mean "optimizer"?'),
        ({"makes": "loss"}, 'makes "loss"'),
        ({"conflicts_with": ("lora",)}, "has a conflicts_with that is no mapping of names, each to why"),
        ({"requires": {"lora": ""}}, "has a requires that is no mapping of names, each to why"),
        ({"requires": {"mine": "so"}}, "names itself in requires"),
    ],
)
def test_what_a_record_says_wrongly_breaks_its_plugin(fields: dict[str, Any], wrong: str) -> None:
    with pytest.raises(PluginError) as raised:
        Registry().register(giving(strategy("mine", **fields)), "mine")
    assert f'the MemoryStrategy "mine" {wrong}' in raised.value.message


@pytest.mark.parametrize("record", MADE, ids=lambda record: record.name)
def test_built_in_strategies_that_make_an_optimizer_say_so(record: Any) -> None:
    made = record.make(record.options())
    overrides = type(made).make_optimizer is not Strategy.make_optimizer
    assert overrides == ("optimizer" in record.makes)
    owns = type(made).own_gradients is not Strategy.own_gradients
    assert owns == ("gradients" in record.makes)
