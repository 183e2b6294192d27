"""The listeners of one run: made at its start, told of its events and of no other run's; and their state."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from fitune.errors import FtError, PluginError
from fitune.plugin.contract import blame, listener_title
from fitune.plugin.recipe import Use
from fitune.plugin.records import Listener
from fitune.plugin.registry import Registry


class Listening:
    """The listeners at work in one run."""

    def __init__(self, registry: Registry, uses: Sequence[Use[Listener[Any]]]) -> None:
        """Make them. Raises `PluginError`, which names the listener, where one cannot be made or is none."""
        self._made: dict[str, object] = {}
        for use in uses:
            with blame(f"{listener_title(use.record.name)}: make"):
                self._made[use.record.name] = use.record.make(use.options)
        self.registry = registry.for_run(self._made)
        """The plugins and the listeners, to be told of the run's events."""

    def states(self) -> tuple[dict[str, Any], list[str]]:
        """What each listener that has a state needs to go on, as JSON has it; and why others could not give theirs."""
        states: dict[str, Any] = {}
        failures: list[str] = []
        for name, listener in self._made.items():
            if not hasattr(listener, "state"):
                continue
            what = f"{listener_title(name)}: state"
            try:
                with blame(what):
                    states[name] = json.loads(json.dumps(_mapping(what, listener.state()), allow_nan=False))
            except FtError as error:
                failures.append(error.message if isinstance(error, PluginError) else f"{what}: {error.message}")
        return states, failures

    def restore(self, states: Mapping[str, Any]) -> None:
        """Give each listener what a checkpoint holds of it. Raises `PluginError`, which names the listener."""
        for name, listener in self._made.items():
            if name in states and hasattr(listener, "restore"):
                with blame(f"{listener_title(name)}: restore"):
                    listener.restore(states[name])


def _mapping(what: str, state: object) -> dict[str, Any]:
    """A state as a dictionary, its keys names: JSON would make names of others."""
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise PluginError(f"{what} gave {reprlib.repr(state)}: give a mapping whose keys are strings")
    return dict(state)
