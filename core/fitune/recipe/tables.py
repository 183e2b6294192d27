"""Tables of a recipe: each read strictly as a dataclass, or served by the provider that it names; problems add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from fitune.errors import FtError, PluginError, Problem, RecipeError, described
from fitune.plugin.aged_options import aged
from fitune.plugin.deprecation import Release, keys_of
from fitune.plugin.options import is_table, parse, toml_text
from fitune.plugin.paths import located
from fitune.plugin.provided import Provided, age_of
from fitune.plugin.recipe import Memory, Use, Weight
from fitune.plugin.records import Provider
from fitune.plugin.registry import KINDS, Registry
from fitune.recipe.checks import KEY, is_file, untrusted
from fitune.recipe.foreign.told import told_better
from fitune.recipe.source import Key, TomlSource

MOST = 50
"""Problems that are told at once, at most."""

T = TypeVar("T")
P = TypeVar("P", bound=Provider)


def without(table: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A copy of a table without these keys."""
    return {key: value for key, value in table.items() if key not in names}


def split(key: str) -> Key:
    """A dotted key as a path: names, and numbers where a part is one; () of an empty key."""
    return tuple(int(p) if p.isdigit() else p for p in key.split(".")) if key else ()


class Tables:
    """The tables of one recipe. What is wrong in them is collected with its line, and raised when that is asked for."""

    def __init__(self, source: TomlSource, registry: Registry, *, trains: bool = True) -> None:
        """`trains` says whether something is to be trained: otherwise what keeps from that alone is no problem."""
        self.source, self.registry, self.trains = source, registry, trains
        self.problems: list[tuple[int, str]] = []
        """Lines of the recipe, and what is wrong there."""
        self.notices: list[tuple[int, str]] = []
        """Lines of the recipe, and what is deprecated there."""

    # ------------------------------------------------------------------------------------------------- problems

    def add(self, key: Key, problem: Problem) -> None:
        """Note a problem with this key."""
        line, place = self.source.where(key)
        self.problems.append((line, f"{place}: {problem.sentence()}"))

    def note(self, key: Key, problem: Problem) -> None:
        """Note what is deprecated at this key; nothing of a run's own recipe, which nobody is to change."""
        line, place = self.source.where(key)
        if not self.source.of_run:
            self.notices.append((line, f"{place}: {problem.sentence()}"))

    def told(self) -> tuple[str, ...]:
        """What is deprecated, in the order of the recipe's lines; and what plugins use that is."""
        plugins = (f"plugin {p.name}: {text}" for p in self.registry.plugins.values() for text in p.notices)
        lines = (text for _, text in sorted(self.notices, key=lambda notice: notice[0]))
        return tuple(dict.fromkeys([*lines, *plugins]))

    def raise_problems(self) -> None:
        """Raise `RecipeError` if there are problems, in the order of the recipe's lines."""
        if self.problems:
            told = [text for _, text in sorted(self.problems, key=lambda problem: problem[0])]
            more = [f"{self.source.path}: {len(told) - MOST:,} more problems"] if len(told) > MOST else []
            raise RecipeError([*told[:MOST], *more])

    # --------------------------------------------------------------------------------------------------- tables

    def table(self, name: str) -> dict[str, Any]:
        """The values of a table of the core; none if it is not there, or is no table, which is a problem."""
        value = self.source.values.get(name, {})
        if isinstance(value, dict):
            return value
        self._not_a_table((name,), value)
        return {}

    def _not_a_table(self, at: Key, value: object) -> None:
        names = [part for part in at if isinstance(part, str)]
        right, wrong = f"[{'.'.join(names)}]", f"[[{'.'.join(names)}]]"
        if isinstance(at[-1], int):
            right, wrong = wrong, right
        fix = f"Write {right}, not {wrong}" if is_table(value) else f"Write {right}, and its keys on the lines below"
        self.add(at, Problem(what=f'"{names[-1]}" is {"an array of tables" if is_table(value) else "not a table"}',
                              fix=fix))  # fmt: skip

    def parse(
        self,
        options: type[T],
        table: Mapping[str, Any],
        at: Key,
        *,
        known: Sequence[str] = (),
        release: Release | None = None,
    ) -> T | None:
        """Read a table as a dataclass; `known` names keys that are read elsewhere, to suggest them too, and `release`
        is whose options these are, by default fitune's.
        """
        before = len(self.problems)
        value, problems = parse(options, self._aged(options, table, at, release), known=known)
        place = f"[{'.'.join(part for part in at if isinstance(part, str))}]"
        for problem in problems:
            self.add((*at, *split(problem.key)), told_better(problem, place, self.registry))
        return None if value is None or len(self.problems) > before else self._anchor(value, at)

    def _aged(self, options: type, table: Mapping[str, Any], at: Key, release: Release | None) -> Mapping[str, Any]:
        """The table without old names and what is gone, which is told."""
        over = partial(self._is_over, at)
        found = aged(options, table, release, of_run=self.source.of_run, over=over)
        for problem in found.problems:
            self.add((*at, *split(problem.key)), problem)
        for notice in found.notices:
            self.note((*at, *split(notice.key)), notice)
        for old, new in found.moved.items():
            self.source.move((*at, *split(old)), (*at, *split(new)))
        return found.table

    def _is_over(self, at: Key, key: str) -> bool:
        return self.source.overridden((*at, *split(key))) is not None

    def _anchor(self, value: T, at: Key) -> T:
        """Make relative paths absolute: from the recipe's directory, or, given by `--set`, from the working one. Those
        of a run that has moved are sought where they lie to it now, and where they were.
        """
        changes: dict[str, object] = {}
        for field in dataclasses.fields(cast(Any, value)):
            item = getattr(value, field.name)
            given = self.source.overridden((*at, field.name))
            base = Path.cwd() if given else self.source.path.parent.resolve()
            was = None if given else self.source.was
            if isinstance(item, Path):
                changes[field.name] = located(base, item, was)
            elif isinstance(value, Memory) and is_file(item):
                changes[field.name] = str(located(base, Path(item), was))
            elif isinstance(item, tuple) and any(isinstance(part, Path) for part in item):
                changes[field.name] = tuple(located(base, p, was) if isinstance(p, Path) else p for p in item)
        return cast(T, dataclasses.replace(cast(Any, value), **changes)) if changes else value

    # ---------------------------------------------------------------------------------------------- provided tables

    def use(self, record_type: type[P], at: Key, *, look: bool = True, known: Sequence[str] = ()) -> Use[P] | None:
        """The table at this key, served by the provider that it names; without `look`, its own check is left out.
        `known` are keys of it that are read elsewhere.
        """
        table = self._inside(at)
        names = ", ".join(self.registry.names(record_type))
        if table is None:
            self.add(at, Problem(what=f"the table [{at[0]}] is missing", fix=f"Add it, with use = one of: {names}"))
            return None
        if not isinstance(table, dict):
            self._not_a_table(at, table)
            return None
        name = table.get("use")
        if not isinstance(name, str):
            what = '"use" is missing' if name is None else f'"use" is {toml_text(name)}, not a string'
            self.add((*at, "use"), Problem(what=what, fix=f"Name one of: {names}"))
            return None
        others = {p.kind for p in self.registry.provided if p.record.name == name}
        if others and KINDS[record_type] not in others:
            what = f'"{name}" is {_a(min(others))}, not {_a(KINDS[record_type])}'
            self.add((*at, "use"), Problem(what=what, fix=f"Name one of: {names}"))
            return None
        try:
            one = self.registry.provider(record_type, name, ever=self.source.of_run)
        except PluginError as error:
            self.add((*at, "use"), Problem(what=error.message))
            return None
        for notice in age_of(one, self.registry.plugins[one.plugin], name):
            self.note((*at, "use"), notice)
        record = cast(P, one.record)
        core = ("use", *(keys_of(Weight) if at[-2:-1] == ("source",) else known))
        use = self.with_options(record, without(table, *core), at, look=look)
        return None if use is None else dataclasses.replace(use, given=self._given(one, name))

    def name(self, record_type: type[Any], name: str, at: Key) -> str:
        """The name that a provider has now which is named so at this key; the same where there is none."""
        try:
            one = self.registry.provider(record_type, name, ever=self.source.of_run)
        except PluginError:
            return name
        if name in {mark.name for mark in one.record.formerly}:
            for notice in age_of(one, self.registry.plugins[one.plugin], name):
                self.note(at, notice)
            return one.record.name
        return name

    def _given(self, one: Provided, name: str) -> str:
        """How the recipe names a provider, where that is not its name alone, nor one that it had."""
        if name == one.record.name:
            return ""
        return name if name.endswith(f":{one.record.name}") else self.registry.spelled(one.record)

    def with_options(self, record: P, table: Mapping[str, Any], at: Key, *, look: bool = True) -> Use[P] | None:
        """The record with its options, read from this table and checked; None if there is a problem."""
        one = self.registry.provided_by(record)
        release = None if one is None else self.registry.plugins[one.plugin].release
        options = self.parse(record.options, table, at, release=release)
        if (code := untrusted(options, self.registry.trusts_remote_code)) is not None:
            self.add((*at, KEY), code)
            return None
        if options is None or not look:
            return None if options is None else Use(record=record, options=options)
        before = len(self.problems)
        try:
            for problem in record.check(options):
                if (self.trains or not problem.to_train) and not (problem.to_run and self.registry.forecasts):
                    self.add((*at, *split(problem.key)), problem)
        except FtError as error:
            self.add(at, Problem(what=error.message))
        except Exception as error:
            raise PluginError(f'the check of "{record.name}" failed: {described(error)}') from error
        return Use(record=record, options=options) if len(self.problems) == before else None

    def uses(
        self, record_type: type[P], table: Mapping[str, Any], at: Key, *, look: bool = True
    ) -> tuple[Use[P], ...] | None:
        """An array of tables, each served by the provider that it names; None if any has a problem."""
        items = table.get(cast(str, at[-1]), [])
        if not isinstance(items, list):
            name = ".".join(map(str, at))
            fix = f"Write [[{name}]], not [{name}]" if is_table(items) else f"Write [[{name}]], and its keys below"
            self.add(at, Problem(what=f'"{at[-1]}" is not an array of tables', fix=fix))
            return None
        serve = self._source if at[-1] == "source" else self.use
        found = [serve(record_type, (*at, number), look=look) for number in range(len(items))]
        return tuple(f for f in found if f is not None) if None not in found else None

    def _inside(self, at: Key) -> Any:
        value: Any = self.source.values
        for part in at:
            value = value.get(part) if isinstance(value, dict) else value[cast(int, part)]
        return value

    def _source(self, record_type: type[P], at: Key, *, look: bool = True) -> Use[P] | None:
        """A source's table: a plugin's, and the key "weight", which is the core's."""
        table = self._inside(at)
        given = {key: table[key] for key in keys_of(Weight) if key in table} if isinstance(table, dict) else {}
        if not given:
            return self.use(record_type, at, look=look)
        weight = self.parse(Weight, given, at)
        use = self.use(record_type, at, look=look)
        return None if use is None or weight is None else dataclasses.replace(use, weight=weight.weight)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
