"""What trains: parameters, their float32 master copies, their gradients, and the step that the optimizer makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fitune.errors import ModelError

if TYPE_CHECKING:
    from accelerate import Accelerator

REDUCE_ELEMENTS = 16 * 2**20
"""Elements that are summed over processes at a time: bounds the copy that this takes to 64 MiB."""


class Trainables:
    """The parameters that train, with float32 masters for those of lower precision.

    A bfloat16 number has 8 bits of precision: an update of less than 1/256 of a weight would be rounded away, and so
    would a small gradient added to a large sum. So gradients are summed, and updates made, on float32 copies
    (mixed-precision training, arXiv 1710.03740, section 3.1).
    """

    def __init__(self, model: nn.Module, *, masters: bool) -> None:
        """Find the parameters of `model` that train. Raises `ModelError` if there are none."""
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ModelError("no parameter of the model trains: choose an [adapter] that has some")
        self.masters = [
            nn.Parameter(p.detach().float()) if masters and p.dtype != torch.float32 else p for p in self.parameters
        ]
        self._copied = [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]

    def gather(self) -> None:
        """Add a micro-batch's gradients to the masters' and free them. Call it after each backward pass."""
        for parameter, master in self._copied:
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

    def reduce(self, accelerator: Accelerator) -> None:
        """Sum the gradients over all processes; one that had no micro-batch adds nothing."""
        if accelerator.num_processes == 1:
            return
        for bucket in self._buckets():
            flat = cast(Tensor, accelerator.reduce(torch.cat([_grad(m).flatten() for m in bucket]), reduction="sum"))
            for master, part in zip(bucket, flat.split([m.numel() for m in bucket]), strict=True):
                _grad(master).copy_(part.view_as(master))

    def finish(self, targets: float, max_norm: float) -> Tensor:
        """Turn summed gradients into a mean over `targets` tokens, clip them, and give their norm before clipping.

        Of a loss that was scaled, `targets` are scaled too.
        """
        grads = [_grad(m) for m in self.masters]
        # In float32 even where gradients are not (no masters): 1 / targets in bfloat16 would be off by up to 0.4 %.
        norms = torch._foreach_norm(grads, 2, dtype=torch.float32)
        norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms])) / targets
        scale = torch.full_like(norm, 1 / targets)
        if max_norm:
            scale = scale * torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(grads, scale)
        return cast(Tensor, norm)

    def publish(self) -> None:
        """Copy the masters into the model and drop all gradients. Call it after the optimizer's step."""
        if self._copied:
            with torch.no_grad():
                torch._foreach_copy_([p for p, _ in self._copied], [m for _, m in self._copied])
        for master in self.masters:
            master.grad = None

    def _buckets(self) -> Iterator[list[nn.Parameter]]:
        bucket: list[nn.Parameter] = []
        for master in self.masters:
            if bucket and sum(m.numel() for m in bucket) + master.numel() > REDUCE_ELEMENTS:
                yield bucket
                bucket = []
            bucket.append(master)
        yield bucket


def _grad(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
