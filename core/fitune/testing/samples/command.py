"""Command `ft sample`: prints the loss of a run's last step."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fitune import RunError, hookimpl


@click.command("sample")
@click.argument("run", type=click.Path(path_type=Path))
def sample_command(run: Path) -> None:
    """Print the loss of the last step of RUN."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise RunError(f"{run} is no run's directory: it holds no metrics.jsonl. Give one that ft run has written")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    if not steps:
        raise RunError(f"{run} has made no step yet. Wait for one")
    click.echo(f"step {steps[-1]['step']}: loss {steps[-1]['loss']:.4f}")


@hookimpl
def ft_commands(cli: click.Group) -> None:
    """Add the command."""
    cli.add_command(sample_command)
