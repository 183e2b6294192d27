"""The chain of data stages: closed where something is missing, refused where it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from fitune import DataStage, NoOptions, hookimpl
from fitune.errors import Problem
from fitune.plugin.dataflow import Flow, Takes
from fitune.plugin.recipe import Use
from fitune.plugin.registry import Registry
from fitune.recipe.chain import Uses, close_chain

FLOWS: tuple[Flow, ...] = ("nothing", "rows", "conversations", "documents", "examples", "batches")
"""As they follow each other."""


def stage(name: str, takes: Flow, gives: Flow, **fields: Any) -> DataStage[NoOptions]:
    """One that is never made."""
    return DataStage(
        name=name, summary=name, options=NoOptions, takes=takes, gives=gives, make=lambda *_: iter, **fields
    )


STEPS = {takes: stage(f"to-{gives}", takes, gives) for takes, gives in pairwise(FLOWS)}
SOURCE = STEPS["nothing"]


def registry_of(*stages: DataStage[Any]) -> Registry:
    """Of these stages alone."""

    class Gives:
        @hookimpl
        def ft_data_stages(self) -> Iterator[DataStage[Any]]:
            yield from stages

    registry = Registry()
    registry.register(Gives(), "test")
    return registry


def uses(*stages: DataStage[Any]) -> Uses:
    return [Use(record=one, options=one.options()) for one in stages]


def chain_of(registry: Registry, *named: DataStage[Any], source: DataStage[Any] = SOURCE) -> list[str]:
    """The names of the closed chain."""
    problems, chain = close_chain(registry, uses(source), uses(*named), [])
    assert problems == []
    assert chain is not None
    assert all(use.options == NoOptions() for use in chain)
    return [use.record.name for use in chain]


def problem_of(
    registry: Registry, *named: DataStage[Any], sources: tuple[DataStage[Any], ...] = (SOURCE,), held: Any = ()
) -> tuple[tuple[object, ...], Problem]:
    """What is wrong, which must be one thing, and the key of its table."""
    problems, chain = close_chain(registry, uses(*sources), uses(*named), uses(*held))
    assert chain is None
    (found,) = problems
    return found


WHOLE = [STEPS[flow] for flow in ("rows", "conversations", "documents", "examples")]
NAMES = ["to-conversations", "to-documents", "to-examples", "to-batches"]


def test_a_whole_chain_is_left_as_it_is() -> None:
    extra = stage("extra", "examples", "batches", closes="end")
    assert chain_of(registry_of(*WHOLE, extra), *WHOLE) == NAMES


def test_what_closes_ends_is_put_behind() -> None:
    ends = [stage(one.name, one.takes, one.gives, closes="end") for one in WHOLE]
    for number in range(len(WHOLE) + 1):
        assert chain_of(registry_of(*ends), *WHOLE[:number]) == NAMES


def test_what_closes_gaps_is_put_between_and_not_behind() -> None:
    gap = stage("detect", "rows", "conversations", closes="gap")
    assert chain_of(registry_of(gap), *WHOLE[1:]) == ["detect", *NAMES[1:]]
    key, problem = problem_of(registry_of(gap))
    assert key == ("data",)
    assert problem.what == "the data stages end with rows, not with batches"
    assert problem.fix == "Add a [[data.stage]] that takes rows: detect"


def test_a_gap_is_closed_by_one_stage_alone() -> None:
    gaps = [stage(one.name, one.takes, one.gives, closes="gap") for one in WHOLE]
    key, problem = problem_of(registry_of(*gaps), *WHOLE[2:])
    assert key == ("data", "stage", 0)
    assert problem.what == '"to-examples" takes documents, but what comes to it is rows'
    assert problem.fix == "Stages that take rows: to-conversations"


def test_a_gap_in_the_midst_names_the_stage_behind_it() -> None:
    key, problem = problem_of(registry_of(), WHOLE[0], WHOLE[3])
    assert key == ("data", "stage", 1)
    assert problem.what == '"to-batches" takes examples, but what comes to it is conversations'
    assert problem.fix == "Stages that take conversations: none"


def test_of_several_that_close_alike_the_first_plugins_is_taken() -> None:
    one, other = (stage(name, "rows", "conversations", closes="gap") for name in ("one", "other"))
    assert chain_of(registry_of(one, other, *WHOLE), *WHOLE[1:])[0] == "one"
    assert chain_of(registry_of(other, one, *WHOLE), *WHOLE[1:])[0] == "other"


def test_at_the_end_what_leads_on_comes_last_and_nothing_comes_twice() -> None:
    cut = stage("cut", "examples", "examples", closes="end")
    pad = stage("pad", "examples", "batches", closes="end")
    for registry in (registry_of(cut, pad), registry_of(pad, cut)):
        assert chain_of(registry, *WHOLE[:3]) == [*NAMES[:3], "cut", "pad"]
        assert chain_of(registry, *WHOLE[:3], cut) == [*NAMES[:3], "cut", "pad"]
        assert chain_of(registry, *WHOLE[:3], pad) == [*NAMES[:3], "pad"]


def test_batches_may_be_put_in_another_order() -> None:
    sort = stage("sort", "batches", "batches")
    assert chain_of(registry_of(), *WHOLE, sort) == [*NAMES, "sort"]


def test_a_source_may_lead_far() -> None:
    ready = stage("ready", "nothing", "examples")
    assert chain_of(registry_of(), WHOLE[3], source=ready) == ["to-batches"]


@pytest.mark.parametrize("at", range(3))
def test_a_source_among_the_stages(at: int) -> None:
    named = list(WHOLE)
    named.insert(at, SOURCE)
    key, problem = problem_of(registry_of(), *named)
    assert key == ("data", "stage", at)
    assert problem.what == '"to-rows" is a source, not a stage'


def test_a_stage_among_the_sources() -> None:
    key, problem = problem_of(registry_of(SOURCE), *WHOLE, sources=(SOURCE, WHOLE[0]))
    assert key == ("data", "source", 1)
    assert problem.what == '"to-conversations" is a stage, not a source'
    assert problem.fix == "Move it to [[data.stage]]; sources: to-rows"


def test_all_sources_give_the_same_the_held_out_ones_too() -> None:
    other = stage("talks", "nothing", "conversations")
    for sources, held, key in (
        ((SOURCE, other), (), ("data", "source", 1)),
        ((SOURCE,), (SOURCE, other), ("eval", "source", 1)),
    ):
        found, problem = problem_of(registry_of(), *WHOLE, sources=sources, held=held)
        assert found == key
        assert problem.what == '"talks" gives conversations, but "to-rows" gives rows'


def test_every_table_that_is_wrong_is_told_at_once() -> None:
    problems, chain = close_chain(registry_of(), uses(WHOLE[0]), uses(SOURCE, *WHOLE), uses(WHOLE[1]))
    assert chain is None
    assert [key for key, _ in problems] == [("data", "source", 0), ("eval", "source", 0), ("data", "stage", 0)]


# ------------------------------------------------------------------------------------------- where answers are compared

COMPARED = stage("talk", "preferences", "examples")
TALK = stage("talk", "conversations", "documents", for_preferences=COMPARED)
TO_PREFERENCES = stage("to-preferences", "rows", "preferences", closes="gap")
TO_TALKS = stage("to-talks", "rows", "conversations", closes="gap")
CLOSING = (TO_TALKS, TO_PREFERENCES, *(stage(f"e-{t}", t, g, closes="end") for t, g in list(pairwise(FLOWS))[3:]))


@pytest.mark.parametrize(
    ("takes", "expected"),
    [
        ("documents", ["to-talks", "talk", "e-documents", "e-examples"]),
        ("pairs", ["to-preferences", "talk", "e-examples"]),
        ("labelled", ["to-preferences", "talk", "e-examples"]),
    ],
)
def test_a_stage_that_has_another_for_preferences(takes: Takes, expected: list[str]) -> None:
    problems, chain = close_chain(registry_of(*CLOSING), uses(SOURCE), uses(TALK), [], takes)
    assert problems == []
    assert chain is not None
    assert [use.record.name for use in chain] == expected
    assert (TALK in [use.record for use in chain]) == (takes == "documents")


@pytest.mark.parametrize(
    ("takes", "named", "fix"),
    [
        ("documents", TO_PREFERENCES, 'Name an objective that compares answers, e.g. [objective] use = "dpo"'),
        ("pairs", TO_TALKS, "The objective takes pairs of answers: use = "),
        ("labelled", TO_TALKS, "The objective takes judged answers: use = "),
    ],
)
def test_a_chain_for_another_objective(takes: Takes, named: DataStage[Any], fix: str) -> None:
    problems, chain = close_chain(registry_of(*CLOSING), uses(SOURCE), uses(named, TALK), [], takes)
    assert chain is None
    ((key, problem),) = problems
    assert key == ("data", "stage", 1)
    assert problem.fix.startswith(fix)
