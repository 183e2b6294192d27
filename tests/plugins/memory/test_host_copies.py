"""Host memory is used again, is bounded, and says so where there is none; copies go there and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fitune import RunError
from fitune_plugins.memory import host_memory
from fitune_plugins.memory.host_copies import HostCopies
from fitune_plugins.memory.host_memory import HostMemory, available

CPU = torch.device("cpu")


def test_there_and_back() -> None:
    copies = HostCopies(CPU, "test")
    tensor = torch.randn(3, 4).to(torch.bfloat16)
    expected = tensor.clone()
    sent = copies.send(tensor)
    sent.leave()
    tensor.zero_()
    for _ in range(2):  # a backward pass may be made twice
        sent.fetch()
        found = sent.take()
        assert torch.equal(found, expected)
        found.zero_()


def test_what_is_not_contiguous() -> None:
    tensor = torch.randn(3, 4).t()
    assert torch.equal(HostCopies(CPU, "test").send(tensor).take(), tensor)


def test_memory_is_used_again_once_nobody_needs_it() -> None:
    copies = HostCopies(CPU, "test")
    first, second = copies.send(torch.zeros(8)), copies.send(torch.ones(4))
    assert copies.memory.held == 32 + 16
    del first
    third = copies.send(torch.full((6,), 2.0))
    assert copies.memory.held == 48, "in the larger block, which is free"
    assert torch.equal(second.take(), torch.ones(4))
    assert torch.equal(third.take(), torch.full((6,), 2.0))


def test_the_smallest_block_that_is_large_enough() -> None:
    memory = HostMemory(CPU, "test")
    blocks = [memory.take(size) for size in (100, 10, 50)]
    for block in blocks:
        memory.give_back(block)
    assert memory.take(20).nbytes == 50


def test_a_larger_block_takes_the_place_of_one_that_is_too_small() -> None:
    memory = HostMemory(CPU, "test")
    for size in (10, 20, 30):
        memory.give_back(memory.take(size))
    assert memory.held == 30


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "available", lambda: 2**30)
    memory = HostMemory(CPU, "offload-checkpoints")
    kept = memory.take(2**29)
    with pytest.raises(RunError, match=r"offload-checkpoints: 1\.50 GiB .* beside 0\.50 GiB .* 1\.00 GiB are free"):
        memory.take(3 * 2**29)
    assert memory.held == kept.nbytes


def test_the_driver_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "page_locked", lambda size: None)
    memory = HostMemory(torch.device("cuda", 0), "offload-checkpoints")
    with pytest.raises(RunError, match=r"0\.25 GiB of host memory .* the driver refuses to page-lock it"):
        memory.take(2**28)
    assert memory.held == 0


def test_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "meminfo"
    monkeypatch.setattr(host_memory, "MEMINFO", file)
    assert available() is None
    file.write_text("MemTotal:       100 kB\nMemAvailable:     60 kB\n", encoding="ascii")
    assert available() == 60 * 1024
