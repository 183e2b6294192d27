"""What trains: parameters, their float32 master copies, their gradients, and the step that the optimizer makes."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fitune.compose.foreach import add_all, alike, copy_all, laid_out_as
from fitune.compose.shards import device_of_group, is_sharded, local
from fitune.compose.together import together
from fitune.errors import ModelError
from fitune.plugin.model import buckets

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fitune.compose.owned import Owned

REDUCE_ELEMENTS = 16 * 2**20
"""Elements that are summed over processes in one message: bounds the copy that this takes to 64 MiB."""

IN_FLIGHT = 2
"""Messages that are on their way at a time, each with a copy."""

ADDED_TOGETHER = 4 * 2**20
"""Elements of a bucket of gradients that are added to their masters' in few launches, by way of a float32 copy."""


def _left(parameter: nn.Parameter) -> None:
    """Leave the master of a parameter to be made as the recipe says."""


class Trainables:
    """The parameters that train, with float32 masters for those of lower precision, and for parts of shared out ones.

    A bfloat16 number has 8 bits of precision: an update of less than 1/256 of a weight would be rounded away, and so
    would a small gradient added to a large sum. So gradients are summed, and updates made, on float32 copies
    (mixed-precision training, arXiv 1710.03740, section 3.1).
    """

    def __init__(
        self, model: nn.Module, *, masters: bool, make: Callable[[nn.Parameter], nn.Parameter | None] = _left
    ) -> None:
        """Find the parameters of `model` that train; `make` gives the masters of those that it does not leave to be
        made here. Raises `ModelError` if there are none.
        """
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ModelError("no parameter of the model trains: choose an [adapter] that has some")
        made = [make(p) for p in self.parameters]
        self.masters = [_master(p, masters) if m is None else m for p, m in zip(self.parameters, made, strict=True)]
        self._sharded = [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if is_sharded(p)]
        """Those of which this process has a part: FSDP has summed their gradients over processes."""
        self.keep = False
        """Whether the masters' gradients stay the same tensors, and are zeros between steps; else there are none."""
        self._kept: list[Tensor] = []
        self._gathered = self.masters
        """Those whose gradients are gathered here."""
        self._copied = [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]
        pairs = [(local(p), m) for p, m in self._copied]
        self._published = alike([pair for pair in pairs if pair[0].data_ptr() != pair[1].data_ptr()])
        self._owned: Owned | None = None
        self._units = 1.0

    @property
    def pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Each parameter with its master."""
        return list(zip(self.parameters, self.masters, strict=True))

    @property
    def are_owned(self) -> bool:
        """Whether a strategy takes gradients as they come: a step may have changed weights before it is accepted."""
        return self._owned is not None

    def leave_to(self, owned: Owned) -> None:
        """Gather no gradients of what a strategy owns, which takes them in the backward pass."""
        self._owned = owned
        self._gathered = [m for m in self.masters if id(m) not in owned.masters]
        self._copied = [pair for pair in self._copied if id(pair[1]) not in owned.masters]

    def begin(self, units: float = 1.0) -> None:
        """Have the gradients there that are kept. Call it before a step's first backward pass; its gradients are to be
        divided by `units`.
        """
        self._units = units
        if self._owned is not None:
            self._owned.begin()
        if not self.keep:
            return
        if not self._kept:
            self._kept = [torch.zeros_like(m) for m in self._gathered]
        for master, kept in zip(self._gathered, self._kept, strict=True):
            if master.grad is not kept:  # at first, or where somebody has dropped it
                kept.zero_()
                master.grad = kept

    def expect(self, loss: Tensor) -> None:
        """Gradients of this loss are to come. Call it before each backward pass."""
        if self._owned is not None:
            self._owned.expect(loss, self._units)

    def gather(self) -> None:
        """Add a micro-batch's gradients to the masters' and free them. Call it after each backward pass."""
        if self._owned is not None:
            self._owned.complete()
        given = [(p, m) for p, m in self._copied if p.grad is not None]
        if given and all(m.grad is not None for _, m in given):
            for bucket in buckets(given, lambda pair: pair[0].numel(), ADDED_TOGETHER):
                _add([_grad(m) for _, m in bucket], [_grad(p) for p, _ in bucket])
        else:
            for parameter, master in given:
                if master.grad is None:
                    master.grad = _grad(parameter).float()
                else:
                    master.grad += _grad(parameter)
        for parameter, _ in given:
            parameter.grad = None

    def reduce(self, accelerator: Accelerator) -> None:
        """Sum the gradients over all processes; one that had no micro-batch adds nothing.

        Raises `PeerFailed` where another process has none, for it has failed.
        """
        if accelerator.num_processes == 1:
            return
        here = {id(master) for _, master in self._sharded}
        summed = [master for master in self.masters if id(master) not in here]
        messages = list(buckets(summed, lambda master: master.numel(), REDUCE_ELEMENTS))
        flats = _flat_buffers([[_grad(m) for m in message] for message in messages])
        together().meet()  # with all memory at hand that the sum takes
        at_work: deque[Callable[[], None]] = deque()
        for message in messages:  # the next is sent while the one before is copied
            if len(at_work) == IN_FLIGHT:
                at_work.popleft()()
            at_work.append(_summing(message, flats))
            flats.rotate(-1)
        for finish in at_work:
            finish()

    def finish(self, targets: float, max_norm: float) -> Tensor:
        """Turn summed gradients into a mean over `targets` tokens, clip them, and give their norm before clipping.

        Of a loss that was scaled, `targets` are scaled too.
        """
        grads = [_grad(m) for m in self._gathered]
        # In float32 even where gradients are not (no masters): 1 / targets in bfloat16 would be off by up to 0.4 %.
        norm = self._norm() / targets
        scale = torch.full_like(norm, 1 / targets)
        if max_norm:
            scale = scale * torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        if grads:
            torch._foreach_mul_(grads, scale)
        return norm

    def changed(self) -> int:
        """How many masters the backward pass of this step has changed, of those that a strategy owns."""
        return 0 if self._owned is None else self._owned.changed()

    def publish(self) -> None:
        """Copy the masters into the model and drop all gradients. Call it after the optimizer's step."""
        if self._published:
            with torch.no_grad():
                for some in self._published:
                    torch._foreach_copy_([p for p, _ in some], [m for _, m in some])
        self.drop()

    def leave(self) -> None:
        """Forget what a micro-batch that failed has left to be gathered."""
        if self._owned is not None:
            self._owned.leave()
        for parameter, _ in self._copied:
            parameter.grad = None

    def drop(self) -> None:
        """Forget all gradients: those of masters are zeros where they are kept."""
        self.leave()
        if self._kept:
            torch._foreach_zero_(self._kept)
        for at, master in enumerate(self._gathered):
            master.grad = self._kept[at] if self._kept else None

    def norms(self) -> Tensor:
        """The norm of each gradient, over all processes that have a part of it: `[parameters]`, float32. In a run of
        several processes with shared out weights, each must ask.
        """
        found = {} if self._owned is None else self._owned.norms()
        if self._gathered:
            own = torch._foreach_norm([_grad(m) for m in self._gathered], 2, dtype=torch.float32)
            found |= {id(master): norm for master, norm in zip(self._gathered, own, strict=True)}
        every = [found[id(master)] for master in self.masters]
        norms = torch.stack([norm.to(every[0].device) for norm in every])
        if not self._sharded:
            return norms
        parts = torch.tensor([is_sharded(p) for p in self.parameters], device=norms.device)
        squares = torch.where(parts, norms.square(), 0.0).to(device_of_group())
        dist.all_reduce(squares)
        return torch.where(parts, squares.to(norms.device).sqrt(), norms)

    def _norm(self) -> Tensor:
        """Of all gradients together."""
        return cast(Tensor, torch.linalg.vector_norm(self.norms()))


def _master(parameter: nn.Parameter, masters: bool) -> nn.Parameter:
    """What the optimizer changes in the place of a parameter: a float32 copy, itself, or the part that is here."""
    if is_sharded(parameter):
        return nn.Parameter(local(parameter.detach()).float())
    return nn.Parameter(parameter.detach().float()) if masters and parameter.dtype != torch.float32 else parameter


def _add(sums: list[Tensor], gradients: list[Tensor]) -> None:
    """Add gradients to float32 sums, by way of a copy that has the gradients' strides. It is exact, so the sum is what
    adding each would give.
    """
    if len(sums) == 1:
        sums[0].add_(gradients[0])
        return
    wide = torch.empty(sum(g.numel() for g in gradients), dtype=torch.float32, device=sums[0].device)
    pieces = wide.split([g.numel() for g in gradients])
    parts = [laid_out_as(g, piece) for piece, g in zip(pieces, gradients, strict=True)]
    copy_all(list(zip(parts, gradients, strict=True)))
    add_all(list(zip(sums, parts, strict=True)))


def _flat_buffers(buckets: Sequence[Sequence[Tensor]]) -> deque[Tensor]:
    """Room for the buckets that are summed at a time; one that is a tensor alone is summed where it stands."""
    several = [bucket for bucket in buckets if len(bucket) > 1]
    if not several:
        return deque()
    size = max(sum(grad.numel() for grad in bucket) for bucket in several)
    kind = functools.reduce(torch.promote_types, (grad.dtype for bucket in several for grad in bucket))
    number = min(IN_FLIGHT, len(several))
    return deque(torch.empty(size, dtype=kind, device=several[0][0].device) for _ in range(number))


def _summing(masters: Sequence[nn.Parameter], flats: Sequence[Tensor]) -> Callable[[], None]:
    """Begin to sum the gradients of a bucket over all processes; gives what ends it.

    In the flat buffer they lie as their masters do, row by row or column by column, which is alike in all processes.
    """
    bucket = [_grad(m) for m in masters]
    if len(bucket) == 1 and bucket[0].is_contiguous():
        return cast(Any, dist.all_reduce(bucket[0], async_op=True)).wait  # type: ignore[no-any-return]
    flat = flats[0][: sum(grad.numel() for grad in bucket)]
    pieces = flat.split([grad.numel() for grad in bucket])
    parts = [laid_out_as(local(master), piece) for master, piece in zip(masters, pieces, strict=True)]
    copy_all(list(zip(parts, bucket, strict=True)))
    work = cast(Any, dist.all_reduce(flat, async_op=True))

    def finish() -> None:
        work.wait()
        copy_all(list(zip(bucket, parts, strict=True)))

    return finish


def _grad(parameter: nn.Parameter) -> Tensor:
    """Its gradient, or what of it is here; zeros where there is none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return local(parameter.grad)
