"""Reads a recipe: TOML and overrides in, a `Recipe` or every one of its problems out. No weight is read, no torch."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from fitune.errors import FtError, PluginError, Problem, RecipeError, nearest
from fitune.options import parse
from fitune.recipe import Data, Evaluation, General, Log, Recipe, Train, Use
from fitune.records import Adapter, DataStage, MemoryStrategy, ModelLoader, Provider
from fitune.registry import Registry
from fitune.toml_source import Key, TomlSource

T = TypeVar("T")
P = TypeVar("P", bound=Provider)

TABLES = ("model", "adapter", "memory", "data", "train", "eval", "log")
LOCAL_SOURCE = "jsonl"
"""The source that serves `[data] path`."""
CLOSING_STAGES = ("tokenize", "truncate", "pad")
"""Stages that are put behind a recipe's own, each where the chain takes it and the recipe does not name it."""


def read_recipe(path: Path, registry: Registry, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe. Raises `RecipeError` with all of its problems, a line each."""
    return _Reader(TomlSource.read(path, overrides), registry).read()


class _Reader:
    """Collects problems while it goes through the tables; gives a recipe only if there are none."""

    def __init__(self, source: TomlSource, registry: Registry) -> None:
        self.source = source
        self.registry = registry
        self.problems: list[str] = []

    def read(self) -> Recipe:
        general = self._general()
        self._load_plugins(general)
        memory, data, evaluation = (self._table(name) for name in ("memory", "data", "eval"))
        self._unknown("memory", memory, ("strategy",))
        parts: dict[str, Any] = {
            "general": general,
            "model": self._use(ModelLoader, ("model",)),
            "adapter": self._use(Adapter, ("adapter",)),
            "strategies": self._strategies(memory),
            "data": self._parse(Data, _without(data, "source", "stage"), ("data",), known=["source", "stage"]),
            "train": self._parse(Train, self._table("train"), ("train",)),
            "evaluation": self._parse(Evaluation, _without(evaluation, "source"), ("eval",), known=["source"]),
            "log": self._log(),
        }
        parts |= self._data(data, evaluation, parts["data"])
        if self.problems:
            raise RecipeError(self.problems)
        recipe = Recipe(path=self.source.path, **parts)
        for _, found in self.registry.call("ft_check", recipe=recipe):
            for problem in found or ():
                self._add(_split(problem.key), problem)
        if self.problems:
            raise RecipeError(self.problems)
        return recipe

    # ----------------------------------------------------------------------------------------------- core tables

    def _general(self) -> General | None:
        names = [f.name for f in dataclasses.fields(General)]
        values = {k: v for k, v in self.source.values.items() if k in names or k not in TABLES}
        return self._parse(General, values, (), known=TABLES)

    def _load_plugins(self, general: General | None) -> None:
        for number, file in enumerate(general.plugins if general else ()):
            try:
                self.registry.load_file(self.source.path.parent / file)
            except PluginError as error:
                self._add(("plugins", number), Problem(what=error.message))

    def _strategies(self, memory: Mapping[str, Any]) -> tuple[Use[MemoryStrategy[Any]], ...] | None:
        uses = self._uses(MemoryStrategy, memory, ("memory", "strategy"))
        seen: set[str] = set()
        for number, use in enumerate(uses or ()):
            if use.record.name in seen:
                what = f'"{use.record.name}" stands here a second time'
                self._add(("memory", "strategy", number), Problem(what=what, fix="Keep one of them"))
            seen.add(use.record.name)
        return uses

    def _log(self) -> Log | None:
        log = self._parse(Log, self._table("log"), ("log",))
        if log is not None and log.tracker is not None and importlib.util.find_spec(log.tracker) is None:
            fix = f"Install it: pip install {log.tracker}"
            self._add(("log", "tracker"), Problem(what=f'the tracker "{log.tracker}" is not installed', fix=fix))
        return log

    def _data(
        self, data: Mapping[str, Any], evaluation: Mapping[str, Any], plain: Data | None
    ) -> dict[str, tuple[Use[DataStage[Any]], ...] | None]:
        before = len(self.problems)
        sources = self._uses(DataStage, data, ("data", "source"))
        stages = self._uses(DataStage, data, ("data", "stage"))
        eval_sources = self._uses(DataStage, evaluation, ("eval", "source"))
        if plain is not None and plain.path is not None and sources is not None:
            sources = self._local(plain.path)
        if len(self.problems) == before and not sources:
            self._add(("data",), Problem(what="no data to train on", fix="Add a [[data.source]]"))
        elif sources and stages is not None and eval_sources is not None:
            stages = self._chain(sources, stages, eval_sources)
        return {"sources": sources, "stages": stages, "eval_sources": eval_sources}

    # ------------------------------------------------------------------------------------------------- problems

    def _add(self, key: Key, problem: Problem) -> None:
        self.problems.append(f"{self.source.where(key)}: {problem.sentence()}".replace(":: ", ": "))

    # --------------------------------------------------------------------------------------------------- tables

    def _table(self, name: str) -> dict[str, Any]:
        value = self.source.values.get(name, {})
        if isinstance(value, dict):
            return value
        self._add((name,), Problem(what=f'"{name}" is not a table', fix=f"Write [{name}] on a line of its own"))
        return {}

    def _unknown(self, name: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in table:
            if key not in known:
                self._add((name, key), Problem(what=f'unknown key "{key}"', fix=nearest(key, known)))

    def _parse(self, options: type[T], table: Mapping[str, Any], at: Key, *, known: Sequence[str] = ()) -> T | None:
        """Read a table as a dataclass; `known` names keys that are read elsewhere, to suggest them too."""
        value, problems = parse(options, table)
        for problem in problems:
            if problem.what.startswith("unknown key"):
                name = problem.key.rpartition(".")[2]
                names = [f.name for f in dataclasses.fields(cast(Any, options))]
                problem = dataclasses.replace(problem, fix=nearest(name, [*names, *known]))
            self._add((*at, *_split(problem.key)), problem)
        return None if value is None else self._anchor(value, at)

    def _anchor(self, value: T, at: Key) -> T:
        """Make relative paths absolute: from the recipe's directory, or, given by `--set`, from the working one."""
        changes: dict[str, object] = {}
        for field in dataclasses.fields(cast(Any, value)):
            item = getattr(value, field.name)
            if isinstance(item, Path):
                base = Path.cwd() if self.source.overridden((*at, field.name)) else self.source.path.parent.resolve()
                changes[field.name] = base / item.expanduser()
        return cast(T, dataclasses.replace(cast(Any, value), **changes)) if changes else value

    # ---------------------------------------------------------------------------------------------- provided tables

    def _use(self, record_type: type[P], at: Key) -> Use[P] | None:
        """The table at this key, served by the provider that it names."""
        table = self._inside(at)
        if table is None:
            names = ", ".join(self.registry.names(record_type))
            self._add(at, Problem(what=f"the table [{at[0]}] is missing", fix=f"Add it, with use = one of: {names}"))
            return None
        if not isinstance(table, dict):
            self._add(at, Problem(what="not a table", fix='Write a table with a key "use"'))
            return None
        name = table.get("use")
        if not isinstance(name, str):
            names = ", ".join(self.registry.names(record_type))
            self._add(at, Problem(what='"use" is missing' if name is None else '"use" is not a string',
                                  fix=f"Name one of: {names}"))  # fmt: skip
            return None
        try:
            record = self.registry.find(record_type, name)
        except PluginError as error:
            self._add((*at, "use"), Problem(what=error.message))
            return None
        return self._with_options(record, _without(table, "use"), at)

    def _with_options(self, record: P, table: Mapping[str, Any], at: Key) -> Use[P] | None:
        options = self._parse(record.options, table, at)
        if options is None:
            return None
        before = len(self.problems)
        try:
            for problem in record.check(options):
                self._add((*at, *_split(problem.key)), problem)
        except FtError as error:
            self._add(at, Problem(what=error.message))
        except Exception as error:
            raise PluginError(f'the check of "{record.name}" failed: {type(error).__name__}: {error}') from error
        return Use(record=record, options=options) if len(self.problems) == before else None

    def _uses(self, record_type: type[P], table: Mapping[str, Any], at: Key) -> tuple[Use[P], ...] | None:
        """An array of tables, each served by the provider that it names; None if any has a problem."""
        items = table.get(cast(str, at[-1]), [])
        if not isinstance(items, list):
            name = ".".join(map(str, at))
            self._add(at, Problem(what=f'"{at[-1]}" is not an array of tables', fix=f"Write [[{name}]]"))
            return None
        found = [self._use(record_type, (*at, number)) for number in range(len(items))]
        return tuple(f for f in found if f is not None) if None not in found else None

    def _inside(self, at: Key) -> Any:
        value: Any = self.source.values
        for part in at:
            value = value.get(part) if isinstance(value, dict) else value[cast(int, part)]
        return value

    # ----------------------------------------------------------------------------------------------------- data

    def _local(self, path: Path) -> tuple[Use[DataStage[Any]], ...] | None:
        record = self.registry.find(DataStage, LOCAL_SOURCE)
        use = self._with_options(record, {"path": str(path)}, ("data",))
        return None if use is None else (use,)

    def _chain(
        self,
        sources: Sequence[Use[DataStage[Any]]],
        stages: Sequence[Use[DataStage[Any]]],
        eval_sources: Sequence[Use[DataStage[Any]]],
    ) -> tuple[Use[DataStage[Any]], ...] | None:
        """Check that each stage takes what the one before gives, and close the chain up to batches."""
        for name, uses in (("data", sources), ("eval", eval_sources)):
            for number, use in enumerate(uses):
                if use.record.takes != "nothing":
                    fix = f"Move it to [[data.stage]]; sources: {', '.join(self._names_that_take('nothing'))}"
                    self._add((name, "source", number), Problem(what=f'"{use.record.name}" is not a source', fix=fix))
                elif use.record.gives != sources[0].record.gives:
                    what = f'"{use.record.name}" gives {use.record.gives}, "{sources[0].record.name}" does not'
                    self._add((name, "source", number), Problem(what=what, fix="Use sources of one kind"))
        chain = list(stages)
        gives = sources[0].record.gives if sources else "rows"
        for number, use in enumerate(stages):
            if use.record.takes != gives:
                fix = f"Stages that take {gives}: {', '.join(self._names_that_take(gives)) or 'none'}"
                what = f'"{use.record.name}" takes {use.record.takes}, but what comes to it is {gives}'
                self._add(("data", "stage", number), Problem(what=what, fix=fix))
                return None
            gives = use.record.gives
        for name in CLOSING_STAGES:
            record = self.registry.find(DataStage, name)
            if record.takes == gives and all(use.record.name != name for use in chain):
                chain.append(Use(record=record, options=record.options()))
                gives = record.gives
        if gives != "batches":
            fix = f"Add a [[data.stage]] that takes {gives}: {', '.join(self._names_that_take(gives)) or 'none'}"
            self._add(("data",), Problem(what=f"the data stages end with {gives}, not with batches", fix=fix))
            return None
        return tuple(chain)

    def _names_that_take(self, flow: str) -> list[str]:
        return sorted(
            p.record.name for p in self.registry.provided if isinstance(p.record, DataStage) and p.record.takes == flow
        )


def _without(table: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in names}


def _split(key: str) -> Key:
    return tuple(int(p) if p.isdigit() else p for p in key.split(".")) if key else ()
