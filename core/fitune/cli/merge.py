"""`ft merge`: its options. What it does is in `fitune.trained.merge`, which is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fitune.cli.numbers import Finite
from fitune.cli.places import model_option
from fitune.cli.printing import say
from fitune.cli.settings import (
    Settings,
    changed_plugins_option,
    checkpoint_option,
    loading_switches,
    run_argument,
    tell_of,
    watch,
)

if TYPE_CHECKING:
    from fitune.trained.open import Trained

DTYPES = ("bfloat16", "float16", "float32")


@click.command("merge")
@run_argument
@click.option(
    "--to", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Directory to write: new, or empty."
)
@checkpoint_option
@click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True, help="Of the weights.")
@click.option(
    "--limit",
    type=Finite(min=0, min_open=True),
    metavar="X",
    help="Largest relative difference, and distance of the share from 1.  [default: by type]",
)
@click.option(
    "--rows", type=click.IntRange(min=1), default=16, show_default=True, metavar="N", help="Rows to compare on."
)
@click.option("--data", metavar="FILE", type=click.Path(path_type=Path), help="Compare on rows of this file.")
@click.option("--shard-size", default="5GB", show_default=True, metavar="SIZE", help="Largest file of weights.")
@model_option
@changed_plugins_option
@loading_switches
@click.pass_obj
def merge_command(
    settings: Settings,
    /,
    run: Path,
    to: Path,
    checkpoint: str | None,
    dtype: str,
    data: Path | None,
    model: Path | None,
    **asked: Any,
) -> None:
    """Write what RUN trained as a plain model of transformers, and prove that it is the same.

    The merged model is read back and compared with the base and its adapter, on held-out rows or else on rows that
    were trained on. If they differ by more than rounding, nothing is written.
    """
    from fitune.trained.evaluate import find_to_evaluate
    from fitune.trained.open import find

    registry = settings.registry()
    if data is None:
        trained = find(run, registry, checkpoint, model=model)
    else:
        trained = find_to_evaluate(run, registry, checkpoint, (), data, model)
    _merge(trained, to, dtype, data is not None, asked)


def _merge(trained: Trained, to: Path, dtype: str, file: bool, asked: Any) -> None:
    tell_of(trained)
    import torch

    from fitune.trained.merge import Merge, merge

    to = to if to.name not in ("", "..") else to.resolve()  # what is written needs a name to stand beside
    found = merge(trained, Merge(to=to, dtype=getattr(torch, dtype), file=file, **asked), watch())
    for line in found.lines:
        say(line)
    say(f"merged {to}")
