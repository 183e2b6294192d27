"""`ft bench` on a clock that tells made-up times: every operation of it runs, on a CPU and small."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fitune.cli.main import main
from fitune.memory.cards import bench
from fitune.memory.cards.bench import Bench, measure
from fitune.memory.cards.bench_clock import Calls
from fitune.memory.cards.cards import find_card
from fitune.memory.cards.rates import Rates, directory, origin_of, read
from fitune_plugins.speed.kernels import fp8


class Made:
    """Calls what it is to time, and tells the same time of each."""

    def on_card(self, calls: Calls) -> float:
        calls[0]()
        return 1e-4

    def on_host(self, call: Callable[[], Any]) -> float:
        call()
        return 1e-3


@pytest.fixture(scope="module")
def measured() -> tuple[Rates, list[str]]:
    said: list[str] = []
    made = Bench(torch.device("cpu"), Made(), said.append, divisor=128)
    rates = made.rates(card="H200", driver="580.1", multiprocessors=132, seconds_of_link=0.02, float8=True)
    return rates, said


def test_every_part_is_measured_and_told(measured: tuple[Rates, list[str]]) -> None:
    rates, said = measured
    assert {one.dtype for one in rates.products} == {"bfloat16", "float16", "float32", "float8_e4m3fn"}
    narrow = [one for one in rates.products if one.dtype == "bfloat16" and min(one.columns, one.inner, one.rows) == 4]
    assert narrow
    assert not any(one.aligned for one in narrow)  # rows of 8 bytes
    assert any(one.aligned and min(one.columns, one.inner) == 16 for one in rates.products)
    assert any(one.added for one in rates.products)
    assert {one.direction for one in rates.attention} == {"forward", "backward"}
    assert set(Counter(one.kind for one in rates.passes).values()) == {6}
    for part in ("launches", "products    bfloat16", "attention   flash", "memory      copy"):
        assert any(line.startswith(part) for line in said)


def test_what_it_prints_as_json_is_what_it_keeps_and_forecasts_use(
    measured: tuple[Rates, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "measure", lambda say: say("measuring") or measured[0])
    main(["bench", "--json"])
    out, told = capsys.readouterr()
    assert read(out) == measured[0]
    assert json.loads(out)["card"] == "H200"
    assert told.splitlines()[0] == "measuring"
    (file,) = directory().iterdir()
    assert str(file) in told
    assert file.name == f"h200-580.1-{measured[0].torch}.json"
    assert origin_of(find_card("h200")).rates == measured[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["bench"])
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ft bench needs an NVIDIA GPU")
    assert len(said.splitlines()) == 1


@pytest.mark.gpu
def test_this_machines_card_can_be_measured() -> None:
    said: list[str] = []
    rates = measure(said.append)
    assert rates.gap < 1e-4
    large = max(rates.products, key=lambda one: one.rows * one.columns * one.inner)
    small = min(rates.products, key=lambda one: one.rows * one.columns * one.inner)
    assert large.seconds > small.seconds > rates.gap / 2
    copies = sorted((one for one in rates.passes if one.kind == "copy"), key=lambda one: one.bytes)
    assert copies[-1].seconds > copies[0].seconds


def test_products_of_8_bits_are_measured_as_they_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other sums take another kernel, of another speed."""
    asked: list[dict[str, Any]] = []

    def scaled(left: torch.Tensor, right: torch.Tensor, **named: Any) -> torch.Tensor:
        asked.append({name: value for name, value in named.items() if not isinstance(value, torch.Tensor)})
        return left.new_empty((left.shape[0], right.shape[1]), dtype=torch.bfloat16)

    monkeypatch.setattr(torch, "_scaled_mm", scaled)
    left, right = torch.randn(1, 16, 32), torch.randn(1, 16, 32).mT
    bench._scaled(left, right)()
    eighth, scale = torch.empty(16, 32, device="meta", dtype=torch.float8_e4m3fn), torch.ones(16, 1, device="meta")
    fp8.product(eighth, scale, eighth, scale.t(), torch.bfloat16)
    assert asked[0] == asked[1]
