"""Offers the console as a listener. What draws it, and rich with it, is imported where a run makes one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fitune.plugin.hookspecs import hookimpl
from fitune.plugin.records import Listener


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleOptions:
    """Options of `console`."""

    quiet: bool = False
    """Print nothing of how the run goes on."""


@hookimpl
def ft_listeners() -> Iterable[Listener[ConsoleOptions]]:
    """Offer `console`."""
    yield Listener(
        name="console",
        summary="Shows how the run goes on, in a terminal or in plain lines",
        options=ConsoleOptions,
        make=_make,
        default=True,
    )


def _make(options: ConsoleOptions) -> object:
    from fitune.cli.console import RunConsole
    from fitune.cli.text_console import TextConsole

    return RunConsole(TextConsole(quiet=options.quiet))
