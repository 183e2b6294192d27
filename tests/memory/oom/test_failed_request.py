"""The failed request of a message found again in a forecast, and the card that it is of."""

from __future__ import annotations

from typing import Any

import pytest

from fitune.errors import RunError
from fitune.memory.allocator.allocator import GRANULE
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import Forecast
from fitune.memory.oom.explain import card_of
from fitune.memory.oom.failure import UNTOUCHED, agreeing_phase, askers, run_out, run_outs, sighting
from fitune.memory.oom.message import OutOfMemoryMessage, figure, read_message
from fitune.memory.trace.load import WARM_UP
from fitune.memory.trace.log import Block, MemoryLog
from support.cuda_messages import GIB, MIB
from support.oom_forecast import CONTEXT, text_of, traced_of, write_many_rows


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Forecast:
    return traced_of(write_many_rows(tmp_path_factory.mktemp("recipe")))


@pytest.mark.parametrize("capacity", range(4, 210, 22))
def test_the_request_of_a_message_is_found_again(traced: Forecast, capacity: int) -> None:
    failure = run_out(traced.trace.log, capacity * MIB, expandable=False)
    assert failure is not None
    message = read_message(text_of(failure))
    assert message.reserved is not None
    assert message.free is not None
    room = (message.reserved + message.free).bytes
    seen = sighting(traced.trace.log, message, room, 8 * MIB, expandable=False)
    assert seen is not None
    assert seen.failure.block is failure.block
    assert seen.failure.event == failure.event


def test_a_request_is_found_with_another_context_than_assumed(traced: Forecast) -> None:
    failure = run_out(traced.trace.log, 146 * MIB, expandable=False)
    assert failure is not None
    message = read_message(text_of(failure, detailed=False, context=CONTEXT + 40 * MIB))
    seen = sighting(traced.trace.log, message, 186 * MIB, 64 * MIB, expandable=False)
    assert seen is not None
    assert seen.failure.asked == failure.asked == 34 * MIB
    assert abs(seen.failure.free - failure.free) <= 2 * GRANULE
    assert sighting(traced.trace.log, message, 186 * MIB, 0, expandable=False) is None


def test_a_request_of_another_phase_is_not_it(traced: Forecast) -> None:
    failure = run_out(traced.trace.log, 176 * MIB, expandable=False)
    assert failure is not None
    assert failure.block.phase == "backward"
    above = 'Traceback (most recent call last):\n  File "/v/torch/optim/adamw.py", line 2, in step\n'
    message = read_message(above + text_of(failure))
    assert sighting(traced.trace.log, message, 176 * MIB, 0, expandable=False) is None
    assert sighting(traced.trace.log, read_message(text_of(failure)), 176 * MIB, 0, expandable=False) is not None


def test_a_run_that_gets_through(traced: Forecast) -> None:
    assert run_out(traced.trace.log, traced.reserved, expandable=False) is None
    assert run_out(traced.trace.log, traced.needed, expandable=False) is None
    short = run_out(traced.trace.log, traced.needed - GRANULE, expandable=False)
    assert short is not None
    assert short.free + short.allocated + short.unallocated == short.capacity == traced.needed - GRANULE


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("expandable", [False, True])
def test_many_capacities_are_what_each_is_by_itself(traced: Forecast, expandable: bool, warm: bool) -> None:
    log = traced.trace.log
    capacities = range(2 * MIB, traced.reserved + 6 * MIB, 6 * MIB)
    found = run_outs(log, capacities, expandable=expandable, warm=warm)
    alone = {capacity: run_out(log, capacity, expandable=expandable, warm=warm) for capacity in capacities}
    assert found == alone
    assert len({failure.event for failure in alone.values() if failure is not None}) > 3
    assert None in alone.values()


def test_many_capacities_of_which_each_has_another_room_to_warm_up_in() -> None:
    log = MemoryLog()
    log.enter("load", 0)
    log.pass_through(Block(9 * GIB, "weights", "load", WARM_UP, ""))
    for size in (5, 4):
        log.take(Block(size * GIB, "weights", "load", "load", ""))
    capacities = [size * GIB // 2 for size in range(2, 26)]
    for warm in (True, False):
        found = run_outs(log, capacities, expandable=False, warm=warm)
        assert found == {one: run_out(log, one, expandable=False, warm=warm) for one in capacities}


def test_transformers_leaves_a_part_of_the_card_alone_when_it_warms_up() -> None:
    log = MemoryLog()
    log.enter("load", 0)
    log.pass_through(Block(9 * GIB, "weights", "load", WARM_UP, ""))
    log.take(Block(5 * GIB, "weights", "load", "load", ""))
    log.take(Block(4 * GIB, "weights", "load", "load", ""))
    failure = run_out(log, 8 * GIB, expandable=False)
    assert failure is not None
    assert failure.event == 3  # not the warm-up itself, and the first tensor has room
    assert failure.unallocated == 8 * GIB - UNTOUCHED - UNTOUCHED % GRANULE - 5 * GIB or failure.unallocated > GIB
    cold = run_out(log, 8 * GIB, expandable=False, warm=False)
    assert cold is not None
    assert (cold.event, cold.free, cold.unallocated) == (3, 3 * GIB, 0)


def test_phases_that_a_traceback_may_show() -> None:
    assert agreeing_phase("loss", "forward")
    assert agreeing_phase("backward", None)
    assert not agreeing_phase("backward", "forward")


def test_which_blocks_a_size_may_be() -> None:
    log = MemoryLog()
    sizes = (300, 3 * MIB, 10 * MIB, 171 * MIB, 172 * MIB, 172 * MIB + 1, 86 * MIB)
    for size in sizes:
        log.take(Block(size, "loss", "loss", f"made of {size}", "", shape=(size,)))

    def found(size: str, **options: Any) -> list[int]:
        return [block.bytes for block in askers(log, figure(size), **{"whole_segment": True, **options})]

    assert found("172.00 MiB") == [171 * MIB, 172 * MIB]  # segments are multiples of 2 MiB
    assert found("172.00 MiB", times=2) == [86 * MIB]
    assert found("172.00 MiB", whole_segment=False) == [172 * MIB, 172 * MIB + 1]
    assert found("20.00 MiB") == [3 * MIB]  # what all requests from 1 to 10 MiB get
    assert found("2.00 MiB") == [300]
    assert found("10.00 MiB") == [10 * MIB]


# ------------------------------------------------------------------------------------------------------------- cards


def said(**figures: str) -> OutOfMemoryMessage:
    return OutOfMemoryMessage(**{name: figure(text) for name, text in {"asked": "2.00 MiB", **figures}.items()})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("total", "name"),
    [
        ("22.19 GiB", "A10G"),
        ("22.06 GiB", "L4"),
        ("14.75 GiB", "T4"),
        ("79.15 GiB", "A100-80GB"),
        ("23.65 GiB", "RTX 4090"),
    ],
)
def test_the_card_of_a_message(total: str, name: str) -> None:
    card = card_of(said(total=total), None)
    assert card.name == name
    assert card.memory == figure(total).bytes


def test_a_card_that_is_named() -> None:
    card = card_of(said(total="22.06 GiB"), "h100")
    assert (card.name, card.memory) == ("H100-80GB", figure("22.06 GiB").bytes)
    assert card_of(said(), "h100") == find_card("h100")


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (said(total="9.00 GiB"), "no known card has 9.00 GiB in all; the nearest is the RTX 4060 Ti 8GB"),
        (said(), "Name the card: --gpu"),
    ],
)
def test_a_card_that_cannot_be_told(message: OutOfMemoryMessage, says: str) -> None:
    with pytest.raises(RunError, match=says):
        card_of(message, None)
