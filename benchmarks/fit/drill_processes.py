"""What the drill starts: the processes that hold memory, and the run that loses it (benchmarks/fit/drill.py)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl

GIB = 2**30
TAKE_AFTER = 4
"""Steps after which the second process takes its memory."""
PATIENCE = 120
"""Seconds that one process waits for another."""
HELD = 1000
"""Seconds after which memory is given back, whatever has become of the drill."""


def main() -> None:
    """Be one of the processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hold", type=Path, help="hold memory, with signals in this directory")
    parser.add_argument("--gib", type=float)
    parser.add_argument("--run", type=Path, help="make the run of this directory")
    parser.add_argument("--signals", type=Path, help="of the process that takes memory in mid-run")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    if arguments.hold:
        hold(arguments.hold, arguments.gib, dry=arguments.dry)
    else:
        train(arguments.run, arguments.signals, dry=arguments.dry)


def touch(path: Path) -> None:
    """Tell whoever waits for it."""
    path.touch()


def await_file(path: Path, patience: float = PATIENCE) -> None:
    """Wait until somebody has touched it."""
    end = time.perf_counter() + patience
    while not path.exists():
        if time.perf_counter() > end:
            sys.exit(f"{path.name} of {path.parent.name} did not come in {patience} s")
        time.sleep(0.05)


def hold(directory: Path, gib: float, *, dry: bool) -> None:
    """Take memory once told to: so many GiB, or, of more than 20, all but so many. Then hold it until killed."""
    if not dry:
        import torch

        torch.cuda.init()
        torch.empty(1, device="cuda")
    touch(directory / "ready")
    await_file(directory / "take", HELD)
    if not dry:
        free = torch.cuda.mem_get_info()[0]
        size = free - int(gib * GIB) if gib > 20 else int(gib * GIB)
        kept = torch.empty(size, dtype=torch.uint8, device="cuda")
        print(f"another process holds {kept.nbytes / GIB:.2f} GiB of the card", flush=True)
    touch(directory / "taken")
    time.sleep(HELD)


def train(directory: Path, signals: Path | None, *, dry: bool) -> None:
    """One `ft run` in this process."""
    from fitune.errors import FtError
    from fitune.memory.background import beside_run
    from fitune.plugin.registry import Registry
    from fitune.recipe.reader import read_recipe
    from fitune.train.run import run

    registry = Registry.open(third_party=False)
    pretence = Pretence() if dry else None
    if signals is not None:
        registry.register(Signal(signals, pretence), "drill.signal")
    if pretence is not None:
        registry.register(pretence, "drill.pretence")
    settings = json.loads((directory.parent / "settings.json").read_text(encoding="utf-8"))
    recipe = read_recipe(Path(settings["recipe"]), registry, settings["overrides"])
    try:
        with beside_run(third_party=False, granted=frozenset(), force=True) as forecaster:
            run(recipe, registry, directory, forecaster=forecaster, refit=None if pretence is None else pretence.refit)
    except FtError as error:
        sys.exit("\n".join(error.lines))


class Signal:
    """A plugin that has the second process take its memory in mid-run, and waits until it has."""

    def __init__(self, directory: Path, pretence: Pretence | None) -> None:
        self.directory, self.pretence = directory, pretence

    @hookimpl
    def ft_step_done(self, step: Any) -> None:
        """After one of the steps."""
        if step.step == TAKE_AFTER:
            touch(self.directory / "take")
            await_file(self.directory / "taken")
            if self.pretence is not None:
                self.pretence.short = True


class Pretence:
    """A plugin for a dry run: strategy `short` runs out of memory at long rows that are not checkpointed."""

    def __init__(self) -> None:
        self.short = False

    @hookimpl
    def ft_memory_strategies(self) -> Iterator[Any]:
        """Offer it."""
        pretence = self

        class Short(Strategy):
            def prepare(self, model: Any) -> Any:
                def look(module: Any, inputs: Any, output: Any) -> None:
                    import torch

                    checkpointed = any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
                    if pretence.short and output.shape[1] > 100 and not checkpointed:
                        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

                model.get_input_embeddings().register_forward_hook(look)
                return model

        yield MemoryStrategy(name="short", summary="Pretends", options=NoOptions, make=lambda options: Short())

    def refit(self, asked: Any, used: Any, run_data: Any, room: int) -> Any:
        """Go on with gradient checkpointing."""
        from fitune.memory.fit.refit import Composition
        from fitune.plugin.recipe import Use
        from fitune_plugins.memory.gradient_checkpointing import ft_memory_strategies

        (record,) = ft_memory_strategies()
        use = Use(record=record, options=record.options())
        return Composition(recipe=dataclasses.replace(asked, strategies=(use, *asked.strategies)))


if __name__ == "__main__":
    main()
