"""Tracebacks of Python, read from text: where a run was when it ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fitune.compose.step import Phase

LINES = 600
"""Lines above an error in which its traceback is looked for."""

_FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in ([^\n]+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One call."""

    file: str
    line: int
    function: str

    @property
    def name(self) -> str:
        """The file's name without its directories."""
        return re.split(r"[/\\]", self.file)[-1]

    @property
    def in_torch(self) -> bool:
        """Whether it is torch's own code."""
        return re.search(r"[/\\]torch[/\\]", self.file) is not None

    def __str__(self) -> str:
        return f"{self.name}:{self.line} in {self.function}"


def frames_above(text: str) -> tuple[Frame, ...]:
    """The calls of the last traceback in a text, outermost first; none if there is no traceback."""
    above = "\n".join(text.splitlines()[-LINES:])
    _, mark, last = above.rpartition("Traceback (most recent call last)")
    if not mark:
        return ()
    return tuple(Frame(file=f, line=int(n), function=name.strip()) for f, n, name in _FRAME.findall(last))


def model_frame(frames: Sequence[Frame]) -> Frame | None:
    """The innermost call in a model's own file, or else in any that is not torch's."""
    models = [frame for frame in frames if frame.name.startswith("modeling_") and frame.name != "modeling_utils.py"]
    own = [frame for frame in frames if not frame.in_torch]
    found = models or own
    return found[-1] if found else None


def phase_of(frames: Sequence[Frame]) -> Phase | None:
    """What a run was doing; None where the calls do not tell."""
    functions = {frame.function for frame in frames}
    files = {frame.name for frame in frames}
    if "backward" in functions:
        return "backward"
    if any(re.search(r"[/\\]torch[/\\]optim[/\\]", frame.file) for frame in frames):
        return "optimizer"
    if functions & {"evaluate", "evaluation_loop", "prediction_step", "generate"}:
        return "evaluation"
    if "clip_grad_norm_" in functions:
        return "gradients"
    if files & {"loss_utils.py", "loss.py"} or "cross_entropy" in functions:
        return "loss"
    if functions & {"forward", "_call_impl", "training_step", "compute_loss"}:
        return "forward"
    if functions & {"from_pretrained", "load_model", "_apply"}:
        return "load"
    return None
