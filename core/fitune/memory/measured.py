"""What a run on a GPU took, beside its forecast: `memory.json`, and what that shows of the card."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable

from fitune.errors import cause
from fitune.plugin.events import MemoryForecast, Run
from fitune.plugin.hookspecs import hookimpl
from fitune.plugin.options import NoOptions
from fitune.plugin.records import Listener
from fitune.runs.atomic import write_file
from fitune.runs.json_lines import Complaints
from fitune.runs.layout import MEMORY


@hookimpl
def ft_listeners() -> Iterable[Listener[NoOptions]]:
    """Offer `memory`."""
    yield Listener(
        name="memory",
        summary="Writes a GPU run's forecast beside what was measured to memory.json",
        options=NoOptions,
        make=lambda options: MemoryFile(),
        default=True,
    )


class MemoryFile:
    """Keeps a GPU run's forecast beside what was measured, in `memory.json`, and what that shows of the card."""

    def __init__(self) -> None:
        self._complaints = Complaints()

    @hookimpl
    def ft_run_finished(self, run: Run | None, error: BaseException | None) -> None:
        """Measure, and write both."""
        if run is None or run.forecast is None or error is not None:
            return
        from fitune.compose.devices import measure_context, measure_memory
        from fitune.memory.cards.observed import note

        memory = measure_memory(run.device)
        if memory.kind != "gpu":  # the recipe is made to fit a card that is not here
            return
        context = measure_context(run.device)
        measured = {"allocated": memory.peak, "reserved": memory.reserved, "context": context}
        kept = {"forecast": dataclasses.asdict(run.forecast), "measured": measured}
        try:
            write_file(run.directory / MEMORY, json.dumps(kept, indent=2) + "\n")
        except OSError as failure:
            what = f"what was measured of the run's memory cannot be written: {cause(failure)}"
            self._complaints.tell("memory", f"{what}. It is done, and nothing else is missing")
        if run.forecast.error is None and memory.reserved and _is_of_this_card(run.forecast):
            with contextlib.suppress(OSError):  # it is for the next forecast, and the run is done
                note(run.forecast.card, context=context, reserved=memory.reserved, forecast=run.forecast.reserved)


def _is_of_this_card(forecast: MemoryForecast) -> bool:
    """Whether a forecast is for the card that it is measured on, rather than one that a recipe names."""
    from fitune.memory.cards.cards import local_card

    card = local_card()
    return card is not None and card.name == forecast.card
