"""A run until it is done: composed, rehearsed and trained; and once memory runs out, composed again with less.

Memory that runs out costs the step in which it does, and the time to load the model again; nothing that was learnt.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fitune.compose import Forecaster, Parts, compose, planned
from fitune.errors import FtError, RunError, sentences
from fitune.events import Recovery
from fitune.fitting import Composition, Foreseen, Refitter, fitted, refitter_of
from fitune.materials import Materials, gather
from fitune.module_state import ModuleState, module_state
from fitune.prepare import Watch
from fitune.processes import is_main_process
from fitune.provenance import write_environment, write_recipe
from fitune.recipe import Recipe
from fitune.recovery import Position, free_memory, out_of_memory, room_on
from fitune.registry import Registry
from fitune.rehearsal import rehearse
from fitune.saving import save
from fitune.telling import Teller
from fitune.training_state import TrainingState, capture, restore

KEPT = ".kept"
"""Directory, in the run's, of what was trained until memory ran out; gone once the run goes on."""
LOG = "error.txt"
"""torch's message, for `ft explain-oom`."""

Work = Callable[[Parts, Position], None]
"""Trains from a position to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Memory that ran out."""

    doing: str
    """What it was asked for in: "loading", "rehearsal", "step" or "evaluation"."""
    said: str
    """By the GPU's libraries, in a line."""
    composition: Composition
    """What ran out."""
    undone: bool
    """Whether everything is as it was before."""
    since: float
    """When it was, in seconds of `time.perf_counter`."""


class Attempts:
    """The compositions of one run, one after another."""

    def __init__(
        self,
        recipe: Recipe,
        registry: Registry,
        directory: Path,
        watch: Watch,
        forecaster: Forecaster | None,
        refit: Refitter | None,
    ) -> None:
        """`refit` finds what to go on with; without it, the search of `[memory] fit` does, on a GPU."""
        self.recipe, self.directory = recipe, directory
        self.parts: Parts | None = None
        """Of the composition at work; None while there is none."""
        self.position = Position()
        self.used: list[Composition] = []
        self._registry, self._watch, self._forecaster = registry, watch, forecaster
        self._refit = refit or (refitter_of(registry) if torch.cuda.is_available() else None)
        self._tell = Teller(registry)
        self._materials: Materials | None = None
        self._loaded: ModuleState | None = None
        self._state: TrainingState | None = None
        self._shortage: Shortage | None = None

    def make(self, work: Work) -> None:
        """Do the work, in as many compositions as it takes.

        Raises `RunError` where memory runs out and nothing takes less, and whatever else ends the work.
        """
        self.used.append(self._choose())
        try:
            while (shortage := self._attempt(work)) is not None:
                self._tighten(shortage)
        except BaseException:
            self._keep_for_good()
            raise

    def _choose(self) -> Composition:
        """What `[memory] fit` chooses; without it the recipe as it is."""
        if not self.recipe.memory.fit:
            return Composition(recipe=self.recipe)
        planned(self.recipe, gpu=torch.cuda.is_available())  # what it names itself must be right before data are read
        self._materials = gather(self.recipe, self._watch)
        return fitted(self.recipe, self._registry, self._materials)

    def _attempt(self, work: Work) -> Shortage | None:
        """Work until it is done, or until memory runs out."""
        self.position.doing = "loading"
        try:
            self.parts = self._compose()
            self._rehearse(self.parts)
            work(self.parts, self.position)
        except BaseException as error:
            said = out_of_memory(error)
            if said is None:
                raise
            self._log(error)
            if not self._may_go_on():
                raise RunError(self._without_recovery(said)) from error
            return self._cut_short(said)
        return None

    def _compose(self) -> Parts:
        """Compose the last of the compositions, with what was learnt before."""
        composition = self.used[-1]
        forecaster = self._forecaster if len(self.used) == 1 else None
        if composition.forecast is not None:  # it was made for the choice
            forecaster = Foreseen(composition.forecast)
        parts = compose(
            composition.recipe,
            self.directory,
            self._watch,
            forecaster,
            materials=self._materials,
            fitted=composition.lines,
        )
        self.used[-1] = Composition(recipe=composition.recipe, forecast=parts.run.forecast, lines=composition.lines)
        self._materials, self._loaded = parts.materials, module_state(parts.run.model)
        if self._state is not None:
            restore(parts, self._state)
        if parts.accelerator.is_main_process:
            write_recipe(composition.recipe, self.directory)
            if self._shortage is None:
                commit = getattr(parts.run.model.config, "_commit_hash", None)
                write_environment(self.recipe, self._registry, self.directory, model_commit=commit)
        if self._shortage is None and len(self.used) == 1:
            self._tell.started(parts.run)
        return parts

    def _rehearse(self, parts: Parts) -> None:
        """Rehearse, if the recipe says so; then tell that the run goes on, if it had to be composed again."""
        if self.recipe.memory.rehearse and on_gpu(parts):
            self.position.doing = "rehearsal"
            assert self._loaded is not None
            self._state = self._state or capture(parts, self.position.step, self._loaded)
            report = rehearse(parts, self._state)
            self._tell.rehearsed(parts.run, report)
        if self._shortage is not None:
            self._tell.recovered(parts.run, _recovery(self._shortage, self.used[-1], self.position.step))
        self._shortage = self._state = None
        shutil.rmtree(self.directory / KEPT, ignore_errors=True)

    def _may_go_on(self) -> bool:
        """Whether there is a way to go on at all: a run of one process, with something to go on from."""
        found = self.parts.run.processes == 1 if self.parts is not None else self._state is not None
        return found and self._refit is not None and self.recipe.memory.recoveries > 0 and bool(self.position.doing)

    def _cut_short(self, said: str) -> Shortage:
        """Undo what was being done, and take what was learnt off the card."""
        parts, position, undone = self.parts, self.position, True
        if parts is not None and position.doing in ("step", "evaluation"):
            assert self._loaded is not None
            undone = position.undo(parts)
            if undone:
                self._state = capture(parts, position.step, self._loaded, position.random)
            if position.step:
                with contextlib.suppress(RunError):  # it is on the host, too
                    save(parts, KEPT)
        shortage = Shortage(
            doing=position.doing,
            said=said,
            composition=self.used[-1],
            undone=undone,
            since=time.perf_counter(),
        )
        self._shortage = self._shortage or shortage
        return shortage

    def _tighten(self, shortage: Shortage) -> None:
        """Free the card and choose what takes less. Raises `RunError` where the run cannot go on."""
        if not shortage.undone:
            raise self._end(shortage, "The optimizer had begun to change weights, which cannot be undone")
        if len(self.used) > self.recipe.memory.recoveries:
            raise self._end(shortage, f"It went on {len(self.used) - 1} times ([memory] recoveries)")
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        self.parts = None
        free_memory(device)
        assert self._refit is not None
        assert self._materials is not None
        try:
            room = room_on(device, shortage.said)
            self.used.append(self._refit(self.recipe, self.used, self._materials, room))
        except FtError as error:
            raise self._end(shortage, error.message) from None

    def _end(self, shortage: Shortage, why: str) -> RunError:
        """What ends the run, with the lines of `ft explain-oom`."""
        kept = self._keep_for_good()
        of_it = f"What was trained in {self.position.step} steps is saved in {kept}" if kept else "Nothing is saved"
        where = {"step": f"step {self.position.step + 1}", "evaluation": "an evaluation", "rehearsal": "the rehearsal"}
        error = RunError(
            f"out of GPU memory in {where.get(shortage.doing, shortage.doing)}: {shortage.said} "
            + sentences(why[0].upper() + why[1:], of_it, f"What would make it fit: ft explain-oom {self.directory}")
        )
        error.lines = (*error.lines, *_explained(self.directory, self._registry))
        return error

    def _keep_for_good(self) -> Path | None:
        """Give what was trained until memory ran out, if it is there, the adapter's name."""
        kept = self.directory / KEPT
        final = self.directory / self.recipe.adapter.record.directory
        if not kept.is_dir() or final.exists():
            return final if final.exists() else None
        kept.replace(final)
        return final

    def _without_recovery(self, said: str) -> str:
        """What was asked for, and what tells what a recipe can do about it."""
        if self.parts is None:
            return f"out of GPU memory while loading: {said} What would make it fit: ft plan RECIPE --levers"
        return f"out of GPU memory in training: {said} What would make it fit: ft explain-oom {self.directory}"

    def _log(self, error: BaseException) -> None:
        """Leave the message in the run's directory; where that cannot be, it is told anyway."""
        if is_main_process():
            with contextlib.suppress(OSError):
                text = "".join(traceback.format_exception(error))
                (self.directory / LOG).write_text(text, encoding="utf-8")


def on_gpu(parts: Parts) -> bool:
    """Whether a run is on a GPU."""
    return bool(parts.accelerator.device.type == "cuda")


def _recovery(shortage: Shortage, now: Composition, step: int) -> Recovery:
    before = shortage.composition
    return Recovery(
        step=step,
        phase=shortage.doing,
        error=shortage.said,
        before=before.tables,
        after=now.tables,
        micro_batch=(before.recipe.train.micro_batch, now.recipe.train.micro_batch),
        forecast=now.forecast,
        seconds=time.perf_counter() - shortage.since,
    )


def _explained(directory: Path, registry: Registry) -> tuple[str, ...]:
    """What `ft explain-oom` says of this run; nothing where it cannot tell."""
    from fitune.forecast.explain import explain
    from fitune.forecast.oom_message import read_message
    from fitune.forecast.oom_report import lines
    from fitune.reader import read_recipe

    try:
        message = read_message((directory / LOG).read_bytes(), LOG)
        said = lines(explain(read_recipe(directory / "recipe.toml", registry), registry, message))
        return tuple(line for line in said if line.strip())
    except (FtError, OSError):
        return ()
