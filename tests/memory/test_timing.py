"""The seconds of a step, as plans tell them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fitune.cli.main import main
from fitune.memory.cards.cards import find_card
from fitune.memory.cards.rates import keep, shipped
from fitune.memory.forecast import forecast
from fitune.memory.shapes import of_recipe
from fitune.memory.timing import time_lines, time_of
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry


def test_a_plan_tells_the_time_of_a_step_and_what_it_comes_from(
    recipe_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["plan", str(recipe_path), "--gpu", "h100"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("a step ") and "forecast" in line and "tokens/s" in line for line in lines)
    assert any(line.startswith("speeds     shipped: measured on an H100-80GB") for line in lines)
    main(["plan", str(recipe_path), "--gpu", "t4"])
    assert "speeds     assumed: shares of the data sheet" in capsys.readouterr().out


def test_what_was_measured_here_changes_it(recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told() -> dict[str, object]:
        main(["plan", str(recipe_path), "--gpu", "h100", "--json"])
        step: dict[str, object] = json.loads(capsys.readouterr().out)["step"]
        return step

    before = told()
    rates = next(rates for rates in shipped() if rates.card == "H100-80GB")
    keep(dataclasses.replace(rates, forward=10 * rates.forward, backward=10 * rates.backward))
    after = told()
    assert str(after["rates"]).startswith("measured on this card")
    assert after["seconds"] > 2 * before["seconds"]  # type: ignore[operator]  # a tiny model waits for the host
    assert after["tokens"] == before["tokens"]


def test_tokens_count_all_micro_batches_and_a_step_says_what_bounds_it(recipe_path: Path) -> None:
    recipe = read_recipe(recipe_path, open_registry(), ['memory.strategy=[{use = "accumulation", steps = 4}]'])
    found = forecast(recipe, of_recipe(recipe), find_card("h100"))
    rows, length = found.shapes.training[0].input_ids.shape
    time = time_of(found)
    assert time.tokens == 4 * rows * length
    assert time.tokens_per_second == pytest.approx(time.tokens / time.seconds.step)
    assert "bound by Python" in next(iter(time_lines(found)))
    found.trace.work.micro.clear()
    found.trace.work.backward = found.trace.work.moved = found.trace.work.calls = found.trace.work.tuned = 0
    assert time_of(found).bound == ""
