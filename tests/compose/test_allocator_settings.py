"""Settings of the CUDA allocator are a run's own: the next run of the process has those that it names."""

from __future__ import annotations

import pytest
import torch

from fitune import Plan
from fitune.compose import devices
from fitune.compose.devices import set_allocator

GROWS = Plan(gpu=True, allocator=(("expandable_segments", "True"),))


@pytest.fixture
def set_to(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch is told, in order."""
    told: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append, raising=False)
    monkeypatch.setattr(devices, "_given_to_allocator", [])
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:512")
    return told


def test_a_run_that_sets_nothing_leaves_the_environment(set_to: list[str]) -> None:
    set_allocator(Plan(gpu=True))
    assert set_to == []


def test_the_next_run_has_what_it_names_alone(set_to: list[str]) -> None:
    """One without the strategy grew its segments all the same, and took other memory than was forecast."""
    for plan in (GROWS, Plan(gpu=True), GROWS):
        set_allocator(plan)
    grows, stays = (f"expandable_segments:{value},max_split_size_mb:512" for value in ("True", "False"))
    assert set_to == [grows, stays, grows]


def test_the_environment_holds_where_no_plan_says_otherwise(set_to: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    never = Plan(gpu=True, allocator=(("expandable_segments", "False"),))
    for plan in (never, Plan(gpu=True)):
        set_allocator(plan)
    assert set_to == ["expandable_segments:False", "expandable_segments:True"]
