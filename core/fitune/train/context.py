"""What one run holds from its beginning to its end, over all of its compositions: what the parts of its life share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fitune.checkpoint.module_state import ModuleState
from fitune.checkpoint.state import TrainingState
from fitune.compose.parts import Parts
from fitune.data.prepare import UNWATCHED, Watch
from fitune.data.run_data import RunData
from fitune.memory.fit.refit import Composition
from fitune.plugin.events import Notice, StopRequest
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.plugin.timings import Timings
from fitune.train.events import Events
from fitune.train.keeper import Keeper
from fitune.train.out_of_memory import OutOfMemory
from fitune.train.position import Position
from fitune.train.resume import Resume


@dataclass(slots=True, kw_only=True)
class RunContext:
    """A run at work. What it holds of the card is in `parts` alone, so that it can be let go."""

    recipe: Recipe
    """As it was asked for."""
    registry: Registry
    events: Events
    directory: Path
    watch: Watch = UNWATCHED
    """Told of data being prepared."""
    resume: Resume | None = None
    """What is known of the run, where it goes on."""
    stop: StopRequest = field(default_factory=StopRequest)
    timings: Timings = field(default_factory=Timings)
    """To its first step."""

    start: Path | None = None
    """Where the weights are that its adapter goes on from, as another run has saved them."""

    position: Position = field(default_factory=Position)
    keeper: Keeper = field(init=False)
    notices: list[Notice] = field(default_factory=list)
    """To be told once the run has started."""

    begun: bool = False
    """Whether it was composed in this process, or that was tried."""
    compositions: list[Composition] = field(default_factory=list)
    """All that were used; the last is at work."""
    parts: Parts | None = None
    """Of the composition at work; None while there is none."""
    base: str | None = None
    """The commit or a digest of the base model, once it is known."""
    run_data: RunData | None = None
    """The run's data, prepared once."""
    loaded: ModuleState | None = None
    """What the model's modules were before training."""
    state: TrainingState | None = None
    """What was learnt, on the host, where the next composition goes on from it."""
    shortage: OutOfMemory | None = None
    """What the run has not gone on from yet."""
    unfinished: Path | None = None
    """Where what trains was written in the midst of a step that could not be undone."""

    def __post_init__(self) -> None:
        self.keeper = Keeper(listeners=self.events.states)
