"""How the processes of a run stay together: none waits for one that has failed.

Before each exchange of gradients, losses or answers, processes meet: each says that it has come so far, or why not. A
process that fails goes to the meeting that the others are on their way to, and all of them end what they do there. It
is over TCP between the hosts' processors (gloo), so that it waits for no GPU and takes none of its memory.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from fitune.compose.processes import PeerFailed, PeerLost
from fitune.errors import described

PATIENCE = timedelta(days=1)
"""For how long a process may keep the others waiting: one that is gone is noticed at once, and one that prepares data
or writes a checkpoint takes its time."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL", "Socket", "recv failed")
"""What torch says, in a `RuntimeError`, of a process that it cannot reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a process cannot go on."""

    process: int
    said: str
    memory: str | None
    """What its GPU said, if its memory ran out."""
    trace: str

    def error(self) -> PeerFailed:
        """For the other processes."""
        return PeerFailed(self.process, self.said, memory=self.memory, trace=self.trace)


class Together:
    """The meetings of this process with the others of its group; there is nothing to them where it is alone."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._cut_off = False

    @property
    def can_tell(self) -> bool:
        """Whether others learn of what fails here."""
        return self._group is not None and not self._cut_off

    @property
    def is_cut_off(self) -> bool:
        """Whether others may wait for this process where it cannot tell them anything."""
        return self._cut_off

    def meet(self, *wishes: bool) -> tuple[bool, ...]:
        """Wait for all; gives for each wish whether any process has it. All must give as many.

        Raises `PeerFailed` if another process has failed, and `PeerLost` if one is gone.
        """
        if self._group is None:
            return wishes
        found = self._exchange(failed=False, wishes=wishes)
        if found[0]:
            raise _worst(self._failures(None)).error()
        return found[1:]

    def fail(self, error: BaseException, memory: str | None) -> PeerFailed | None:
        """Tell the others at their next meeting; gives what another has failed by, if that is worse: no shortage of
        `memory`, which is what a GPU said here. Does not wait where the others wait for something else.
        """
        if self._group is None or self._cut_off:
            return None
        own = Failure(
            process=dist.get_rank(),
            said=described(error),
            memory=memory,
            trace="".join(traceback.format_exception(error)),
        )
        try:
            self._exchange(failed=True, wishes=())
            worst = _worst(self._failures(own))
        except PeerLost:
            return None
        return None if worst.process == own.process or worst.memory is not None or memory is None else worst.error()

    def agreed(self, value: bool) -> bool:
        """Whether it is so in all processes; not where they cannot be asked."""
        if self._cut_off:
            return False
        return not self.meet(not value)[0]

    def least(self, value: int) -> int:
        """The least of all processes' numbers."""
        if self._group is None:
            return value
        number = torch.tensor([value], dtype=torch.int64)
        with _noticed():
            dist.all_reduce(number, op=dist.ReduceOp.MIN, group=self._group)
        return int(number.item())

    def texts(self, own: str) -> list[str]:
        """What each process says, in their order."""
        if self._group is None:
            return [own]
        every = [""] * dist.get_world_size()
        with _noticed():
            dist.all_gather_object(every, own, group=self._group)
        return every

    def same(self, value: int) -> bool:
        """Whether all have this number."""
        return self.least(value) == -self.least(-value)

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[None]:
        """While this lasts, others may wait for this process within a layer: what fails here ends it, and so them."""
        self._cut_off = True
        yield  # not undone by an error, which is told behind it
        self._cut_off = False

    def _exchange(self, *, failed: bool, wishes: tuple[bool, ...]) -> tuple[bool, ...]:
        flags = torch.zeros(1 + WISHES, dtype=torch.int32)
        flags[: 1 + len(wishes)] = torch.tensor([failed, *wishes], dtype=torch.int32)
        with _noticed():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(flag) for flag in flags[: 1 + len(wishes)].tolist())

    def _failures(self, own: Failure | None) -> list[Failure]:
        every: list[Failure | None] = [None] * dist.get_world_size()
        with _noticed():
            dist.all_gather_object(every, own, group=self._group)
        return [failure for failure in every if failure is not None]


WISHES = 2
"""Most that a meeting can be asked for."""


def together() -> Together:
    """The meetings of this process, which may be alone."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Together(None)
    if dist.get_backend() == "fake":  # a forecast: nobody else is there
        return Together(None)
    return _of(dist.group.WORLD)


def lost(error: BaseException) -> PeerLost | None:
    """Whether an error is that of a process that another one of its group has left alone."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    cause: BaseException | None = error
    while cause is not None:  # a plugin may have been at work
        if isinstance(cause, PeerLost):
            return cause
        of_torch = isinstance(cause, dist.DistError)
        if of_torch or (type(cause) is RuntimeError and any(said in str(cause) for said in LOST)):
            gone = PeerLost(_first_line(cause))
            gone.__cause__ = error
            return gone
        cause = cause.__cause__
    return None


@functools.lru_cache(maxsize=1)
def _of(world: object) -> Together:
    """One for each group that there has been; the last is kept."""
    return Together(dist.new_group(backend="gloo", timeout=PATIENCE))


def _worst(failures: list[Failure]) -> Failure:
    """The one that all end by: of the first process, but before a shortage of memory comes what nothing helps."""
    return next((failure for failure in failures if failure.memory is None), failures[0])


@contextlib.contextmanager
def _noticed() -> Iterator[None]:
    """Raise `PeerLost` where an exchange fails."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    """What it says first, without where in torch it was."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = text.split("] ", 1)[-1] if text.startswith("[") else text
    return text.split(". ", 1)[0]  # what comes behind it is advice for developers
