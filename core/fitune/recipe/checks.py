"""Checks of a recipe that no options dataclass can make: names, what a fit may do, and code that a model brings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from fitune.errors import Problem, nearest
from fitune.plugin.options import toml_text
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import MemoryStrategy, must_be_asked
from fitune.plugin.registry import Registry
from fitune.recipe.source import Key

LONGEST = 100
"""Bytes of a run's name: a file's name has 255 at most, and the run's directory adds the time."""


def name_problem(name: str) -> Problem | None:
    """What is wrong with the name of a run; None if it can be part of a directory's name."""
    what, fix = f'"name" is {toml_text(name)}', "Use letters, digits and hyphens"
    if not name.isprintable() or not name.strip() or set(name) & set("/\\"):
        return Problem(what=f"{what}, which cannot be part of a directory's name", fix=fix)
    if name.startswith("."):
        return Problem(what=f"{what}, and its directory would be hidden", fix=fix)
    if len(name.encode()) > LONGEST:
        return Problem(what=f'"name" has {len(name.encode())} bytes', fix=f"Use {LONGEST} at most")
    return None


def fit_problems(recipe: Recipe, registry: Registry, values: Mapping[str, Any]) -> Iterator[tuple[Key, Problem]]:
    """Each with its key; `values` are what the recipe itself says."""
    yield from _of_allowed(recipe, registry)
    yield from _of_batch(recipe, values)
    yield from _of_accumulation(recipe)


def is_file(fit: object) -> bool:
    """Whether `[memory] fit` is the path of a card's description."""
    return isinstance(fit, str) and fit.strip().lower().endswith(".toml")


def _of_allowed(recipe: Recipe, registry: Registry) -> Iterator[tuple[Key, Problem]]:
    allowed = recipe.memory.allow
    at: Key = ("memory", "allow")
    if allowed and not recipe.memory.fit:
        fix = "Set fit, e.g. fit = true, or name the strategies as [[memory.strategy]]"
        yield at, Problem(what='"allow" has no effect without "fit"', fix=fix)
    records = {p.record.name: p.record for p in registry.provided if isinstance(p.record, MemoryStrategy)}
    may = sorted(name for name, record in records.items() if must_be_asked(record))
    named = {use.record.name for use in recipe.strategies}
    for number, name in enumerate(allowed):
        if name not in records:
            yield at, Problem(what=f'there is no memory strategy "{name}"', fix=nearest(name, may))
        elif name not in may:
            why = "needs no permission" if records[name].fit else "is never chosen by itself"
            fix = "Remove it" if records[name].fit else f'Name it: [[memory.strategy]] use = "{name}"'
            yield at, Problem(what=f'"{name}" {why}', fix=fix)
        elif name in named or name in allowed[:number]:
            where = "as a [[memory.strategy]]" if name in named else "in the list"
            yield at, Problem(what=f'"{name}" stands {where} already', fix="Remove it here")


def _of_accumulation(recipe: Recipe) -> Iterator[tuple[Key, Problem]]:
    if recipe.train.accumulation is None:
        return
    for number, use in enumerate(recipe.strategies):
        if use.record.accumulates:
            what = f'"{use.record.name}" says what [train] accumulation says already'
            yield ("memory", "strategy", number), Problem(what=what, fix="Keep one of them")
    if recipe.train.batch_tokens is not None:
        what = '"accumulation" says what "batch_tokens" leaves to be chosen'
        yield ("train", "accumulation"), Problem(what=what, fix="Keep one of them")


def evaluation_problems(recipe: Recipe) -> Iterator[tuple[Key, Problem]]:
    """Of ending early, and with the best, which take evaluations on the way; each with its key."""
    settings = recipe.evaluation
    evaluated = bool(recipe.eval_sources) or settings.fraction is not None
    asked: list[tuple[Key, str]] = [(("eval", "patience"), '"patience"')] if settings.patience is not None else []
    if recipe.train.result == "best":
        asked.append((("train", "result"), '"result" = "best"'))
    for at, what in asked:
        if not evaluated:
            fix = 'Add an [[eval.source]], or "fraction", and every'
            yield at, Problem(what=f"{what} has no effect without held-out data", fix=fix)
        elif settings.every is None:
            fix = "Set [eval] every to a number of steps"
            yield at, Problem(what=f"{what} has no effect where only the last step is evaluated", fix=fix)
    if settings.best_by and (problem := _unmeasured(recipe)) is not None:
        yield ("eval", "best_by"), problem
    if settings.min_delta and settings.patience is None:
        yield (
            ("eval", "min_delta"),
            Problem(what='"min_delta" has no effect without "patience"', fix="Set it, or remove"),
        )
    if recipe.train.result == "best" and not recipe.checkpoint.best:
        what = '"result" = "best" is taken from the checkpoint that [checkpoint] best = false does not keep'
        yield ("train", "result"), Problem(what=what, fix="Set best to true")


def _unmeasured(recipe: Recipe) -> Problem | None:
    """What is wrong with `best_by`, where no evaluation measures what it names."""
    settings, use = recipe.evaluation, recipe.objective
    measures: tuple[str, ...] = ()
    with contextlib.suppress(Exception):  # one that cannot be made says so where it is
        measures = use.record.make(use.options).measures
    known = {"loss": settings.loss, "exact_match": settings.exact_match, **dict.fromkeys(measures, settings.loss)}
    if known.get(settings.best_by):
        return None
    if settings.best_by in known:
        key = "exact_match" if settings.best_by == "exact_match" else "loss"
        return Problem(what=f'"best_by" is "{settings.best_by}", which {key} = false does not measure', fix="Set it")
    what = f'"best_by" is "{settings.best_by}", which the objective "{use.record.name}" does not measure'
    return Problem(what=what, fix=nearest(settings.best_by, known))


def _of_batch(recipe: Recipe, values: Mapping[str, Any]) -> Iterator[tuple[Key, Problem]]:
    tokens, length = recipe.train.batch_tokens, recipe.train.length
    if tokens is None:
        return
    at: Key = ("train", "batch_tokens")
    if not recipe.memory.fit:
        what = '"batch_tokens" has no effect without [memory] fit, which cuts a step into micro-batches'
        yield at, Problem(what=what, fix="Set it, e.g. fit = true, or give micro_batch and accumulation")
    if "micro_batch" in values.get("train", {}):
        what = '"micro_batch" says what "batch_tokens" leaves to be chosen'
        yield ("train", "micro_batch"), Problem(what=what, fix="Keep one of them")
    for number, use in enumerate(recipe.strategies):
        if use.record.accumulates:
            what = f'"{use.record.name}" says what [train] batch_tokens leaves to be chosen'
            yield ("memory", "strategy", number), Problem(what=what, fix="Keep one of them")
    if tokens % length:
        low = tokens // length * length
        near = f"{low} or {low + length}" if low else str(length)
        yield (
            at,
            Problem(what=f'"batch_tokens" is {tokens}, which is no multiple of length = {length}', fix=f"Give {near}"),
        )


FLAG = "--trust-remote-code"

KEY = "trust_remote_code"


def untrusted(options: object, trusted: bool) -> Problem | None:
    """What is wrong with options that ask for such code, where the command line has not repeated it; else None."""
    if trusted or not getattr(options, KEY, False):
        return None
    source = getattr(options, "path", None) or getattr(options, "id", None) or "what this table names"
    return Problem(
        what=f'"{KEY}" is true: Python code that comes with {source} would run here, with all of your rights',
        fix=f"Read that code, then repeat it on the command line: {FLAG}. Or remove the key",
    )
