"""A recorder without a GPU: what it replays is computed again on the tensors that it was recorded with."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fitune import CannotRecord
from fitune.compose.recorder import NoRecorder


class Replayed(NoRecorder):
    """Notes what is asked of it; a test may have it find fault, or refuse to record."""

    def __init__(self, length: int, *, more_targets: bool = True) -> None:
        super().__init__("")
        self.length, self.more_targets = length, more_targets
        self.done: list[str] = []
        """"apart", "record", "replay", "room" and "close", in their order."""
        self.finds: list[str] = []
        """What `apart` is to find next, first things first."""
        self.cannot = ""
        """Why nothing can be recorded, as that is tried."""
        self.moved = False
        """Whether the model's tensors are others than they were."""

    def apart(self, compute: Callable[[], Tensor]) -> Tensor:
        """Compute."""
        self.done.append("apart")
        self.against = self.finds.pop(0) if self.finds else ""
        return compute()

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Compute nothing yet, as a recording does."""
        self.done.append("record")
        if self.cannot:
            raise CannotRecord(self.cannot)
        self.moved = False

        def replay() -> Tensor:
            self.done.append("replay")
            return compute()

        return replay

    def make_room(self) -> None:
        """Note it."""
        self.done.append("room")

    def is_as_recorded(self) -> bool:
        """As the test has it."""
        return not self.moved

    def close(self) -> None:
        """Note it."""
        self.done.append("close")
