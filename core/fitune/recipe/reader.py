"""Reads a recipe: TOML and overrides in, a `Recipe` or every one of its problems out. No weight is read, no torch."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fitune.errors import FtError, PluginError, Problem, RecipeError
from fitune.plugin.options import is_table, parse, toml_text
from fitune.plugin.recipe import Checkpoint, Data, Evaluation, General, Log, Memory, Recipe, Train, Use, Weight
from fitune.plugin.records import Adapter, DataStage, MemoryStrategy, ModelLoader
from fitune.plugin.registry import KINDS, Registry
from fitune.recipe.chain import close_chain
from fitune.recipe.checks import KEY, fit_problems, is_file, name_problem, untrusted
from fitune.recipe.source import Key, TomlSource
from fitune.recipe.tables import P, T, _a, _absolute, _split, _without

TABLES = ("model", "adapter", "memory", "data", "train", "eval", "checkpoint", "log")


def read_recipe(path: Path, registry: Registry, overrides: Sequence[str] = (), *, look: bool = True) -> Recipe:
    """Read and check a recipe; without `look`, its data need not be there. Raises `RecipeError` with all problems."""
    return _Reader(TomlSource.read(path, overrides), registry, look).read()


def read_recipe_text(path: Path, text: str, registry: Registry, overrides: Sequence[str] = ()) -> Recipe:
    """As `read_recipe`, of a text that stands for a file at this path."""
    return _Reader(TomlSource(path, text, overrides), registry, look=True).read()


class _Reader:
    """Collects problems while it goes through the tables; gives a recipe only if there are none."""

    def __init__(self, source: TomlSource, registry: Registry, look: bool) -> None:
        self.source, self.registry, self.look = source, registry, look
        self.problems: list[tuple[int, str]] = []
        """Lines of the recipe, and what is wrong there."""

    def read(self) -> Recipe:
        general = self._general()
        self._load_plugins(general)
        memory, data, evaluation = (self._table(name) for name in ("memory", "data", "eval"))
        parts: dict[str, Any] = {
            "general": general,
            "model": self._use(ModelLoader, ("model",)),
            "adapter": self._use(Adapter, ("adapter",)),
            "memory": self._parse(Memory, _without(memory, "strategy"), ("memory",), known=["strategy"]),
            "strategies": self._strategies(memory),
            "data": self._parse(Data, _without(data, "source", "stage"), ("data",), known=["source", "stage"]),
            "train": self._train(),
            "evaluation": self._evaluation(evaluation),
            "checkpoint": self._parse(Checkpoint, self._table("checkpoint"), ("checkpoint",)),
            "log": self._log(),
        }
        parts |= self._data(data, evaluation, parts["data"])
        self._raise()
        recipe = Recipe(path=self.source.path, **parts)
        for key, problem in fit_problems(recipe, self.registry, self.source.values):
            self._add(key, problem)
        for _, found in self.registry.call("ft_check", recipe=recipe):
            for problem in found or ():
                self._add(_split(problem.key), problem)
        self._raise()
        return recipe

    # ----------------------------------------------------------------------------------------------- core tables

    def _general(self) -> General | None:
        names = [f.name for f in dataclasses.fields(General)]
        values = {k: v for k, v in self.source.values.items() if k in names or k not in TABLES}
        general = self._parse(General, values, (), known=TABLES)
        if general and (wrong := name_problem(general.name)):
            self._add(("name",), wrong)
        return general

    def _load_plugins(self, general: General | None) -> None:
        for file in general.plugins if general else ():
            if not file.is_file():
                self._add(("plugins",), Problem(what=f"no such file: {file}", fix="Give the path of a Python file"))
                continue
            try:
                self.registry.load_file(file)
            except PluginError as error:
                self._add(("plugins",), Problem(what=error.message))

    def _train(self) -> Train | None:
        train = self._parse(Train, self._table("train"), ("train",))
        if train is not None and train.schedule == "constant" and train.warmup_steps:
            what = '"warmup_steps" has no effect with schedule = "constant"'
            self._add(("train", "warmup_steps"), Problem(what=what, fix='Use schedule = "constant_with_warmup"'))
        return train

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

    def _evaluation(self, table: Mapping[str, Any]) -> Evaluation | None:
        evaluation = self._parse(Evaluation, _without(table, "source"), ("eval",), known=["source"])
        if table and evaluation is not None and (evaluation.fraction is None) == (not table.get("source")):
            if evaluation.fraction is None:
                what, fix = "no data to evaluate on", 'Add an [[eval.source]] or "fraction", or remove [eval]'
            else:
                what, fix = '"fraction" has no effect beside an [[eval.source]]', "Keep one of them"
            self._add(("eval",), Problem(what=what, fix=fix))
        if evaluation is not None and not (evaluation.loss or evaluation.exact_match):
            what, fix = "nothing to measure on held-out data", "Set loss or exact_match to true, or remove [eval]"
            self._add(("eval", "loss"), Problem(what=what, fix=fix))
        return evaluation

    def _data(
        self, data: Mapping[str, Any], evaluation: Mapping[str, Any], plain: Data | None
    ) -> dict[str, tuple[Use[DataStage[Any]], ...] | None]:
        before = len(self.problems)
        path = plain.path if plain is not None else None
        # Sources that `path` replaces are read strictly all the same, but need not have their files here.
        sources = self._uses(DataStage, data, ("data", "source"), look=self.look and path is None)
        stages = self._uses(DataStage, data, ("data", "stage"))
        eval_sources = self._uses(DataStage, evaluation, ("eval", "source"), look=self.look)
        if path is not None and sources is not None:
            sources = self._local(path)
        if len(self.problems) == before and not sources:
            self._add(("data",), Problem(what="no data to train on", fix="Add a [[data.source]]"))
        elif sources and stages is not None and eval_sources is not None:
            problems, stages = close_chain(self.registry, sources, stages, eval_sources)
            for key, problem in problems:
                self._add(key, problem)
        return {"sources": sources, "stages": stages, "eval_sources": eval_sources}

    # ------------------------------------------------------------------------------------------------- problems

    def _add(self, key: Key, problem: Problem) -> None:
        line, place = self.source.where(key)
        self.problems.append((line, f"{place}: {problem.sentence()}"))

    def _raise(self) -> None:
        """Raise `RecipeError` if there are problems, in the order of the recipe's lines."""
        if self.problems:
            raise RecipeError([text for _, text in sorted(self.problems, key=lambda problem: problem[0])])

    # --------------------------------------------------------------------------------------------------- tables

    def _table(self, name: str) -> dict[str, Any]:
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
        self._add(at, Problem(what=f'"{names[-1]}" is {"an array of tables" if is_table(value) else "not a table"}',
                              fix=fix))  # fmt: skip

    def _parse(self, options: type[T], table: Mapping[str, Any], at: Key, *, known: Sequence[str] = ()) -> T | None:
        """Read a table as a dataclass; `known` names keys that are read elsewhere, to suggest them too."""
        value, problems = parse(options, table, known=known)
        for problem in problems:
            self._add((*at, *_split(problem.key)), problem)
        return None if value is None else self._anchor(value, at)

    def _anchor(self, value: T, at: Key) -> T:
        """Make relative paths absolute: from the recipe's directory, or, given by `--set`, from the working one."""
        changes: dict[str, object] = {}
        for field in dataclasses.fields(cast(Any, value)):
            item = getattr(value, field.name)
            base = Path.cwd() if self.source.overridden((*at, field.name)) else self.source.path.parent.resolve()
            if isinstance(item, Path):
                changes[field.name] = _absolute(base, item)
            elif isinstance(value, Memory) and is_file(item):
                changes[field.name] = str(_absolute(base, Path(item)))
            elif isinstance(item, tuple) and any(isinstance(part, Path) for part in item):
                changes[field.name] = tuple(_absolute(base, p) if isinstance(p, Path) else p for p in item)
        return cast(T, dataclasses.replace(cast(Any, value), **changes)) if changes else value

    # ---------------------------------------------------------------------------------------------- provided tables

    def _use(self, record_type: type[P], at: Key, *, look: bool = True) -> Use[P] | None:
        """The table at this key, served by the provider that it names; without `look`, its own check is left out."""
        table = self._inside(at)
        names = ", ".join(self.registry.names(record_type))
        if table is None:
            self._add(at, Problem(what=f"the table [{at[0]}] is missing", fix=f"Add it, with use = one of: {names}"))
            return None
        if not isinstance(table, dict):
            self._not_a_table(at, table)
            return None
        name = table.get("use")
        if not isinstance(name, str):
            what = '"use" is missing' if name is None else f'"use" is {toml_text(name)}, not a string'
            self._add((*at, "use"), Problem(what=what, fix=f"Name one of: {names}"))
            return None
        others = {p.kind for p in self.registry.provided if p.record.name == name}
        if others and KINDS[record_type] not in others:
            what = f'"{name}" is {_a(min(others))}, not {_a(KINDS[record_type])}'
            self._add((*at, "use"), Problem(what=what, fix=f"Name one of: {names}"))
            return None
        try:
            record = self.registry.find(record_type, name)
        except PluginError as error:
            self._add((*at, "use"), Problem(what=error.message))
            return None
        core = ("use", "weight") if at[-2:-1] == ("source",) else ("use",)
        return self._with_options(record, _without(table, *core), at, look=look)

    def _with_options(self, record: P, table: Mapping[str, Any], at: Key, *, look: bool = True) -> Use[P] | None:
        options = self._parse(record.options, table, at)
        if (code := untrusted(options, self.registry.trusts_remote_code)) is not None:
            self._add((*at, KEY), code)
            return None
        if options is None or not look:
            return None if options is None else Use(record=record, options=options)
        before = len(self.problems)
        try:
            for problem in record.check(options):
                self._add((*at, *_split(problem.key)), problem)
        except FtError as error:
            self._add(at, Problem(what=error.message))
        except Exception as error:
            raise PluginError(f'the check of "{record.name}" failed: {type(error).__name__}: {error}') from error
        return Use(record=record, options=options) if len(self.problems) == before else None

    def _uses(
        self, record_type: type[P], table: Mapping[str, Any], at: Key, *, look: bool = True
    ) -> tuple[Use[P], ...] | None:
        """An array of tables, each served by the provider that it names; None if any has a problem."""
        items = table.get(cast(str, at[-1]), [])
        if not isinstance(items, list):
            name = ".".join(map(str, at))
            fix = f"Write [[{name}]], not [{name}]" if is_table(items) else f"Write [[{name}]], and its keys below"
            self._add(at, Problem(what=f'"{at[-1]}" is not an array of tables', fix=fix))
            return None
        serve = self._source if at[-1] == "source" else self._use
        found = [serve(record_type, (*at, number), look=look) for number in range(len(items))]
        return tuple(f for f in found if f is not None) if None not in found else None

    def _inside(self, at: Key) -> Any:
        value: Any = self.source.values
        for part in at:
            value = value.get(part) if isinstance(value, dict) else value[cast(int, part)]
        return value

    # ----------------------------------------------------------------------------------------------------- data

    def _source(self, record_type: type[P], at: Key, *, look: bool = True) -> Use[P] | None:
        """A source's table: a plugin's, and the key "weight", which is the core's."""
        table = self._inside(at)
        if not isinstance(table, dict) or "weight" not in table:
            return self._use(record_type, at, look=look)
        weight = self._parse(Weight, {"weight": table["weight"]}, at)
        use = self._use(record_type, at, look=look)
        return None if use is None or weight is None else dataclasses.replace(use, weight=weight.weight)

    def _local(self, path: Path) -> tuple[Use[DataStage[Any]], ...] | None:
        """The source that reads a file by its suffix."""
        sources = [p.record for p in self.registry.provided if isinstance(p.record, DataStage)]
        found = [source for source in sources if path.name.lower().endswith(source.suffixes)]
        if not found:
            ends = {end for source in sources for end in source.suffixes}
            plain = sorted(end for end in ends if not any(end.startswith(f"{other}.") for other in ends))
            what = f"no source reads {path.suffix or 'files without a suffix'}: {path}"
            self._add(("data", "path"), Problem(what=what, fix=f"Known suffixes: {', '.join(plain)}"))
            return None
        record = self.registry.find(DataStage, found[0].name)
        use = self._with_options(record, {"path": str(path)}, ("data",), look=self.look)
        return None if use is None else (use,)
