"""Options that say where a model and data are now, that are not where they were."""

from __future__ import annotations

from pathlib import Path

import click

model_option = click.option(
    "--model",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Where the base model is now, if not where it was.",
)

data_option = click.option(
    "--data",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where the data are now, if not where they were; once for each source.",
)
