"""A run until it is done: composed, rehearsed and trained; and once memory runs out, composed again with less.

Memory that runs out costs the step in which it does, and the time to load the model again; nothing that was learnt.
Whatever else ends a run, what it has learnt is in a checkpoint, if it can be.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fitune.checkpoint.module_state import ModuleState, module_state
from fitune.checkpoint.state import TrainingState, capture, restore
from fitune.compose.devices import free_memory
from fitune.compose.model import planned
from fitune.compose.parts import Forecaster, Parts, compose
from fitune.compose.processes import process_index
from fitune.data.prepare import Watch
from fitune.data.run_data import Materials, gather
from fitune.errors import FtError, Interrupted, RunError, sentences
from fitune.memory.fit.refit import Composition, Foreseen, Refitter, fitted, refitter_of
from fitune.plugin.events import CheckpointReport, Notice, StopRequest
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.runs.atomic import set_aside
from fitune.runs.identity import write_identity
from fitune.runs.provenance import write_environment, write_recipe
from fitune.train.ending import _not_deterministic
from fitune.train.events import Teller
from fitune.train.keeper import Keeper
from fitune.train.position import Position
from fitune.train.recovery import Shortage, explained, log, out_of_memory, recovery_of, room_on
from fitune.train.rehearsal import rehearse
from fitune.train.resume import Resume, find, identity_of
from fitune.train.save import save_unfinished

Work = Callable[[Keeper, Parts, Position], None]
"""Trains from a position to the end."""


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
        resume: Resume | None = None,
    ) -> None:
        """`refit` finds what to go on with; without it, the search of `[memory] fit` does, on a GPU."""
        self.recipe, self.directory = recipe, directory
        self.parts: Parts | None = None
        """Of the composition at work; None while there is none."""
        self.position = Position()
        self.used: list[Composition] = []
        self._registry, self._watch, self._forecaster = registry, watch, forecaster
        self._refit = refit or (refitter_of(registry) if torch.cuda.is_available() else None)
        self._resume, self._keeper, self._stop = resume, Keeper(), StopRequest()
        self._tell = Teller(registry)
        self._notices: list[Notice] = []
        self._materials: Materials | None = None
        self._loaded: ModuleState | None = None
        self._state: TrainingState | None = None
        self._shortage: Shortage | None = None
        self._unfinished: Path | None = None

    def make(self, work: Work) -> None:
        """Do the work, in as many compositions as it takes.

        Raises `RunError` where memory runs out and nothing takes less, and whatever else ends the work.
        """
        if self._resume is not None:
            self._go_back()
        self.used.append(self._choose())
        while (shortage := self._attempt(work)) is not None:
            self._tighten(shortage)

    def _go_back(self) -> None:
        """Take the newest checkpoint that is whole."""
        process = process_index()
        checkpoint, damaged = find(self.directory, process, main=process == 0)
        where = "the beginning"
        if checkpoint is not None:
            progress = checkpoint.progress
            self.position = Position(progress.step, progress.evaluated)
            self._keeper, self._state = Keeper(progress), checkpoint.state
            where = f"step {progress.step}"
        for what in damaged:
            what = f"{what}. It is left out, and the run goes on from {where}"
            self._notices.append(Notice(step=self.position.step, kind="damaged checkpoint", what=what))

    def _choose(self) -> Composition:
        """What `[memory] fit` chooses, or chose when the run began; without it the recipe as it is."""
        if not self.recipe.memory.fit:
            return Composition(recipe=self.recipe)
        if self._resume is not None and (chosen := self._resume.composition(self.directory, self._registry)):
            return Composition(recipe=chosen, lines=("as it was chosen when the run began",))
        planned(self.recipe, gpu=torch.cuda.is_available())  # what it names itself must be right before data are read
        self._materials = gather(self.recipe, self._watch)
        return fitted(self.recipe, self._registry, self._materials)

    def _attempt(self, work: Work) -> Shortage | None:
        """Work until it is done, or until memory runs out."""
        self.position.doing = "loading"
        try:
            self.parts = self._compose()
            self._rehearse(self.parts)
            self.position.doing = ""
            work(self._keeper, self.parts, self.position)
        except BaseException as error:
            said = out_of_memory(error)
            if said is None:
                ending = _not_deterministic(error) or error
                self._rescue(ending)
                raise ending from (error if ending is not error else error.__cause__)
            log(error, self.directory)
            if not self._may_go_on():
                ending = RunError(self._without_recovery(said))
                self._rescue(ending)
                raise ending from error
            return self._cut_short(said)
        return None

    def _compose(self) -> Parts:
        """Compose the last of the compositions, with what was learnt before."""
        composition, first = self.used[-1], len(self.used) == 1
        forecaster = self._forecaster if first else None
        if composition.forecast is not None:  # it was made for the choice
            forecaster = Foreseen(composition.forecast)
        parts = compose(
            composition.recipe,
            self.directory,
            self._watch,
            forecaster,
            materials=self._materials,
            fitted=composition.lines,
            resumed=None if self._resume is None else self.position.step,
            evaluated=self.position.evaluated,
            stop=self._stop,
        )
        self.used[-1] = Composition(recipe=composition.recipe, forecast=parts.run.forecast, lines=composition.lines)
        self._materials, self._loaded = parts.materials, module_state(parts.run.model)
        if first:
            self._be_same(parts)
        if self._state is not None:
            restore(parts, self._state)
        self._keeper.begin(parts, self._loaded)
        if parts.accelerator.is_main_process:
            write_recipe(composition.recipe, self.directory)
        if first and self._shortage is None:
            self._tell.started(parts.run)
            for notice in self._notices:
                self._tell.report(parts.run, notice)
        return parts

    def _be_same(self, parts: Parts) -> None:
        """Note what the run is; one that goes on must be what it was. Raises `RunError`."""
        identity = identity_of(parts, self.recipe)
        if self._resume is not None:
            self._resume.must_be_same(self.directory, identity)
            if others := self._resume.other_versions(identity):
                what = f"other versions than when the run began: {'; '.join(others)}. Numbers may differ by rounding"
                self._notices.append(Notice(step=self.position.step, kind="versions", what=what))
        if not parts.accelerator.is_main_process:
            return
        write_identity(self.directory, identity)  # the first file of all: with it, a run can go on
        write_environment(
            self.recipe,
            self._registry,
            self.directory,
            model_commit=getattr(parts.run.model.config, "_commit_hash", None),
        )
        moved = set_aside(self.directory / self.recipe.adapter.record.directory)
        if moved is not None:
            what = f"what this run had trained to its end before is now in {moved}"
            self._notices.append(Notice(step=self.position.step, kind="moved", what=what))

    def _rehearse(self, parts: Parts) -> None:
        """Rehearse, if the recipe says so; then tell that the run goes on, if it had to be composed again."""
        if self.recipe.memory.rehearse and on_gpu(parts):
            self.position.doing = "rehearsal"
            assert self._loaded is not None
            self._state = self._state or capture(parts, self.position.step, self._loaded)
            report = rehearse(parts, self._state)
            self._tell.rehearsed(parts.run, report)
        if self._shortage is not None:
            self._tell.recovered(parts.run, recovery_of(self._shortage, self.used[-1], self.position.step))
        self._shortage = self._state = None

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
                if position.step and position.step != self._keeper.saved:
                    self._tell.report(parts.run, self._keeper.keep(parts, position, "memory", self._state))
            elif position.step:
                self._unfinished = save_unfinished(parts)
        shortage = Shortage(
            doing=position.doing,
            said=said,
            composition=self.used[-1],
            undone=undone,
            since=time.perf_counter(),
        )
        self._shortage = self._shortage or shortage
        return shortage

    def _rescue(self, error: BaseException) -> None:
        """Keep what was learnt, in a checkpoint, where a run of one process fails; its error then says so too."""
        parts, at, keeper = self.parts, self.position, self._keeper
        if not isinstance(error, Exception) or isinstance(error, Interrupted) or parts is None or at.step == 0:
            return
        if parts.run.processes > 1 or at.doing in ("loading", "rehearsal"):
            return
        if at.step != keeper.saved and (not at.doing or at.undo(parts)):
            assert self._loaded is not None
            random = at.random if at.doing else None
            with contextlib.suppress(Exception):  # the error that ends the run is the one to tell
                state = capture(parts, at.step, self._loaded, random)
                report = keeper.keep(parts, at, "error", state)
                if isinstance(report, CheckpointReport):
                    self._tell.report(parts.run, report)
        if isinstance(error, FtError):
            error.lines = (*error.lines, self._saved())

    def _saved(self) -> str:
        """What of the run is saved, and how it goes on."""
        if self._unfinished is not None:
            of_old = f"The newest checkpoint is that of step {self._keeper.saved}"
            kept = of_old if self._keeper.saved else "Nothing is saved that it could go on from"
            return f"{kept}. What trains, in the midst of step {self.position.step + 1}, is in {self._unfinished}"
        if self._keeper.saved is None:
            return "Nothing is saved"
        place = self._keeper.place(self.directory)
        what = f"What was trained in {self._keeper.saved} steps is saved in {place}"
        return f"{what}. Go on with: ft run {self.directory}"

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
        where = {"step": f"step {self.position.step + 1}", "evaluation": "an evaluation", "rehearsal": "the rehearsal"}
        error = RunError(
            f"out of GPU memory in {where.get(shortage.doing, shortage.doing)}: {shortage.said} "
            + sentences(
                why[0].upper() + why[1:], self._saved(), f"What would make it fit: ft explain-oom {self.directory}"
            )
        )
        error.lines = (*error.lines, *explained(self.directory, self._registry))
        return error

    def _without_recovery(self, said: str) -> str:
        """What was asked for, and what tells what a recipe can do about it."""
        if self.parts is None:
            return f"out of GPU memory while loading: {said} What would make it fit: ft plan RECIPE --levers"
        return f"out of GPU memory in training: {said} What would make it fit: ft explain-oom {self.directory}"


def on_gpu(parts: Parts) -> bool:
    """Whether a run is on a GPU."""
    return bool(parts.accelerator.device.type == "cuda")
