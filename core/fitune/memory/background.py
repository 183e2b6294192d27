"""The forecast of a run that is starting: made in a process of its own while the weights are read.

It cannot share the run's process: it changes, for as long as it traces, what torch's functions do.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fitune.compose.processes import process_count
from fitune.data.prepare import Prepared
from fitune.errors import RunError
from fitune.memory.cards.cards import Card, local_card
from fitune.memory.cards.observed import better_known
from fitune.memory.cards.several import several
from fitune.memory.shapes import Shapes, shapes_of_rows
from fitune.plugin.dataflow import DataContext
from fitune.plugin.events import MemoryForecast
from fitune.plugin.own_python import command_of
from fitune.plugin.recipe import Recipe
from fitune.plugin.units import gib
from fitune.recipe.checks import KEY

PATIENCE = 600
"""Seconds that a run waits for its forecast once its weights are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the other process is told."""

    recipe: Path
    third_party: bool
    trusts_remote_code: bool
    granted: frozenset[str]
    """Digests of single-file plugins that may run."""
    shapes: Shapes
    card: Card


class Beside:
    """Forecasts one run on one card, beside it."""

    def __init__(
        self, card: Card, *, third_party: bool, granted: frozenset[str] = frozenset(), force: bool = False
    ) -> None:
        self.card = card
        self._third_party = third_party
        self._granted = granted
        self._force = force
        self._process: subprocess.Popen[bytes] | None = None
        self._failure = "it was not started"
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def prepare(self) -> None:
        """Start the process, which takes seconds to import what it needs: meanwhile data are prepared."""
        try:
            self._spawn()
        except OSError as error:  # a run does not fail for want of its forecast
            self._failure = f"its process could not be started: {error.strerror or error}"

    def start(
        self, recipe: Recipe, context: DataContext, accumulation: int, data: Prepared, held_out: Prepared | None
    ) -> None:
        """Begin, once the rows are known."""
        shapes = shapes_of_rows(recipe, context, accumulation, data.rows, held_out.rows if held_out else ())
        self._directory = tempfile.TemporaryDirectory(prefix="fitune-")
        path = Path(self._directory.name) / "recipe.toml"
        path.write_text(tomli_w.dumps(recipe.to_toml()), encoding="utf-8")
        request = Request(
            recipe=path,
            third_party=self._third_party,
            trusts_remote_code=bool(getattr(recipe.model.options, KEY, False)),  # or it could not have been read here
            granted=self._granted,
            shapes=shapes,
            card=self.card,
        )
        if self._process is None:
            self.prepare()
        self._ask(pickle.dumps(request))

    def _spawn(self) -> None:
        self._process = subprocess.Popen(
            command_of("fitune.memory.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # not one byte of the card
        )

    def _ask(self, request: bytes) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and says why on its other end
            self._process.stdin.write(request)
            self._process.stdin.close()
        self._process.stdin = None

    def result(self) -> MemoryForecast:
        """The forecast; one that could not be made says why. Raises `RunError` if the run does not fit."""
        try:
            found = self._read()
        finally:
            self.stop()
        if found.error is None and not found.fits and not self._force:
            raise RunError(
                f"the run would not fit on {self.card.title}: the forecast is {gib(found.needed + found.margin)} with "
                f"its margin, and the card has {gib(self.card.usable)} beside a context of {gib(self.card.outside)}. "
                "What would help: ft plan RECIPE --levers. To try all the same: --force"
            )
        return found

    def stop(self) -> None:
        """End the process, if it is still there, and leave nothing behind."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        if self._directory is not None:
            self._directory.cleanup()
        self._process = self._directory = None

    def _read(self) -> MemoryForecast:
        if self._process is None:
            return MemoryForecast(card=self.card.name, error=self._failure)
        try:
            out, complaint = self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return MemoryForecast(card=self.card.name, error=f"it took over {PATIENCE} seconds")
        if self._process.returncode:
            lines = [line for line in complaint.decode(errors="replace").splitlines() if line.strip()]
            return MemoryForecast(card=self.card.name, error=lines[-1] if lines else "its process ended")
        plan: dict[str, Any] = json.loads(out)
        return MemoryForecast(
            card=self.card.title,
            fits=plan["fits"],
            **{key: plan[key] for key in ("allocated", "reserved", "needed", "margin")},
            context=self.card.outside,
            ledger=tuple(plan["ledger"].items()),
        )


@contextlib.contextmanager
def beside_run(
    *, third_party: bool, granted: frozenset[str], force: bool, wanted: bool = True
) -> Iterator[Beside | None]:
    """A forecaster for a run on this machine's GPU, whose process does not outlive the run; None without a GPU.

    `granted` are the digests of the single-file plugins that may run in it. Where it is `wanted` for sure, its process
    begins at once.
    """
    card = local_card()
    if card is None:
        yield None
        return
    beside = Beside(several(better_known(card), process_count()), third_party=third_party, granted=granted, force=force)
    try:
        if wanted:
            beside.prepare()
        yield beside
    finally:
        beside.stop()
