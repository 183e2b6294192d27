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
