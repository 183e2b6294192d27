"""`ft report`: its options. What it writes is in `fitune.runs.report`, which is imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from fitune.cli.printing import say
from fitune.cli.settings import switches
from fitune.errors import RunError, cause


@click.command("report")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--to", required=True, metavar="FILE", type=click.Path(path_type=Path), help="File to write, e.g. report.html."
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@switches
def report_command(runs: tuple[Path, ...], to: Path, force: bool) -> None:
    """Write what became of RUN, or of several, as one page of HTML.

    Losses, learning rate, speed, memory beside its forecast, evaluations, answers before and after, choices,
    environment. It needs no network and runs no script, so it can be kept and sent.
    """
    from fitune._version import __version__
    from fitune.runs.atomic import write_file
    from fitune.runs.report.collect import collect
    from fitune.runs.report.page import page

    if to.exists() and not force:
        raise RunError(f"--to {to} is there already. Give another, or --force")
    text = page([collect(run) for run in runs], __version__)
    try:
        write_file(to, text)
    except OSError as error:
        raise RunError(f"--to {to} cannot be written: {cause(error)}. Give another") from error
    say(f"wrote {to}  ({len(text.encode()) / 1000:,.0f} kB)")
