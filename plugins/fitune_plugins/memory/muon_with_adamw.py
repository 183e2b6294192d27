"""torch's Muon and torch's AdamW as one optimizer, with one state and one list of groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fitune import OptimizerSettings, decay_groups


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for its matrices, AdamW for all others; either may be without any."""

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        *,
        settings: OptimizerSettings,
        momentum: float,
        nesterov: bool,
        iterations: int,
        scale: str,
    ) -> None:
        """`scale` is torch's `adjust_lr_fn`; `iterations` its `ns_steps`."""
        made: list[torch.optim.Optimizer] = []
        rate, decay = settings.learning_rate, settings.weight_decay
        if matrices:
            how: dict[str, Any] = {"nesterov": nesterov, "ns_steps": iterations, "adjust_lr_fn": scale}
            made.append(torch.optim.Muon(list(matrices), lr=rate, weight_decay=decay, momentum=momentum, **how))
        if others:
            adamw: dict[str, Any] = {"betas": settings.betas, "eps": settings.eps, "fused": settings.fused}
            made.append(torch.optim.AdamW(decay_groups(others), lr=rate, weight_decay=decay, **adamw))
        super().__init__([group for one in made for group in one.param_groups], {})
        self._made = [(one, len(one.param_groups)) for one in made]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make a step of both; what is loaded has other groups and another state, which they are given here."""
        begin = 0
        for one, groups in self._made:
            one.param_groups, one.state = self.param_groups[begin : begin + groups], self.state
            one.step()
            begin += groups
