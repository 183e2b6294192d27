"""What `benchmarks/against_first.py` has found: of each item of the issue something fails on 0.1, and all holds now."""

from __future__ import annotations

import json

import pytest

from support.paths import ROOT

CASES = json.loads((ROOT / "benchmarks" / "against_first.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("item", range(1, 10))
def test_each_item_failed_and_holds(item: int) -> None:
    cases = [case for case in CASES if case["item"] == item]
    assert any(case["0.1"].startswith("fails: ") for case in cases)
    assert [case["case"] for case in cases if case["now"] != "holds"] == []


def test_its_cases_are_those_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from importlib import import_module

    named = [case.what for name in ("against_first_files", "against_first_words") for case in import_module(name).CASES]
    assert sorted(named) == sorted(case["case"] for case in CASES)
    assert len(named) == len({*named})
