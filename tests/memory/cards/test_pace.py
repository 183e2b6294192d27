"""How long operations take on a card: what was measured comes out again, and what lies between is between."""

from __future__ import annotations

import dataclasses

import pytest

from fitune.memory.cards.cards import Card, budget_card, find_card
from fitune.memory.cards.pace import (
    BANDWIDTH,
    CAUSAL,
    GAP,
    LAUNCH,
    MATMUL,
    WITHIN,
    Operation,
    Pace,
    attention,
    bound,
    interpolated,
    measurements,
    product,
    rate_of,
    unfilled,
)
from fitune.memory.cards.rates import (
    ASSUMED,
    SCHEMA,
    Attention,
    Origin,
    Pass,
    Product,
    Rates,
    directory,
    file_of,
    keep,
    origin_of,
    read,
    shipped,
    to_json,
)
from fitune.memory.trace.step_time import Work

A10G, H100, H200, T4 = (find_card(name) for name in ("a10g", "h100", "h200", "t4"))


def made(rows: int, columns: int, inner: int, seconds: float, **more: bool) -> Product:
    return Product(dtype="bfloat16", rows=rows, columns=columns, inner=inner, seconds=seconds, **more)


RATES = Rates(
    card="A10G",
    torch="2.11.0",
    cuda="13.0",
    driver="580.1",
    date="2026-11-27",
    source="made up",
    multiprocessors=80,
    gap=1e-6,
    forward=7e-6,
    backward=5e-6,
    listed=1e-6,
    link=0.05,
    products=(
        made(4096, 4096, 4096, 3e-3),
        made(512, 4096, 4096, 5e-4),
        made(4096, 4, 4096, 2e-4, aligned=False),
        made(4096, 16, 4096, 1e-4),
    ),
    attention=(
        Attention(direction="forward", kernel="flash", dtype="bfloat16", heads=32, tokens=4096, size=128, seconds=4e-3),
    ),
    passes=(Pass(kind="copy", bytes=10**8, seconds=2e-4), Pass(kind="strided", bytes=10**8, seconds=4e-4)),
)


def pace(card: Card = A10G, base: Card = A10G, rates: Rates = RATES) -> Pace:
    return Pace(card, Origin(rates=rates, base=base, says="made up"))


def test_what_was_measured_comes_out_again() -> None:
    for operation, seconds in measurements(RATES):
        assert pace().seconds(operation) == pytest.approx(seconds, rel=1e-6)


def test_a_size_between_two_takes_a_multiple_between_theirs() -> None:
    at = product("bfloat16", (1, 1448, 4096, 4096), aligned=True, added=False)
    multiples = [(seconds - RATES.gap) / bound(A10G, one) for one, seconds in list(measurements(RATES))[:2]]
    assert min(multiples) < (pace().seconds(at) - RATES.gap) / bound(A10G, at) < max(multiples)


def test_rows_that_are_not_aligned_have_rates_of_their_own() -> None:
    narrow = [product("bfloat16", (1, 4096, 8, 4096), aligned=aligned, added=False) for aligned in (True, False)]
    aligned, misaligned = (pace().seconds(one) for one in narrow)
    assert misaligned > 1.5 * aligned


def test_a_kind_that_was_not_measured_is_as_the_likest() -> None:
    """A pointwise operation as a copy, cuDNN's attention as flash, half precision of either kind as the other."""
    assert pace().seconds(Operation("pass", bytes=10**8, form="pointwise")) == pytest.approx(2e-4)
    assert pace().seconds(attention("bfloat16", (32, 4096, 128), "forward cudnn")) == pytest.approx(4e-3)
    same = product("float16", (1, 4096, 4096, 4096), aligned=True, added=False)
    assert pace().seconds(same) == pytest.approx(3e-3)


def test_what_nothing_measured_is_like_keeps_its_share() -> None:
    backward = attention("bfloat16", (32, 4096, 128), "backward flash")
    assert pace().seconds(backward) - RATES.gap == pytest.approx(Pace(A10G, ASSUMED).seconds(backward) - GAP)
    single = product("float32", (1, 8192, 8192, 8192), aligned=True, added=False)
    assert pace().seconds(single) == pytest.approx(RATES.gap + 2 * 8192**3 / (MATMUL * 35e12))


def test_a_card_of_the_same_chip_with_more_bandwidth_only_moves_bytes_faster() -> None:
    rates = dataclasses.replace(RATES, card="H100-80GB", multiprocessors=132)
    here, there = pace(H100, H100, rates), pace(H200, H100, rates)
    copy = Operation("pass", bytes=10**8, form="copy")
    assert there.seconds(copy) - RATES.gap == pytest.approx((here.seconds(copy) - RATES.gap) * 3350 / 4800)
    large = product("bfloat16", (1, 4096, 4096, 4096), aligned=True, added=False)
    assert there.seconds(large) == pytest.approx(here.seconds(large))


def test_a_step_takes_longer_than_what_its_operations_take_by_themselves() -> None:
    work = Work()
    copy = Operation("pass", bytes=10**8, form="copy")
    work.micro[copy] = 1000
    assert work.seconds(pace(), traced=1, accumulation=2).card == pytest.approx(2 * 1000 * WITHIN * 2e-4)
    assumed = Pace(T4, ASSUMED)
    alone = 1000 * assumed.seconds(copy)
    assert work.seconds(assumed, traced=1, accumulation=1).card == pytest.approx(alone)


def test_shares_stand_for_a_card_that_is_not_known() -> None:
    found = Pace(T4, ASSUMED)
    assert found.seconds(Operation("pass", bytes=320 * 10**9, form="copy")) == pytest.approx(1 / BANDWIDTH + GAP)
    assert (found.forward, found.gap) == (LAUNCH, GAP)


def test_a_product_counts_whole_rounds_of_all_multiprocessors() -> None:
    assert unfilled((1, 128 * 132, 128, 64), 132) == pytest.approx(1 / 0.92)  # one block each, of 128 by 128
    assert unfilled((1, 128 * 133, 128, 64), 132) > 1.9 * unfilled((1, 128 * 132, 128, 64), 132) / 2
    small = unfilled((1, 128, 4096, 4096), 132)
    assert 1.5 < small < 132 / 32  # 32 blocks of 128 by 128 would leave 100 idle: smaller ones are slower, and fill it
    assert unfilled((8, 128, 4096, 4096), 132) < small
    large = 2 * 8192**3
    assert bound(H100, product("bfloat16", (1, 8192, 8192, 8192), aligned=True, added=False)) > large / 989.5e12


def test_a_type_without_units_computes_as_float32() -> None:
    assert rate_of(T4, "bfloat16") == 8.1e12
    assert rate_of(T4, "float16") == 65e12
    assert rate_of(H100, "float8_e4m3fn") == 2 * 989.5e12
    assert rate_of(A10G, "float8_e4m3fn") == 35e12


def test_causal_attention_is_bound_by_half_of_its_square() -> None:
    one = attention("bfloat16", (32, 4096, 128), "forward flash")
    assert bound(A10G, one) == pytest.approx(CAUSAL * 4 * 32 * 4096**2 * 128 / 70e12)


def test_interpolation_is_exact_at_points_and_as_the_outermost_beyond_them() -> None:
    points: list[tuple[tuple[float, ...], float]] = [((0.0,), 1.0), ((2.0,), 3.0)]
    assert interpolated(points, (2.0,)) == 3.0
    assert interpolated(points, (1.0,)) == pytest.approx(2.0)
    assert interpolated(points, (1e6,)) == 3.0
    assert interpolated(points, (-1e6,)) == 1.0


def test_attention_of_the_longest_rows_is_as_fast_as_of_the_longest_that_was_measured() -> None:
    """A card with a hundred thousand tokens in few heads is as busy as one with thousands in many."""
    measured = attention("bfloat16", (32, 16384, 128), "backward cudnn")
    long = attention("bfloat16", (8, 131072, 128), "backward cudnn")
    found = Pace(H100)
    rates = [(found.seconds(one) - found.gap) / one.flops for one in (measured, long)]
    assert rates[1] == pytest.approx(rates[0])
    few = attention("bfloat16", (8, 2048, 128), "backward cudnn")
    assert (found.seconds(few) - found.gap) / few.flops > 1.2 * rates[0]


# ------------------------------------------------------------------------------------------- where rates come from
def test_rates_are_written_and_read() -> None:
    assert read(to_json(RATES)) == RATES
    damaged = ("", "{", "[]", "null", to_json(RATES)[:-40], to_json(RATES).replace("0.003", "-1"), "[" * 100_000)
    for text in damaged:
        assert read(text) is None
    assert read(to_json(RATES).replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}')) is None


def test_what_is_measured_here_counts_before_what_is_shipped() -> None:
    assert origin_of(A10G) is ASSUMED
    keep(RATES)
    found = origin_of(A10G)
    assert found.rates == RATES
    assert found.says.startswith("measured on this card, 2026-11-27")
    assert origin_of(budget_card(2**34, A10G)).rates == RATES
    assert origin_of(budget_card(2**34)) is ASSUMED


def test_the_newest_of_several_counts_and_damaged_ones_do_not() -> None:
    keep(RATES)
    newer = dataclasses.replace(RATES, date="2027-01-01", driver="590.2", forward=1e-6)
    path = keep(newer)
    (directory() / "damaged.json").write_text("{")
    (directory() / "a-directory.json").mkdir()
    assert path.parent == directory()
    assert file_of(RATES) != path
    assert origin_of(A10G).rates == newer


def test_a_card_that_fitune_does_not_know_can_be_measured() -> None:
    card = dataclasses.replace(A10G, name="NVIDIA RTX 9999", matmul={}, bandwidth=0.0, aliases=())
    keep(dataclasses.replace(RATES, card="NVIDIA RTX 9999"))
    found = Pace(card)
    assert found.origin.base is None
    for operation, seconds in measurements(RATES):
        assert found.seconds(operation) == pytest.approx(seconds, rel=1e-6)


def test_shipped_rates_are_of_cards_that_are_known() -> None:
    names = [rates.card for rates in shipped()]
    assert "H100-80GB" in names
    assert len(names) == len(set(names))
    for name in names:
        assert origin_of(find_card(name)).says.startswith("shipped: measured on ")
    assert origin_of(H200).says.startswith("shipped")
