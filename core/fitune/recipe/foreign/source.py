"""A configuration of another tool as it is read: its values, and an account of what became of each of its keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import yaml

from fitune.errors import RecipeError
from fitune.recipe.foreign.key import Known, Outcome, Tool

LARGEST = 1 << 20
"""Characters of a configuration, at most."""

MOST = 20_000
"""Values in it, at most: aliases of YAML make many of few."""

SHOWN = 60
"""Characters of a value that are shown, at most."""

T = TypeVar("T")

EMPTY: tuple[object, ...] = (None, "", [], {})
"""What says nothing."""

OFF: tuple[object, ...] = (False, 0, "no", "none", "off", "false")
"""What switches a thing off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What became of a key."""

    key: str
    value: str
    """As it was, in few words."""
    outcome: Outcome
    says: str
    """Where it stands in the recipe, or why it does not."""


@dataclass(slots=True, kw_only=True)
class Source:
    """A configuration, or one of the tables within it."""

    tool: Tool
    values: Mapping[str, Any]
    """With the tool's defaults, where these are other than a recipe's."""
    given: frozenset[str]
    """Keys that the file itself says."""
    prefix: str = ""
    """Of the keys' names: where the table is."""
    accounts: dict[str, Account] = field(default_factory=dict)
    """Of keys that something was done about, by their whole names."""

    def has(self, key: str) -> bool:
        """Whether a key says something."""
        return self.values.get(key) not in EMPTY

    def get(self, key: str, kind: type[T]) -> T | None:
        """A value of this kind; None where there is none. Raises `RecipeError` for one that cannot be of it.

        YAML takes 2e-4 for text, and some tools take texts for numbers.
        """
        value = self.values.get(key)
        if value in EMPTY or (value in ("null", "None") and kind is not str):
            return None
        found = as_kind(value, kind)
        if found is None:
            name = {"int": "whole number", "float": "number", "bool": "true or false", "str": "text"}
            what = f"{self.prefix}{key} is {shown(value)}, which is no {name.get(kind.__name__, kind.__name__)}"
            raise RecipeError([f"{what}. Mend it, or remove it, and convert again"])
        return found

    def converted(self, key: str, says: str) -> None:
        """Note that a key is said in the recipe."""
        self._account(key, "converted", says)

    def needless(self, key: str, why: str) -> None:
        """Note that a recipe need not say it."""
        self._account(key, "not needed", why)

    def could_not(self, key: str, why: str) -> None:
        """Note that nothing here is like it."""
        self._account(key, "could not", why)

    def is_open(self, key: str) -> bool:
        """Whether nothing was done yet about a key that the file says."""
        return key in self.given and self.prefix + key not in self.accounts

    def close(self, known: Mapping[str, Known]) -> None:
        """Give an account of all keys that are open."""
        for key in sorted(self.given):
            if not self.is_open(key):
                continue
            value, one = self.values.get(key), known.get(key)
            if value in EMPTY:
                self.needless(key, "it says nothing")
            elif one is None:
                off = value in OFF and value is not True and not isinstance(value, float)
                why = "a key that ft convert does not know"
                self._account(key, "not needed" if value is False and off else "could not", why)
            elif value in OFF and value is not True and one.fate == "could not":
                self.needless(key, "it is off, as it is here")
            elif one.fate == "not needed" and one.but and value in OFF and value is not True:
                self.could_not(key, one.but)
            elif one.fate == "not needed":
                self.needless(key, one.says.removeprefix("nothing: "))
            elif value in OFF and value is not True:
                self.needless(key, "it is off, as it is here")
            else:
                self.could_not(key, f"it was not read; here: {one.says}" if one.fate == "converted" else one.says)

    def inside(self, key: str, number: int | None, values: Mapping[str, Any]) -> Source:
        """The table within this one at a key, or at a place in its array."""
        at = key if number is None else f"{key}[{number}]"
        return Source(
            tool=self.tool,
            values=values,
            given=frozenset(map(str, values)),
            prefix=f"{self.prefix}{at}.",
            accounts=self.accounts,
        )

    def _account(self, key: str, outcome: Outcome, says: str) -> None:
        if key in self.given:
            name = self.prefix + key
            self.accounts[name] = Account(key=name, value=shown(self.values.get(key)), outcome=outcome, says=says)


def shown(value: object) -> str:
    """A value in few words."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def as_kind(value: object, kind: type[T]) -> T | None:
    """The value as a text, number, yes or no; None where it is none."""
    if kind is bool:
        known = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        return cast("T | None", value if isinstance(value, bool) else known.get(str(value).lower()))
    if kind in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
            whole = int(number) if number == int(number) else None
        except (ValueError, OverflowError):
            return None
        return cast("T | None", whole if kind is int else number)
    if kind is str:
        return cast("T | None", str(value) if isinstance(value, (str, int, float)) else None)
    return value if isinstance(value, kind) else None


def parse(text: str, what: str) -> dict[str, Any]:
    """The values of YAML or JSON. Raises `RecipeError` for what is neither, says a key twice, or is out of bounds."""
    if len(text) > LARGEST:
        raise RecipeError([f"{what} has {len(text):,} characters, and a configuration has at most {LARGEST:,}"])
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        twice = next(_twice(node), None)
        values = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        place = getattr(error, "problem_mark", None)
        line = f":{place.line + 1}" if place is not None else ""
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError([f"{what}{line}: neither YAML nor JSON: {said}"]) from None
    if twice is not None:
        raise RecipeError([f"{what}:{twice[1]}: {twice[0]} is said twice. Remove one of them"])
    if not isinstance(values, dict) or not values:
        raise RecipeError([f"{what}: no table of keys. Give a configuration of TRL, axolotl or LLaMA-Factory"])
    if _number(values) > MOST:
        raise RecipeError([f"{what}: more than {MOST:,} values, and a configuration has some hundred"])
    return {str(key): value for key, value in values.items()}


def _twice(node: Any) -> Iterator[tuple[str, int]]:
    """Keys that stand twice in one table, each with its line; merged ones aside, whose order says which counts."""
    waiting, seen = [node], set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen or isinstance(one, yaml.ScalarNode):
            continue
        seen.add(id(one))
        if isinstance(one, yaml.SequenceNode):
            waiting += one.value
            continue
        keys: set[str] = set()
        for key, value in one.value:
            waiting.append(value)
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in keys:
                    yield key.value, key.start_mark.line + 1
                keys.add(key.value)


def _number(values: object) -> int:
    """How many values there are, counted up to a few more than the most."""
    waiting, found = [values], 0
    while waiting and found <= MOST:
        one = waiting.pop()
        found += 1
        waiting += list(one.values()) if isinstance(one, Mapping) else one if isinstance(one, list) else []
    return found
