"""Where segments lie, held to the addresses that a run on a card was given."""

from __future__ import annotations

import random

import pytest

from fitune.memory.allocator.addresses import TOP, Addresses, Rising
from fitune.memory.allocator.allocator import GRANULE, OutOfMemory
from fitune.memory.allocator.replay import replay, smallest_capacity

MIB = 2**20

SEEN = [
    (16, 32), (16, 16), (22, 64), (22, 96), (22, 128), (22, 160), (22, 192), (16, 224), (16, 208),
    (16, 256), (22, 288), (22, 320), (22, 352), (22, 384), (22, 416), (20, 448), (16, 240), (20, 480),
    (22, 512), (22, 544), (22, 576), (22, 608), (22, 640), (2, 618), (20, 672), (16, 704), (16, 688),
    (22, 736), (22, 768), (22, 800), (22, 832), (22, 864), (16, 896), (16, 880), (16, 928), (22, 960),
    (22, 992), (22, 1024), (22, 1056), (22, 1088), (20, 1120), (16, 912), (20, 1152), (22, 1184), (22, 1216),
    (22, 1248), (22, 1280), (22, 1312), (20, 1344), (16, 1376), (16, 1360), (22, 1408), (22, 1440), (22, 1472),
    (22, 1504), (22, 1536), (20, 1568), (16, 1600), (20, 1632), (22, 1664), (22, 1696), (22, 1728), (22, 1760),
    (22, 1792), (2, 1770), (20, 1824), (16, 1584), (16, 1856), (22, 1888), (22, 1920), (22, 1952), (22, 1984),
    (22, 2016), (20, 2048), (16, 1840), (20, 2080), (22, 2112), (22, 2144), (22, 2176), (22, 2208), (22, 2240),
    (20, 2272), (16, 2304), (16, 2288), (22, 2336), (22, 2368), (22, 2400), (22, 2432), (22, 2464), (20, 2496),
    (16, 2528), (20, 2560), (22, 2592), (22, 2624), (22, 2656), (22, 2688), (22, 2720), (20, 2752), (16, 2512),
    (16, 2784), (22, 2816), (22, 2848), (22, 2880), (22, 2912), (22, 2944), (20, 2976), (16, 2768), (20, 3008),
    (22, 3040), (22, 3072), (22, 3104), (22, 3136), (22, 3168), (128, 3296), (256, 3552), (256, 3808), (256, 4064),
]  # fmt: skip
"""A step of a Llama of 0.9 billion parameters on an H200 (torch 2.11, CUDA 13.0), from where the driver took new room:
MiB of each segment, and how far below the first chunk's end it began."""


def test_segments_lie_where_a_run_had_them() -> None:
    addresses = Addresses()
    assert [(size, (TOP - addresses.take(size * MIB)) // MIB) for size, _ in SEEN] == SEEN


def test_what_is_given_back_serves_others() -> None:
    addresses = Addresses()
    first, second = addresses.take(16 * MIB), addresses.take(16 * MIB)
    assert second == first + 16 * MIB
    below = addresses.take(40 * MIB)
    addresses.give(first, 16 * MIB)
    assert addresses.take(24 * MIB) == below + 40 * MIB, "what the chunks of the third have left is the lowest room"
    addresses.give(second, 16 * MIB)
    assert addresses.take(32 * MIB) == first, "two halves of a chunk are a whole one again"


def test_segments_of_several_processes_lie_above_each_other() -> None:
    addresses = Rising()
    assert [addresses.take(size * MIB) for size in (20, 2, 40)] == [0, 20 * MIB, 22 * MIB]
    addresses.give(0, 20 * MIB)
    assert addresses.take(2 * MIB) == addresses.copied().take(2 * MIB) - 2 * MIB == 62 * MIB


def test_where_segments_lie_says_what_is_reserved() -> None:
    """A block of 32 MiB comes from where the lowest is free: of a segment of 64, or of another that holds it alone."""
    whole, x, y, alone, again, last = range(1, 7)
    log = [
        (whole, 64 * MIB), (-whole, 0), (x, 32 * MIB), (y, 32 * MIB), (alone, 32 * MIB), (-x, 0), (-alone, 0),
        (again, 32 * MIB), (-y, 0), (last, 64 * MIB),
    ]  # fmt: skip
    assert replay(log).reserved == 96 * MIB
    assert replay(log, rising=True).reserved == 160 * MIB
    assert replay(log[:-1], rising=True).forked(None).reserved == 96 * MIB


def test_the_least_capacity_is_that_of_segments_as_they_lie() -> None:
    """Of logs at random, which the other layout needs more or less for."""
    others = 0
    for seed in range(60):
        log = _at_random(random.Random(seed))
        rises: list[tuple[int, int]] = []
        replay(log, rises=rises, rising=True)
        needed = smallest_capacity(log, rises=rises, rising=True)
        replay(log, capacity=needed, rising=True)
        with pytest.raises(OutOfMemory):
            replay(log, capacity=needed - GRANULE, rising=True)
        others += needed != smallest_capacity(log)
    assert others, "the layouts differ in some"


def _at_random(chance: random.Random) -> list[tuple[int, int]]:
    log: list[tuple[int, int]] = []
    alive: list[int] = []
    for block in range(1, 120):
        log.append((block, chance.choice((1, 3, 7, 12, 20, 40)) * MIB))
        alive.append(block)
        while len(alive) > 8 or (alive and chance.random() < 0.4):
            log.append((-alive.pop(chance.randrange(len(alive))), 0))
    return log
