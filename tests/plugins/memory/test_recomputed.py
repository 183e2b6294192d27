"""Parts that are computed again: the same gradients to the last bit, nothing kept but inputs, nothing left behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from fitune_plugins.memory import recomputed
from fitune_plugins.memory.recomputed import Recomputation

WIDTH = 8


class Norm(nn.Module):
    """Root mean square, with a weight; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, WIDTH))
        self.calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., WIDTH]` to the same."""
        self.calls += 1
        return self.weight * (hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No part outlives its test, without the help of the garbage collector's search for cycles."""
    parts: list[weakref.ref[object]] = []

    class Watched(recomputed._Part):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            parts.append(weakref.ref(self))

    monkeypatch.setattr(recomputed, "_Part", Watched)
    gc.disable()
    try:
        yield
        assert [part() for part in parts if part() is not None] == []
    finally:
        gc.enable()


def _linear(seed: int) -> Tensor:
    return torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def _hidden() -> Tensor:
    return torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(9)).requires_grad_()


def _gradients(body: Callable[[Tensor, Norm], Tensor], norm: Norm) -> list[Tensor]:
    """Of the hidden states and the norm's weight."""
    hidden = _hidden()
    body(hidden * 1.0, norm).backward()
    assert hidden.grad is not None
    assert norm.weight.grad is not None
    return [hidden.grad, norm.weight.grad]


def _same(body: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> tuple[Norm, Recomputation]:
    """The gradients are those without recomputation; gives the norm that was recomputed."""
    plain, again, recomputation = Norm(), Norm(), Recomputation()
    expected = _gradients(body, plain)
    with recomputation.around_step():
        found = _gradients(lambda hidden, norm: body(hidden, lambda x: recomputation.run(norm, x)), again)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    return again, recomputation


def test_one_computation_serves_all_that_saved_the_result() -> None:
    weights = [_linear(n) for n in range(3)]

    def body(hidden: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        normed = norm(hidden)
        query, key, value = (normed @ weight for weight in weights)
        return (query * key + value + hidden).pow(2).sum()

    norm, _ = _same(body)
    assert norm.calls == 2


def test_without_anyone_who_saved_the_result_its_last_operation_is_not_repeated() -> None:
    done: list[str] = []

    class Told(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, hidden: Tensor) -> Tensor:
            done.append("last")
            return hidden * 2

        @staticmethod
        def backward(ctx: object, *grads: Tensor) -> Tensor:
            return grads[0] * 2

    def part(hidden: Tensor) -> Tensor:
        return Told.apply(hidden.exp())  # type: ignore[no-any-return, no-untyped-call]

    recomputation, hidden = Recomputation(), _hidden()
    with recomputation.around_step():
        recomputation.run(part, hidden * 1).sum().backward()
    assert done == ["last"]
    torch.testing.assert_close(hidden.grad, 2 * hidden.exp())


def test_views_of_the_result_are_found_again() -> None:
    weight = _linear(1)

    def body(hidden: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        normed = norm(hidden)
        rows = normed.view(-1, WIDTH)[1:] @ weight
        turned = weight @ normed[1, :, 2:6].t().repeat(2, 1)
        return rows.pow(2).sum() + turned.pow(3).sum() + (normed[0] * normed[1]).sum()

    norm, _ = _same(body)
    assert norm.calls == 2


def test_a_result_that_is_changed_in_place_is_kept() -> None:
    def body(hidden: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        normed = norm(hidden)
        normed += 1
        return normed.pow(2).sum()

    _same(body)


def test_a_cast_of_the_result_is_kept() -> None:
    def body(hidden: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        return (norm(hidden).to(torch.float64) ** 2).sum()

    _same(body)


def test_a_part_of_a_part_is_no_part() -> None:
    weight = _linear(1)
    plain, outer = Norm(), Norm()
    recomputation = Recomputation()

    def twice(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda hidden: norm(norm(hidden) + hidden)

    expected = _gradients(lambda hidden, norm: (twice(norm)(hidden) @ weight).pow(2).sum(), plain)
    with recomputation.around_step():
        inner = twice(lambda x: recomputation.run(outer, x))
        found = _gradients(lambda hidden, norm: (recomputation.run(inner, hidden) @ weight).pow(2).sum(), outer)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_part_whose_input_is_the_result_of_another() -> None:
    weight = _linear(1)

    def body(hidden: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        return (norm(norm(hidden)) @ weight).pow(2).sum()

    _same(body)


def test_what_stays_is_the_input() -> None:
    """The result, and all that was made on the way to it, is given back before the backward pass."""
    made: list[weakref.ref[torch.UntypedStorage]] = []

    def part(hidden: Tensor) -> Tensor:
        inner = hidden.exp()
        result = inner * hidden
        made.extend(weakref.ref(tensor.untyped_storage()) for tensor in (inner, result))
        return result

    recomputation, weight = Recomputation(), _linear(1)
    with recomputation.around_step():
        hidden = _hidden() * 1
        given = weakref.ref(hidden.untyped_storage())
        loss = (recomputation.run(part, hidden) @ weight).sum()
        del hidden
        assert [ref() is None for ref in made] == [True, True]
        assert given() is not None
        loss.backward()
    assert [ref() is None for ref in made] == [True] * 4
    assert given() is None


def test_an_input_that_is_changed_in_place_is_an_error() -> None:
    recomputation = Recomputation()
    with recomputation.around_step():
        hidden = _hidden() * 1
        loss = recomputation.run(lambda x: x.exp() * 2, hidden).sum()
        with torch.no_grad():
            hidden.add_(1)
        with pytest.raises(RuntimeError, match=r"shape \[2, 3, 8\].*changed in place.*version 1.*version 0"):
            loss.backward()
    del loss


def test_so_is_another_saved_tensor() -> None:
    """As without hooks, where torch sees to it."""
    with Recomputation().around_step():
        hidden = _hidden() * 1
        loss = hidden.pow(2).sum()
        with torch.no_grad():
            hidden.add_(1)
        with pytest.raises(RuntimeError, match="changed in place"):
            loss.backward()


def test_a_part_that_is_not_the_same_each_time_is_an_error() -> None:
    calls: list[None] = []

    def part(hidden: Tensor) -> Tensor:
        calls.append(None)
        return hidden.exp() if len(calls) > 1 else hidden.exp().exp()

    recomputation = Recomputation()
    with recomputation.around_step():
        loss = recomputation.run(part, _hidden() * 1).sum()
        with pytest.raises(RuntimeError, match="saved 2 tensors at first and 1 when it was computed again"):
            loss.backward()
    del loss


@pytest.mark.parametrize("where", ["forward", "again"])
def test_nothing_is_left_of_a_step_that_fails(where: str) -> None:
    weight, recomputation, calls = _linear(1), Recomputation(), [0]

    def part(hidden: Tensor) -> Tensor:
        calls[0] += 1
        half = hidden.exp()
        if calls[0] == (1 if where == "forward" else 2):
            raise torch.OutOfMemoryError("made up")
        return half * hidden

    def step() -> Tensor:
        hidden = _hidden()
        with recomputation.around_step():
            (recomputation.run(part, hidden * 1) @ weight).sum().backward()
        assert hidden.grad is not None
        return hidden.grad

    with pytest.raises(torch.OutOfMemoryError):
        step()
    assert recomputation._running is None
    assert not recomputation._results
    calls[0] = 9
    found, plain = step(), _hidden()
    ((plain * 1).exp() * (plain * 1) @ weight).sum().backward()
    torch.testing.assert_close(found, plain.grad)


def test_outside_of_a_step_and_without_gradients_a_part_is_just_computed() -> None:
    norm, recomputation = Norm(), Recomputation()
    hidden = _hidden()
    weight = _linear(1)
    (recomputation.run(norm, hidden) @ weight).sum().backward()
    assert norm.calls == 1
    with recomputation.around_step():
        with torch.no_grad():
            recomputation.run(norm, hidden)
        frozen = recomputation.run(lambda x: x * 2, hidden.detach())
        (frozen @ weight).sum().backward()
        assert not recomputation._results
    assert norm.calls == 2


def test_a_graph_can_be_kept_for_a_second_backward_pass() -> None:
    norm, recomputation, weight = Norm(), Recomputation(), _linear(1)
    with recomputation.around_step():
        hidden = _hidden()
        loss = (recomputation.run(norm, hidden * 1) @ weight).pow(2).sum()
        once = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(loss, hidden)[0], once)
        del loss
