"""The guard of preference tuning tells once of what went wrong, and is silent where nothing did."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict

import pytest

from fitune.train.preference_guard import PreferenceGuard

Metrics = dict[str, float]

ANSWERS = 16


def told(steps: Iterator[Metrics], answers: int = ANSWERS) -> list[tuple[int, str]]:
    guard = PreferenceGuard()
    return [(at, what) for at, metrics in enumerate(steps, 1) for what in guard.observe(metrics, answers)]


def made(steps: int, of: Callable[[random.Random, int], Metrics], seed: int = 0) -> Iterator[Metrics]:
    noise = random.Random(seed)
    for step in range(steps):
        yield of(noise, step)


def coin(noise: random.Random, step: int) -> Metrics:
    right = sum(noise.random() < 0.5 for _ in range(ANSWERS)) / ANSWERS
    return {"accuracy": right, "margin": noise.gauss(0, 0.01), **likely(noise, -100, -100)}


def likely(noise: random.Random, chosen: float, rejected: float) -> Metrics:
    return {"log_probs/chosen": noise.gauss(chosen, 20), "log_probs/rejected": noise.gauss(rejected, 20)}


def good(noise: random.Random, step: int) -> Metrics:
    """The chosen answers become likelier, the rejected ones less so."""
    learnt = min(1.0, step / 100)
    accuracy = 0.5 + 0.45 * learnt
    right = sum(noise.random() < accuracy for _ in range(ANSWERS)) / ANSWERS
    return {
        "accuracy": right,
        "margin": learnt * 2 + noise.gauss(0, 0.1),
        **likely(noise, -100 + 5 * learnt, -100 - 50 * learnt),
    }


def test_answers_that_are_not_told_apart() -> None:
    found = [told(made(200, coin, seed)) for seed in range(40)]
    of_chance = [one for one in found if any("as by chance" in what for _, what in one)]
    assert len(of_chance) >= 34  # two standard deviations hold 95 % of them
    assert all(len(one) <= 1 for one in found)
    assert all(at == 32 and "ft data" in what for one in of_chance for at, what in one)


def test_too_few_answers_say_nothing() -> None:
    assert told(made(40, coin), answers=4) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_good_run_is_not_told_of(seed: int) -> None:
    assert [what for _, what in told(made(400, good, seed)) if "chance" not in what] == []


def test_a_run_that_learns_at_once_is_not_chance() -> None:
    assert told({**metrics, "accuracy": 0.9} for metrics in made(100, good)) == []


def test_rewards_that_collapse() -> None:
    def of(noise: random.Random, step: int) -> Metrics:
        return {**good(noise, step), "accuracy": 0.9, "margin": 3.0 if step < 80 else 0.1}

    ((at, what),) = told(made(300, of))
    assert 80 < at < 80 + 32
    assert "rewards collapse" in what
    assert "learning_rate" in what


def test_both_log_probabilities_fall() -> None:
    def of(noise: random.Random, step: int) -> Metrics:
        down = min(1.0, step / 200)
        return {**good(noise, step), "accuracy": 0.9, **likely(noise, -100 - 60 * down, -100 - 120 * down)}

    ((at, what),) = told(made(400, of))
    assert 64 < at < 250
    assert "both log-probabilities fall" in what
    assert "rpo_alpha" in what


def test_it_goes_on_from_a_checkpoint() -> None:
    """Told after the same steps, however often the run was interrupted; plain values that JSON can hold."""
    steps = list(made(200, coin, 3))
    whole, parted = PreferenceGuard(), PreferenceGuard()
    for at, metrics in enumerate(steps):
        if at % 20 == 10:
            parted = PreferenceGuard(json.loads(json.dumps(asdict(parted.state()))))
        assert list(parted.observe(metrics, ANSWERS)) == list(whole.observe(metrics, ANSWERS))
    assert parted.state() == whole.state()
    assert whole.state().told


def test_what_measures_nothing_is_left_alone() -> None:
    guard = PreferenceGuard()
    assert list(guard.observe({}, 8)) == []
    assert guard.state() == PreferenceGuard().state()
