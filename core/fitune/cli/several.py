"""`ft run --gpus N`: the same command in N processes, which train together."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fitune.cli.settings import Settings
from fitune.errors import RunError
from fitune.plugin.own_python import command_of
from fitune.plugin.trust import VARIABLE

HOW_MANY = ("--gpus", "--processes")


def run_several(
    settings: Settings,
    recipe: Path,
    overrides: Sequence[str],
    *,
    gpus: int | None,
    processes: int | None,
    keep_going: bool,
    environment: Mapping[str, str],
    **asked: Any,
) -> None:
    """Train in several processes, which are given more variables. Raises `RunError` where that cannot be."""
    from fitune.train.several import start_processes
    from fitune.train.signals import ignore_hangup
    from fitune.train.start import start_of

    if gpus:
        _must_have(gpus)
    if keep_going:
        ignore_hangup()
    start_of(recipe, settings.registry(), overrides, **asked)  # what is wrong with the recipe is said once, from here
    count = gpus or processes or 1
    command = command_of("fitune", *without(settings.arguments))
    # Who answers here that the recipe's plugins may run, has answered for all.
    code = start_processes(command, count, cpu=gpus is None, environment={**environment, VARIABLE: "1"})
    if code:
        sys.exit(code)


def must_be_one_start(gpus: int | None, processes: int | None) -> None:
    """Raise `RunError` where it is said twice how many processes train."""
    if gpus and processes:
        raise RunError("--gpus and --processes are two ways to say how many processes train. Give one of them")
    if "WORLD_SIZE" in os.environ:
        raise RunError(
            "this is one of several processes that were launched already (WORLD_SIZE is set), and --gpus would start "
            "more of them in each. Remove --gpus, or the launcher"
        )


def without(arguments: Sequence[str]) -> list[str]:
    """The arguments of each of the processes."""
    left, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in HOW_MANY:
            skip = True
        elif argument.split("=", 1)[0] not in HOW_MANY:
            left.append(argument)
    return left


def _must_have(gpus: int) -> None:
    """Raise `RunError` if there are fewer GPUs."""
    import torch

    found = torch.cuda.device_count()
    if found < gpus:
        there = f"{found} GPU{'s are' if found > 1 else ' is'} here" if found else "no GPU is here"
        hint = "" if found else ", or try the recipe without GPUs: --processes N"
        raise RunError(f"--gpus {gpus}, but {there}. Ask for as many as there are{hint}")
