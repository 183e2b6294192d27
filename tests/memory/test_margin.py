"""The margin of a forecast is what the measured runs ask for, and the measured errors are what the documents say."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from fitune.memory.forecast import LEAST, margin_of
from support.paths import ROOT

ROWS = cast(
    "list[dict[str, Any]]",
    json.loads((ROOT / "benchmarks" / "memory" / "forecasts.json").read_text())["rows"],
)


def test_enough_runs_were_measured_and_none_is_dropped() -> None:
    assert len(ROWS) == 55
    assert all("allocated" in row["truth"] and "allocated" in row["forecast"] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_no_run_took_more_than_forecast_and_margin(row: dict[str, Any]) -> None:
    forecast, truth = row["forecast"]["reserved"], row["truth"]["reserved"]
    settings = row["settings"]
    margin = margin_of(forecast, expandable=settings["expandable"], quantized=settings["nf4"])
    assert truth <= forecast + margin


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_allocated_is_within_a_thousandth(row: dict[str, Any]) -> None:
    limit = 0.001 if row["group"] == "LoRA" else 0.01
    assert row["forecast"]["allocated"] == pytest.approx(row["truth"]["allocated"], rel=limit)


def test_the_margin_has_a_least() -> None:
    assert margin_of(0, expandable=True, quantized=False) == LEAST
    size = 100 * 2**30
    growing, quantized = (margin_of(size, expandable=True, quantized=nf4) for nf4 in (False, True))
    assert growing < quantized < margin_of(size, expandable=False, quantized=False)
