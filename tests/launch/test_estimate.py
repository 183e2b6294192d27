"""Hours, money and limits as ranges; a price of long ago, or of nobody, is told as such."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import Any

import pytest

from fitune import Launcher, Machine, Price, RunError
from fitune.launch.estimate import Estimate, estimate, lines
from fitune.launch.send import Asked, limit, words_for
from fitune.plugin.registry import Registry

PRICE = Price(hour=2.0, source="a list", date="2026-07-02")
MACHINE = Machine(name="ml.g5.4xlarge", gpu="a10g", gpus=1, price=PRICE)


@pytest.fixture
def launcher(registry: Registry) -> Launcher[Any]:
    """That of SageMaker, of which nothing is asked here."""
    return registry.find(Launcher, "sagemaker")


@pytest.fixture
def found(read: Any, registry: Registry, launcher: Launcher[Any]) -> Estimate:
    """Of the tiny recipe."""
    return estimate(read(), registry, launcher, MACHINE)


def hours(found: Estimate, least: float, most: float) -> Estimate:
    """As if it took so long."""
    return dataclasses.replace(found, seconds=(least * 3600, most * 3600))


def test_it_is_forecast_on_the_card_of_the_machine(found: Estimate) -> None:
    assert found.forecast is not None
    assert found.forecast.card.name == "A10G"
    assert found.steps == 3
    assert found.seconds is not None
    assert 0 < found.seconds[0] < found.seconds[1] == pytest.approx(1.25 * found.seconds[0])  # by its data sheet


def test_the_steps_of_epochs_are_those_that_a_run_makes(read: Any, registry: Registry, launcher: Launcher[Any]) -> None:
    recipe = read("train={epochs=2, micro_batch=2, length=128}", 'memory.strategy=[{use="accumulation", steps=2}]')
    assert estimate(recipe, registry, launcher, MACHINE).steps == 6  # 12 rows


def test_what_fit_chooses_is_what_is_sent(read: Any, registry: Registry, launcher: Launcher[Any]) -> None:
    made = estimate(read("memory.fit=true"), registry, launcher, MACHINE)
    assert made.recipe.memory.fit is False
    assert made.forecast is not None
    assert made.forecast.passes


def test_what_a_card_is_added_is_forecast_and_added_there(
    found: Estimate, read: Any, registry: Registry, launcher: Launcher[Any]
) -> None:
    asked = read("memory.fast=true")
    made = estimate(asked, registry, launcher, MACHINE)
    assert made.recipe == asked  # the run adds it by itself
    assert made.forecast is not None
    assert found.forecast is not None
    assert made.forecast.expandable
    assert made.forecast.allocated < found.forecast.allocated


def test_without_a_card_nothing_is_guessed(read: Any, registry: Registry, launcher: Launcher[Any]) -> None:
    found = estimate(read(), registry, launcher, Machine(name="a host"))
    assert (found.forecast, found.seconds, found.steps) == (None, None, 3)
    told = " ".join(lines(found, None, date(2026, 8, 1), paid=True))
    assert "not forecast" in told
    assert "no price is known of this machine, and none is guessed" in told


@pytest.mark.parametrize(("day", "said"), [(date(2026, 9, 30), ""), (date(2026, 10, 1), "91 days ago")])
def test_a_price_of_long_ago_is_told_as_such(found: Estimate, day: date, said: str) -> None:
    (cost,) = [line for line in lines(hours(found, 1.0, 1.25), 7200, day, paid=True) if line.startswith("cost")]
    assert "$2.00 to $2.50 at $2.00 an hour (a list, 2026-07-02" in cost
    assert said in cost
    assert ("look it up" in cost) is bool(said)


def test_the_limit_follows_from_money_or_hours_whichever_is_less(found: Estimate) -> None:
    long = hours(found, 1.0, 1.25)
    assert limit(long, Asked(max_cost=20.0), paid=True) == 36000
    assert limit(long, Asked(hours=2.0), paid=True) == 7200
    assert limit(long, Asked(hours=2.0, max_cost=3.0), paid=True) == 5400
    assert limit(long, Asked(), paid=True) == int(2 * 1.25 * 3600 + 3600)
    assert limit(long, Asked(), paid=False) is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            Asked(hours=0.9),
            r"stopped before its end: by forecast it trains for 1 h 00 min to 1 h 15 min, .* \(--hours 0\.9\)",
        ),
        (Asked(max_cost=1.5), r"\(--max-cost 1\.5, at \$2\.00 an hour\)"),
        (Asked(hours=0.01), "in which nothing is trained"),
    ],
)
def test_a_limit_that_cannot_be_met_is_refused(found: Estimate, asked: Asked, said: str) -> None:
    with pytest.raises(RunError, match=said):
        limit(hours(found, 1.0, 1.25), asked, paid=True)


def test_where_nothing_is_forecast_a_limit_must_be_given(found: Estimate) -> None:
    with pytest.raises(RunError, match="Give --hours or --max-cost"):
        limit(dataclasses.replace(found, seconds=None), Asked(), paid=True)


def test_several_cards_are_several_processes(registry: Registry) -> None:
    assert words_for(registry, MACHINE) == []
    assert words_for(registry, dataclasses.replace(MACHINE, gpus=4)) == ["--gpus", "4"]
    registry.trusts_remote_code = True
    assert words_for(registry, MACHINE) == ["--trust-remote-code"]
