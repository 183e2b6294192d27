"""What optimizers have changed is copied to the model, in few launches where that can be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fitune.compose.optimizer import Trainables


def test_masters_are_copied_in_lists_of_equal_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """One parameter that lies otherwise than its master (part of a larger tensor) costs no other its launch."""
    whole = torch.randn(6, 8, dtype=torch.bfloat16)
    weights = [torch.randn(8, 3).bfloat16(), whole[:, ::2], torch.randn(5, 4).bfloat16().t(), torch.randn(2, 2).half()]
    trainables = Trainables(nn.ParameterList(nn.Parameter(one) for one in weights), masters=True)
    assert trainables.parameters[1].stride() != trainables.masters[1].stride()
    lists: list[int] = []
    copy = torch._foreach_copy_

    def kept(to: list[Tensor], by: list[Tensor]) -> Any:
        lists.append(len(to))
        assert len({(one.dtype, other.dtype) for one, other in zip(to, by, strict=True)}) == 1
        assert len(to) == 1 or all(one.stride() == other.stride() for one, other in zip(to, by, strict=True))
        return copy(to, by)

    monkeypatch.setattr(torch, "_foreach_copy_", kept)
    with torch.no_grad():
        for master in trainables.masters:
            master.add_(1)
    trainables.publish()
    assert sorted(lists) == [1, 1, 2]
    for parameter, master in zip(trainables.parameters, trainables.masters, strict=True):
        assert torch.equal(parameter, master.to(parameter.dtype))


def test_lists_are_alike_where_masters_lie_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strategy's own masters, column by column, of parameters that lie row by row: torch works on lists of tensors in
    few launches only where the strides of all are alike.
    """
    torch.manual_seed(0)
    layers = [nn.Linear(6, 4) for _ in range(4)]
    model = nn.Sequential(*layers).bfloat16()
    turned = {id(layer.weight) for layer in layers[::2]}

    def master(parameter: nn.Parameter) -> nn.Parameter | None:
        columns = parameter.detach().float().t().contiguous().t()
        return nn.Parameter(columns) if id(parameter) in turned else None

    calls = []
    for name in ("_foreach_copy_", "_foreach_add_"):
        real = getattr(torch, name)

        def checked(to: list[Tensor], by: list[Tensor], real: Any = real) -> None:
            strides = [(a.stride(), b.stride()) for a, b in zip(to, by, strict=True)]
            assert len(to) == 1 or all(a == b for a, b in strides), strides
            calls.append(len(to))
            real(to, by)

        monkeypatch.setattr(torch, name, checked)
    trainables = Trainables(model, masters=True, make=master)
    trainables.keep = True
    trainables.begin()
    given = [torch.randn_like(parameter) for parameter in trainables.parameters]
    for _ in range(2):
        for parameter, gradient in zip(trainables.parameters, given, strict=True):
            parameter.grad = gradient.clone()
        trainables.gather()
    for m, gradient in zip(trainables.masters, given, strict=True):
        assert m.grad is not None
        assert torch.equal(m.grad, 2 * gradient.float())
        m.data.add_(1)
    trainables.publish()
    for parameter, m in trainables.pairs:
        assert torch.equal(parameter, m.bfloat16())
    assert max(calls) >= 4
