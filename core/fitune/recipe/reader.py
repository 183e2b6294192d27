"""Reads a recipe: TOML and overrides in, a `Recipe` or every one of its problems out. No weight is read, no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fitune.errors import PluginError, Problem
from fitune.plugin.dataflow import Takes
from fitune.plugin.recipe import Checkpoint, Data, Evaluation, General, Memory, Recipe, Train, Use
from fitune.plugin.records import DataStage, Listener, MemoryStrategy
from fitune.plugin.registry import Registry
from fitune.plugin.trust import UnknownCode
from fitune.recipe.chain import close_chain
from fitune.recipe.checks import evaluation_problems, fit_problems, name_problem
from fitune.recipe.conflicts import conflict_problems
from fitune.recipe.listeners import with_defaults
from fitune.recipe.model import read_model
from fitune.recipe.objective import objective_problems, read_adapter, read_objective
from fitune.recipe.renamed import are_gone, as_listeners, mark_of, problem_of, renamed, unknown, without_renamed
from fitune.recipe.source import Key, TomlSource
from fitune.recipe.tables import Tables, split, without

TABLES = ("model", "adapter", "objective", "memory", "data", "train", "eval", "checkpoint", "listener")


def read_recipe(path: Path, registry: Registry, overrides: Sequence[str] = (), *, look: bool = True) -> Recipe:
    """Read and check a recipe; without `look`, its data need not be there, nor its base where every weight is trained.

    Raises `RecipeError` with all problems.
    """
    return _Reader(TomlSource.read(path, overrides), registry, look).read()


def read_recipe_text(
    path: Path, text: str, registry: Registry, overrides: Sequence[str] = (), *, look: bool = True
) -> Recipe:
    """As `read_recipe`, of a text that stands for a file at this path."""
    return _Reader(TomlSource(path, text, overrides), registry, look).read()


class _Reader:
    """Goes through the tables of a recipe; gives one only if there are no problems."""

    def __init__(self, source: TomlSource, registry: Registry, look: bool) -> None:
        self.source, self.registry, self.look = source, registry, look
        self.tables = Tables(source, registry, trains=look)

    def read(self) -> Recipe:
        self._read_renamed()
        general = self._general()
        self._load_plugins(general)
        memory, data, evaluation = (self.tables.table(name) for name in ("memory", "data", "eval"))
        adapter = read_adapter(self.tables)
        whole = adapter is not None and adapter.record.load_whole is not None
        parts: dict[str, Any] = {
            "general": general,
            "model": read_model(self.tables, look=self.look or not whole),
            "adapter": adapter,
            "objective": read_objective(self.tables, adapter),
            "memory": self._memory(memory),
            "strategies": self._strategies(memory),
            "data": self.tables.parse(Data, without(data, "source", "stage"), ("data",), known=["source", "stage"]),
            "train": self._train(),
            "evaluation": self._evaluation(evaluation),
            "checkpoint": self.tables.parse(Checkpoint, self.tables.table("checkpoint"), ("checkpoint",)),
            "listeners": self._listeners(),
        }
        objective = parts["objective"]
        takes: Takes = "documents" if objective is None else objective.record.takes
        parts |= self._data(data, evaluation, parts["data"], takes)
        self.tables.raise_problems()
        recipe = Recipe(path=self.source.path, notices=self.tables.told(), **parts)
        found = (*fit_problems(recipe, self.registry, self.source.values), *evaluation_problems(recipe))
        for key, problem in (*found, *objective_problems(recipe), *conflict_problems(recipe, self.registry)):
            self.tables.add(key, problem)
        for _, told in self.registry.call("ft_check", recipe=recipe):
            for problem in told or ():
                self.tables.add(split(problem.key), problem)
        self.tables.raise_problems()
        return recipe

    # ----------------------------------------------------------------------------------------------- core tables

    def _general(self) -> General | None:
        names = [f.name for f in dataclasses.fields(General)]
        values = {k: v for k, v in self.source.values.items() if k in names or k not in TABLES}
        general = self.tables.parse(General, values, (), known=TABLES)
        if general and (wrong := name_problem(general.name)):
            self.tables.add(("name",), wrong)
        return general

    def _load_plugins(self, general: General | None) -> None:
        unknown_code = False
        for file in general.plugins if general else ():
            if not file.is_file():
                self.tables.add(
                    ("plugins",), Problem(what=f"no such file: {file}", fix="Give the path of a Python file")
                )
                continue
            try:
                self.registry.load_file(file)
            except PluginError as error:
                self.tables.add(("plugins",), Problem(what=error.message))
                unknown_code = unknown_code or isinstance(error, UnknownCode)
        if unknown_code:  # what such code would offer is unknown to what comes next
            self.tables.raise_problems()

    def _train(self) -> Train | None:
        train = self.tables.parse(Train, self.tables.table("train"), ("train",))
        for key in ("warmup_steps", "warmup_ratio") if train is not None and train.schedule == "constant" else ():
            if getattr(train, key):
                what = f'"{key}" has no effect with schedule = "constant"'
                self.tables.add(("train", key), Problem(what=what, fix='Use schedule = "constant_with_warmup"'))
        if train is not None and train.warmup_steps and train.warmup_ratio:
            what = '"warmup_ratio" says what "warmup_steps" says already'
            self.tables.add(("train", "warmup_ratio"), Problem(what=what, fix="Keep one of them"))
        return train

    def _memory(self, table: Mapping[str, Any]) -> Memory | None:
        memory = self.tables.parse(Memory, without(table, "strategy"), ("memory",), known=["strategy"])
        if memory is None or not memory.allow:
            return memory
        names = tuple(self.tables.name(MemoryStrategy, name, ("memory", "allow")) for name in memory.allow)
        return dataclasses.replace(memory, allow=names)

    def _strategies(self, memory: Mapping[str, Any]) -> tuple[Use[MemoryStrategy[Any]], ...] | None:
        uses = self.tables.uses(MemoryStrategy, memory, ("memory", "strategy"))
        self._once(uses or (), ("memory", "strategy"))
        return uses

    def _listeners(self) -> tuple[Use[Listener[Any]], ...] | None:
        uses = self.tables.uses(Listener, self.source.values, ("listener",), look=self.look)
        if uses is None:
            return None
        self._once(uses, ("listener",))
        try:
            return with_defaults(self.registry, uses)
        except PluginError as error:
            self.tables.add(("listener",), Problem(what=error.message))
            return None

    def _once(self, uses: Sequence[Use[Any]], at: Key) -> None:
        """Note each provider that is named a second time."""
        seen: set[str] = set()
        for number, use in enumerate(uses):
            if use.record.name in seen:
                what = f'"{use.record.name}" stands here a second time'
                self.tables.add((*at, number), Problem(what=what, fix="Keep one of them"))
            seen.add(use.record.name)

    def _read_renamed(self) -> None:
        """Read each key that is called otherwise since 0.1 as what it is now, or say what to write."""
        values, found = self.source.values, list(renamed(self.source.values))
        gone = bool(found) and are_gone()
        for key, table in found:
            mark = mark_of(table, overridden=self.source.overridden(key) is not None)
            (self.tables.add if gone else self.tables.note)(key, problem_of(key, mark))
        for key in unknown(values):
            fix = 'Metrics and trackers are listeners now: [[listener]] use = "metrics", or "tracker"'
            self.tables.add(key, Problem(what=f"there is no table [{key[0]}]", fix=fix))
        if gone:
            self.source.values = without_renamed(values)
        else:
            self.source.read_as(*as_listeners(values))

    def _evaluation(self, table: Mapping[str, Any]) -> Evaluation | None:
        evaluation = self.tables.parse(Evaluation, without(table, "source"), ("eval",), known=["source"])
        if table and evaluation is not None and (evaluation.fraction is None) == (not table.get("source")):
            if evaluation.fraction is None:
                what, fix = "no data to evaluate on", 'Add an [[eval.source]] or "fraction", or remove [eval]'
            else:
                what, fix = '"fraction" has no effect beside an [[eval.source]]', "Keep one of them"
            self.tables.add(("eval",), Problem(what=what, fix=fix))
        if evaluation is not None and not (evaluation.loss or evaluation.exact_match):
            what, fix = "nothing to measure on held-out data", "Set loss or exact_match to true, or remove [eval]"
            self.tables.add(("eval", "loss"), Problem(what=what, fix=fix))
        return evaluation

    def _data(
        self, data: Mapping[str, Any], evaluation: Mapping[str, Any], plain: Data | None, takes: Takes
    ) -> dict[str, tuple[Use[DataStage[Any]], ...] | None]:
        before = len(self.tables.problems)
        path = plain.path if plain is not None else None
        # Sources that `path` replaces are read strictly all the same, but need not have their files here.
        sources = self.tables.uses(DataStage, data, ("data", "source"), look=self.look and path is None)
        stages = self.tables.uses(DataStage, data, ("data", "stage"))
        eval_sources = self.tables.uses(DataStage, evaluation, ("eval", "source"), look=self.look)
        if path is not None and sources is not None:
            sources = self._local(path)
        if len(self.tables.problems) == before and not sources:
            self.tables.add(("data",), Problem(what="no data to train on", fix="Add a [[data.source]]"))
        elif sources and stages is not None and eval_sources is not None:
            problems, stages = close_chain(self.registry, sources, stages, eval_sources, takes)
            for key, problem in problems:
                self.tables.add(key, problem)
        return {"sources": sources, "stages": stages, "eval_sources": eval_sources}

    def _local(self, path: Path) -> tuple[Use[DataStage[Any]], ...] | None:
        """The source that reads a file by its suffix."""
        known = [p.record for p in self.registry.provided if isinstance(p.record, DataStage)]
        sources = [source for source in known if source.deprecated is None]
        found = [source for source in sources if path.name.lower().endswith(source.suffixes)]
        if not found:
            ends = {end for source in sources for end in source.suffixes}
            plain = sorted(end for end in ends if not any(end.startswith(f"{other}.") for other in ends))
            what = f"no source reads {path.suffix or 'files without a suffix'}: {path}"
            self.tables.add(("data", "path"), Problem(what=what, fix=f"Known suffixes: {', '.join(plain)}"))
            return None
        use = self.tables.with_options(found[0], {"path": str(path)}, ("data",), look=self.look)
        return None if use is None else (dataclasses.replace(use, given=self.registry.spelled(found[0])),)
