"""What is copied between the card and the host is counted, and takes memory on neither side of a forecast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fitune.memory.trace.meta import DEVICE
from fitune.memory.trace.tracer import Tracer
from fitune.plugin.strategy import standing_for

COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "to": lambda card: card.to("cpu"),
    "cpu": lambda card: card.cpu(),
    "to, beside the computation": lambda card: card.to(torch.device("cpu"), non_blocking=True),
    "into": lambda card: torch.empty(card.shape, dtype=card.dtype).copy_(card),
}


def _tracer(phase: str = "forward") -> Tracer:
    tracer = Tracer(None, scratch={}, cublas_workspace=0)
    tracer.enter(phase, 1)  # type: ignore[arg-type]
    return tracer


@pytest.mark.parametrize("how", COPIES)
def test_to_the_host(how: str) -> None:
    tracer = _tracer()
    with tracer:
        card = torch.empty(3, 5, dtype=torch.bfloat16, device=DEVICE)
        host = COPIES[how](card)
    assert (host.device.type, host.shape, host.dtype) == ("cpu", card.shape, card.dtype)
    assert tracer.moved == 3 * 5 * 2
    assert [block.bytes for block in tracer.log.blocks] == [30], "nothing more of the card"


@pytest.mark.parametrize(
    "back", [lambda host: host.to(DEVICE), lambda host: torch.empty_like(host, device=DEVICE).copy_(host)]
)
def test_from_the_host(back: Callable[[Tensor], Tensor]) -> None:
    tracer = _tracer()
    with tracer:
        card = back(torch.ones(7))
    assert card.is_meta
    assert tracer.moved == 28
    assert [block.bytes for block in tracer.log.blocks] == [28]


def test_a_copy_on_the_host_costs_nothing_there() -> None:
    """A hundred GiB would not fit this machine."""
    with _tracer():
        host = torch.empty(100 * 2**30, dtype=torch.uint8, device=DEVICE).to("cpu")
        assert host.nbytes == 100 * 2**30
        assert host.untyped_storage().nbytes() == 1
        assert host[5].item() == 0


def test_another_type_on_the_host() -> None:
    tracer = _tracer()
    with tracer:
        host = torch.empty(4, dtype=torch.bfloat16, device=DEVICE).to("cpu", torch.float32)
    assert host.dtype == torch.float32
    assert tracer.moved == 16


@pytest.mark.parametrize("phase", ["load", "evaluation"])
def test_training_alone_counts(phase: str) -> None:
    tracer = _tracer(phase)
    with tracer:
        torch.empty(4, device=DEVICE).cpu()
    assert tracer.moved == 0


def test_what_stays_where_it_is_does_not_count() -> None:
    tracer = _tracer()
    with tracer:
        card = torch.empty(4, device=DEVICE)
        torch.empty(4, device=DEVICE).copy_(card.to(torch.bfloat16))
        torch.empty(4).copy_(torch.ones(4, dtype=torch.float64)).to("cpu")
    assert tracer.moved == 0


def test_one_piece_stands_for_many() -> None:
    tracer = _tracer()
    with tracer:
        left, right = torch.empty(2, 3, device=DEVICE), torch.empty(3, 4, device=DEVICE)
        with standing_for(5), standing_for(2):
            torch.mm(left, right).cpu()
        torch.mm(left, right)
    assert tracer.flops == 11 * 2 * 2 * 3 * 4
    assert tracer.moved == 10 * 32
