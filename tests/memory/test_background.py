"""A run's forecast, made in a process beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fitune import MemoryForecast, RunError
from fitune.cli.console import RunConsole
from fitune.compose import parts
from fitune.compose.parts import compose
from fitune.data.run_data import gather
from fitune.memory import background
from fitune.memory.background import Beside, beside_run
from fitune.memory.cards.cards import find_card, parse_size
from fitune.memory.cards.observed import better_known, note, observed
from fitune.memory.forecast import forecast
from fitune.memory.shapes import shapes_of_data
from fitune.plugin.events import MemoryReport
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry

A10G = find_card("a10g")
SMALL = dataclasses.replace(A10G, name="Small", memory=parse_size("60MiB"), context=parse_size("50MiB"))


def test_a_run_is_forecast_as_a_plan_of_its_data_is(recipe_path: Path, tmp_path: Path) -> None:
    registry = open_registry()
    recipe = read_recipe(recipe_path, registry, ["memory.strategy=[]"])
    beside = Beside(A10G, third_party=False, force=False)
    found = compose(recipe, tmp_path / "run", forecaster=beside).run.forecast
    planned = forecast(recipe, shapes_of_data(recipe, gather(recipe)), A10G)
    assert found is not None
    assert found.error is None
    assert (found.allocated, found.reserved, found.needed) == (planned.allocated, planned.reserved, planned.needed)
    assert found.fits
    assert dict(found.ledger)["weights"] > 0


def test_a_run_that_will_not_fit_is_refused_unless_forced(recipe_path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_path, open_registry(), ["memory.strategy=[]"])
    with pytest.raises(RunError, match=r"would not fit on Small: .* ft plan RECIPE --levers.* --force"):
        compose(recipe, tmp_path / "run", forecaster=Beside(SMALL, third_party=False, force=False))
    forced = compose(recipe, tmp_path / "run", forecaster=Beside(SMALL, third_party=False, force=True)).run.forecast
    assert forced is not None
    assert not forced.fits


def test_a_forecast_that_cannot_be_made_says_why_and_stops_nothing(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(recipe_path, open_registry(), ["memory.strategy=[]"])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "peft.py").write_text("raise ImportError('peft is broken here')\n")
    found = compose(recipe, tmp_path / "run", forecaster=Beside(A10G, third_party=False, force=False)).run.forecast
    assert found is not None
    assert "peft is broken here" in str(found.error)


def test_a_process_that_cannot_be_started_stops_nothing(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "nowhere"))
    recipe = read_recipe(recipe_path, open_registry(), ["memory.strategy=[]"])
    found = compose(recipe, tmp_path / "run", forecaster=Beside(A10G, third_party=False, force=False)).run.forecast
    assert found is not None
    assert "could not be started: No such file or directory" in str(found.error)


def test_no_process_and_no_file_is_left(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    recipe = read_recipe(recipe_path, open_registry(), ["memory.strategy=[]"])
    beside = Beside(A10G, third_party=False, force=False)
    monkeypatch.setattr(parts, "make_model", _fails)
    with pytest.raises(RuntimeError, match="weights"):
        compose(recipe, tmp_path / "run", forecaster=beside)
    process = beside._process
    assert process is not None
    assert list(tmp_path.glob("fitune-*/recipe.toml")) != []
    beside.stop()
    assert process.returncode is not None
    assert list(tmp_path.glob("fitune-*")) == []


def test_its_process_can_begin_before_the_rows_are_known(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "local_card", lambda: A10G)
    recipe = read_recipe(recipe_path, open_registry(), ["memory.strategy=[]"])
    with beside_run(third_party=False, granted=frozenset(), force=False) as beside:
        assert beside is not None
        process = beside._process
        assert process is not None
        found = compose(recipe, tmp_path / "run", forecaster=beside).run.forecast
    assert found is not None
    assert found.error is None
    assert process.returncode == 0  # the same process answered
    with beside_run(third_party=False, granted=frozenset(), force=False, wanted=False) as beside:
        assert beside is not None
        assert beside._process is None
    with beside_run(third_party=False, granted=frozenset(), force=False) as beside:  # and a run ends before it asks
        assert beside is not None
        process = beside._process
    assert process is not None
    assert process.returncode is not None


def _fails(*given: object) -> None:
    raise RuntimeError("weights are not to be had")


def test_the_console_shows_forecast_beside_measured(capsys: pytest.CaptureFixture[str]) -> None:
    made = MemoryForecast(card="A10G", allocated=2 * 2**30, reserved=3 * 2**30, fits=True)
    measured = MemoryReport(kind="gpu", peak=2 * 2**30, reserved=4 * 2**30)
    RunConsole(Console(width=200))._beside(made, measured)
    assert capsys.readouterr().out == (
        "memory   allocated 2.000 GiB measured, 2.000 GiB forecast (+0.00 %); "
        "reserved 4.000 GiB measured, 3.000 GiB forecast (-25.00 %)\n"
    )


def test_what_runs_show_of_a_card_is_kept_for_the_next_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FT_CACHE", str(tmp_path))
    assert better_known(A10G) is A10G
    mib = 2**20
    note("A10G", context=700 * mib, reserved=1010, forecast=1000)
    note("A10G", context=600 * mib, reserved=900, forecast=1000)
    note("A10G", context=9000 * mib, reserved=1005, forecast=1000)  # another process was there
    known = observed("A10G")
    assert (known.runs, known.context, round(known.over, 6)) == (3, 600 * mib, 0.01)
    assert better_known(A10G).context == 600 * mib
    assert "measured on this machine" in better_known(A10G).context_source
    assert better_known(find_card("t4")) == find_card("t4")
    key = f"A10G, torch {torch.__version__}"
    assert json.loads((tmp_path / "cards.json").read_text())[key]["runs"] == 3


def test_a_damaged_file_of_cards_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_CACHE", str(tmp_path))
    (tmp_path / "cards.json").write_text("{")
    assert observed("A10G").runs == 0
    assert note("A10G", context=2**29, reserved=1, forecast=1).runs == 1
