"""`ft bench`: measures this machine's card. What it does with torch is imported when it runs."""

from __future__ import annotations

import click

from fitune.cli.printing import say
from fitune.cli.settings import switches
from fitune.errors import RunError, cause


@click.command("bench")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON; what is done goes to stderr.")
@switches
def bench_command(as_json: bool) -> None:
    """Measure this machine's GPU, for forecasts of time: about a minute.

    Products of matrices, attention, memory, launches and the link to the host. ft plan and [memory] fit use what is
    measured from then on, in place of what is shipped or assumed. Needs an NVIDIA GPU.
    """
    from fitune.memory.cards.bench import measure
    from fitune.memory.cards.rates import directory, keep, to_json

    rates = measure(lambda text: say(text, err=as_json))
    try:
        say(f"kept in {keep(rates)}", err=as_json)
    except OSError as error:
        if not as_json:
            raise RunError(f"what was measured cannot be kept in {directory()}: {cause(error)}") from error
        say(f"not kept in {directory()}: {cause(error)}", err=True)
    if as_json:
        say(to_json(rates).rstrip())
