"""An options class that no recipe could fill is refused as it is registered, with all that is wrong in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge

from fitune import DataStage, ModelLoader, Objective, PluginError, hookimpl
from fitune.plugin.options import parse
from fitune.plugin.registry import Registry
from support.made_plugins import giving, strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A table."""

    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Good:
    """All that a recipe can give."""

    switch: bool = False
    number: Annotated[int, Ge(0)] | None = None
    rate: float = 1.0
    word: Literal["a", "b"] = "a"
    path: Path | None = None
    names: tuple[str, ...] = ()
    pairs: list[tuple[str, int]] = field(default_factory=list)
    ranks: Mapping[str, int] = field(default_factory=dict)
    tables: Sequence[Inner] = ()


def test_what_a_recipe_can_give_is_taken() -> None:
    Registry().register(giving(strategy("mine", options=Good)), "mine")
    table = {"number": 3, "ranks": {"a": 1}, "pairs": [["a", 1]], "tables": [{"sizes": [1]}], "path": "p"}
    value, problems = parse(Good, table)
    assert problems == []
    assert value == Good(number=3, ranks={"a": 1}, pairs=[("a", 1)], tables=[Inner(sizes=(1,))], path=Path("p"))


def _cause(options: type) -> str:
    with pytest.raises(PluginError) as raised:
        Registry().register(giving(strategy("mine", options=options)), "mine")
    return raised.value.message.removeprefix("plugin mine: ")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (dict, "is a dict of nobody knows what: say of which, e.g. dict[str, int]"),
        (tuple, "is a tuple of nobody knows what: say of which, e.g. tuple[str, ...]"),
        (list, "is a list of nobody knows what"),
        (dict[int, str], "has keys that are no strings"),
        (tuple[dict, ...], "is a dict of nobody knows what"),  # type: ignore[type-arg]
        (object, "is of type object: a recipe gives true or false, numbers"),
        (Any, "is of type Any"),
        (set[str], "is of type set"),
        (bytes | None, "is of type bytes"),
        (make_dataclass("Table", [("inside", complex)]), "is of type complex"),
    ],
)
def test_a_type_that_no_recipe_can_give_is_refused(kind: Any, why: str) -> None:
    cause = _cause(make_dataclass("Options", [("odd", kind)], kw_only=True))
    assert cause.startswith(f'the MemoryStrategy "mine" has options that no recipe could give: "odd" {why}')


def test_all_that_is_wrong_is_said_at_once() -> None:
    fields: list[tuple[str, Any]] = [("use", str), ("right", int), ("odd", dict), ("other", bytes)]
    cause = _cause(make_dataclass("Options", fields, kw_only=True))
    assert '"use" is a key of the core\'s, which names the provider; "odd" is a dict of' in cause
    assert '; "other" is of type bytes' in cause
    assert "right" not in cause


def test_keys_that_stand_beside_the_options_are_the_cores() -> None:
    def named(name: str) -> Any:
        return make_dataclass("Options", [(name, float)], kw_only=True)

    class Source:
        @hookimpl
        def ft_data_stages(self) -> list[DataStage[Any]]:
            sound: Any = {"summary": "s", "gives": "rows", "make": id}
            return [DataStage(name="mine", takes="nothing", options=named("weight"), **sound)]

    class Aim:
        @hookimpl
        def ft_objectives(self) -> list[Objective[Any]]:
            return [Objective(name="mine", summary="s", options=named("reference"), make=id)]  # type: ignore[arg-type]

    class Loader:
        @hookimpl
        def ft_model_loaders(self) -> list[ModelLoader[Any]]:
            sound: Any = {"summary": "s", "load_tokenizer": id, "load_model": id}
            return [ModelLoader(name="mine", options=named("add_tokens"), **sound)]

    for plugin, key in ((Source(), "weight"), (Aim(), "reference"), (Loader(), "add_tokens")):
        with pytest.raises(PluginError, match=f'"{key}" is a key of the core\'s, which stands beside the options'):
            Registry().register(plugin, "mine")
    Registry().register(giving(strategy("mine", options=named("weight"))), "mine")
