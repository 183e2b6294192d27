"""The search of a fit: the fastest composition that fits is found, whatever the tracer is; this one is arithmetic."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from fitune import Fit, MemoryStrategy, NoOptions, Plan, Strategy
from fitune.memory.fit.choices import Choice, combinations
from fitune.memory.fit.estimate import Affine, Estimate, Seen
from fitune.memory.fit.search import NothingFits, Search
from fitune.memory.fit.space import MicroBatches, Space
from fitune.memory.fit.tracing import Trial

LAYERS = 20
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Effect:
    """What a choice of the made-up machine does: times for bytes and seconds of a layer, and what it takes once."""

    kept: float = 1.0
    seconds: float = 0.0
    once: float = 0.0
    weights: float = 1.0


EFFECTS: Mapping[str, Effect] = {
    "allocator": Effect(once=-0.5),
    "pointwise": Effect(kept=0.7, seconds=0.1),
    "checkpointing": Effect(kept=0.1, seconds=1.0),
    "keep": Effect(kept=0.3, seconds=0.7),
    "offload": Effect(kept=0.2, seconds=0.2),
    "four-bit": Effect(weights=0.3, seconds=0.15),
    "extra": Effect(kept=0.8, seconds=0.2),
    **{f"small-{number}": Effect(kept=0.99, seconds=0.002) for number in range(4)},
    "idle": Effect(),
}


def choice(name: str, *, exact: bool | None = True, **fit: Any) -> Choice:
    record = Fit(**fit)
    strategy = MemoryStrategy(
        name=name, summary=name, options=NoOptions, make=lambda options: Strategy(), exact=exact, fit=record
    )
    return Choice(record=strategy, fit=record, plans=(Plan(),) * len(record.settings))


ALLOCATOR = choice("allocator", free=True)
POINTWISE = choice("pointwise")
CHECKPOINTING = choice("checkpointing", settings=({}, {"keep": True}), layers="layers")
OFFLOAD = choice("offload", needs="checkpointing", asked=True)
FOUR_BIT = choice("four-bit", exact=False)


@dataclass
class Machine:
    """A tracer that computes: each layer has weights of 0.4 GiB and keeps 1 GiB for a row, in 0.1 seconds."""

    layers: int = LAYERS
    surplus: float = 0.0
    """GiB that the whole model takes beyond what short ones tell."""
    together: Mapping[frozenset[str], float] = field(default_factory=dict)
    """GiB that choices take together beyond what each of them takes alone, at any number of layers."""
    short_calls: list[str] = field(default_factory=list)
    whole_calls: list[tuple[str, ...]] = field(default_factory=list)
    refused: frozenset[str] = frozenset()

    def short(self, trial: Trial, layers: int) -> Seen | None:
        self.short_calls.append(trial.key)
        if self.refused & {str(table["use"]) for table in trial.tables}:
            return None
        return self.seen(trial, layers)

    def whole(self, trial: Trial) -> Any:
        self.whole_calls.append(tuple(str(table["use"]) for table in trial.tables))
        seen = self.seen(trial, self.layers)
        seen = seen.plus(Seen(allocated=0, reserved=self.surplus * GIB, standing=0, card=0, host=0, link=0))
        return object(), SimpleNamespace(passes=True, margin=0), seen

    def seen(self, trial: Trial, layers: int) -> Seen:
        used = {str(table["use"]): table for table in trial.tables}
        plain = [EFFECTS[name] for name in used if name not in ("checkpointing", "offload")]
        table = used.get("checkpointing")
        worked = 0 if table is None else min(layers, int(str(table.get("layers", layers))))
        kept = times(effect.kept for effect in plain)
        seconds = 1 + sum(effect.seconds for effect in plain)
        in_worked, extra = kept, 0.0
        if table is not None:
            effect = EFFECTS["keep" if table.get("keep") else "checkpointing"]
            in_worked, extra = effect.kept, effect.seconds
            if "offload" in used:
                in_worked, extra = in_worked * EFFECTS["offload"].kept, extra + EFFECTS["offload"].seconds
        weights = 0.4 * times(effect.weights for effect in plain)
        once = 1 + sum(effect.once for effect in plain)
        once += sum(more for names, more in self.together.items() if names <= set(used))
        rows = trial.micro_batch
        size = once + weights * layers + rows * (kept * (layers - worked) + in_worked * worked)
        took = 0.1 * (seconds * layers + extra * worked)
        host = 0.15 * layers / rows
        return Seen(
            allocated=size * GIB, reserved=size * GIB, standing=weights * layers * GIB, card=took, host=host, link=0
        )


def times(numbers: Any) -> float:
    product = 1.0
    for number in numbers:
        product *= number
    return product


def space(gib: float, *choices: Choice, named: frozenset[str] = frozenset(), rows: tuple[int, ...] = (1,)) -> Space:
    ways = [MicroBatches(micro_batch=number, accumulation=rows[-1] // number, chosen=len(rows) > 1) for number in rows]
    return Space(choices=choices, named=named, rows=ways, layers=LAYERS, usable=int(gib * GIB), plan=Plan())


def chosen(gib: float, *choices: Choice, machine: Machine | None = None, **more: Any) -> tuple[dict[str, Any], Search]:
    search = Search(space(gib, *choices, **more), machine or Machine())
    _, _, found = search.run()
    assert found.fits
    assert found.confirmed
    return {str(table["use"]): dict(table) for table in found.tables}, search


def best(gib: float, *choices: Choice, rows: tuple[int, ...] = (1,)) -> tuple[float, float]:
    """Seconds and bytes of the fastest of all compositions, each of which is computed."""
    where, machine = space(gib, *choices, rows=rows), Machine()
    found = []
    for picks, way in itertools.product(combinations(choices, set()), where.rows):
        at = where.counted
        for count in range(LAYERS + 1) if at is not None and picks[at] >= 0 else (0,):
            seen = machine.seen(where.trial(picks, way, count), LAYERS)
            if seen.reserved <= where.limit(picks):
                found.append((seen.seconds, seen.reserved))
    return min(found)


def test_with_room_nothing_but_free_choices_is_taken() -> None:
    tables, search = chosen(40, ALLOCATOR, POINTWISE, CHECKPOINTING)
    assert list(tables) == ["allocator"]
    assert all(one.seconds >= 2.0 for one in search.considered.values())


@pytest.mark.parametrize("gib", [27.5, 25, 22, 18, 14.5, 11.5])
def test_the_fastest_of_all_compositions_is_found(gib: float) -> None:
    choices = (ALLOCATOR, POINTWISE, CHECKPOINTING)
    where = space(gib, *choices)
    search = Search(where, Machine())
    _, _, found = search.run()
    assert found.seconds == pytest.approx(best(gib, *choices)[0], rel=0.01)
    assert found.reserved + found.margin <= where.usable


@pytest.mark.parametrize("surplus", [0.0, 0.7, -0.7])
def test_as_few_layers_as_fit_are_worked_on(surplus: float) -> None:
    """Also where the whole model takes more, or less, than short ones tell."""
    machine = Machine(surplus=surplus)
    tables, _ = chosen(20, ALLOCATOR, CHECKPOINTING, machine=machine)
    count = int(tables["checkpointing"].get("layers", LAYERS))
    keep = tables["checkpointing"].get("keep", False)
    where = space(20, ALLOCATOR, CHECKPOINTING)
    picks = (0, 1 if keep else 0)
    fits = [
        machine.whole(where.trial(picks, where.rows[0], n))[2].reserved <= where.limit(picks)
        for n in (count - 1, count)
    ]
    assert fits == [False, True]


def test_what_changes_numbers_is_not_taken_for_nothing() -> None:
    """Where two compositions are nearly as fast, the one that is exact is taken."""
    changed = choice("four-bit", exact=False)
    tables, _ = chosen(40, ALLOCATOR, changed)
    assert "four-bit" not in tables
    tables, _ = chosen(24, ALLOCATOR, changed)
    assert "four-bit" in tables


def test_choices_come_with_what_they_need() -> None:
    tables, _ = chosen(9.6, ALLOCATOR, CHECKPOINTING, OFFLOAD)
    assert list(tables) == ["allocator", "checkpointing", "offload"]
    for picks in combinations([CHECKPOINTING, OFFLOAD], set()):
        assert picks[0] >= 0 or picks[1] < 0
    assert (0,) in set(combinations([OFFLOAD], {"checkpointing"}))


def test_a_choice_that_cannot_be_had_is_left_out() -> None:
    machine = Machine(refused=frozenset({"pointwise"}))
    tables, _ = chosen(26, ALLOCATOR, POINTWISE, CHECKPOINTING, machine=machine)
    assert "pointwise" not in tables


def test_where_nothing_fits_the_nearest_are_known() -> None:
    search = Search(space(8, ALLOCATOR, POINTWISE, CHECKPOINTING), Machine())
    with pytest.raises(NothingFits):
        search.run()
    nearest = min(search.considered.values(), key=lambda one: one.reserved)
    assert [table["use"] for table in nearest.tables] == ["allocator", "checkpointing"]
    assert not nearest.fits
    assert nearest.reserved == pytest.approx((0.5 + 8 + 0.1 * LAYERS) * GIB)


@pytest.mark.parametrize("gib", [60, 30, 18])
def test_rows_to_a_micro_batch_are_chosen_too(gib: float) -> None:
    """More rows at once keep the host from being the slowest part, and take more memory."""
    choices, rows = (ALLOCATOR, CHECKPOINTING), (1, 2, 4)
    search = Search(space(gib, *choices, rows=rows), Machine())
    _, _, found = search.run()
    assert found.micro_batch * found.accumulation == 4
    assert found.seconds == pytest.approx(best(gib, *choices, rows=rows)[0], rel=0.01)


def test_few_compositions_are_traced_in_full_depth() -> None:
    machine = Machine()
    chosen(18, ALLOCATOR, POINTWISE, CHECKPOINTING, OFFLOAD, FOUR_BIT, machine=machine)
    assert len(machine.whole_calls) <= 6
    assert len(set(machine.short_calls)) < len(
        list(combinations([ALLOCATOR, POINTWISE, CHECKPOINTING, OFFLOAD, FOUR_BIT], set()))
    )


@pytest.mark.parametrize(("gib", "most"), [(14, 40), (12, 20)])
def test_what_a_sum_was_wrong_by_is_learnt(gib: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many compositions seem alike and all their sums are wrong, one look tells of all that are like it."""
    choices = (ALLOCATOR, POINTWISE, CHECKPOINTING, *(choice(f"small-{number}") for number in range(4)))
    surprise = {frozenset({"pointwise", "checkpointing"}): 1.0}
    learning, ignorant = Machine(together=surprise), Machine(together=surprise)
    tables, _ = chosen(gib, *choices, machine=learning)
    assert len(set(learning.short_calls)) <= most
    monkeypatch.setattr(Search, "_know_better", Search._look)
    assert chosen(gib, *choices, machine=ignorant)[0] == tables
    assert len(set(ignorant.short_calls)) > 2 * len(set(learning.short_calls))


def test_what_was_wrongly_doubted_is_found_where_nothing_else_fits() -> None:
    """All pairs take more than their sums say, as much as leaves no room for the three; together they do not."""
    pairs = {frozenset({"pointwise", "extra"}): 5.0, frozenset({"pointwise", "four-bit"}): 10.0}
    machine = Machine(together={**pairs, frozenset({"pointwise", "extra", "four-bit"}): -15.0})
    tables, search = chosen(18, ALLOCATOR, POINTWISE, choice("extra"), FOUR_BIT, machine=machine)
    assert list(tables) == ["allocator", "pointwise", "extra", "four-bit"]
    assert any(not one.fits for one in search.considered.values())


def test_a_setting_that_changes_nothing_is_not_combined() -> None:
    """`same` is nothing that the machine knows of."""
    idle, twice = choice("idle", settings=({}, {"same": True})), choice("four-bit", settings=({}, {"same": True}))
    machine = Machine()
    chosen(12, ALLOCATOR, idle, twice, CHECKPOINTING, machine=machine)
    for key in machine.short_calls:
        assert "idle" not in key or "four-bit" not in key
        assert "same" not in key or key.count("'use'") <= 3
    assert any("four-bit" in key and "checkpointing" in key for key in machine.short_calls)


def test_an_estimate_is_a_line_through_two_traces() -> None:
    def seen(layers: int, kept: float) -> Seen:
        size = 3 + (0.5 + kept) * layers
        return Seen(allocated=size, reserved=size, standing=0.5 * layers, card=0.1 * layers, host=0.01, link=0)

    plain, worked = (Affine.through(seen(2, kept), seen(4, kept)) for kept in (1.0, 0.1))
    estimate = Estimate(layers=10, plain=plain, worked=worked)
    assert estimate.at(0).reserved == pytest.approx(18)
    assert estimate.at(10).reserved == pytest.approx(9)
    assert estimate.at(4).reserved == pytest.approx(3 + 5 + 6 * 1.0 + 4 * 0.1)
    assert estimate.smallest(12.5) == 7
    assert estimate.smallest(8.9) is None
    assert estimate.at(5).card == pytest.approx(1.0)


@pytest.mark.parametrize(("layers", "depths"), [(1, (0,)), (2, (1, 2)), (3, (1, 3)), (4, (2, 4)), (30, (2, 4))])
def test_short_models_are_no_deeper_than_the_model(layers: int, depths: tuple[int, ...]) -> None:
    where = dataclasses.replace(space(20, CHECKPOINTING), layers=layers)
    assert where.depths == depths


def test_a_model_that_cannot_be_shortened_is_traced_as_it_is() -> None:
    """All of it is worked on, or nothing."""
    machine = Machine()
    machine.short = lambda trial, layers: machine.seen(trial, LAYERS) if layers == 0 else None  # type: ignore[method-assign]
    where = dataclasses.replace(space(14, ALLOCATOR, CHECKPOINTING), layers=1)
    _, _, found = Search(where, machine).run()
    assert [dict(table) for table in found.tables] == [{"use": "allocator"}, {"use": "checkpointing"}]
