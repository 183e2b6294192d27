"""A plugin whose strategy `trap` has the second of two processes run out of memory amid a layer, as a file."""

from __future__ import annotations

from pathlib import Path

TRAP = '''
"""Has the second process run out of memory in each step of this number, until it was started again so often."""
import dataclasses
import os

import fitune.train.run
import torch
from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl
from fitune.memory.fit.refit import Composition

STEP, ENOUGH = {step}, {enough}
MESSAGE = "CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a total capacity of 22.30 GiB."
steps = 0


def spring(*_):
    file = os.environ["FITUNE_START_AGAIN"]
    starts = open(file).read().count("lines") if os.path.exists(file) else 0
    if steps == STEP and starts < ENOUGH and os.environ["RANK"] == "1":
        if torch.cuda.is_available():
            torch.empty(1 << 42, device="cuda")
        raise torch.OutOfMemoryError(MESSAGE)


class Trap(Strategy):
    def prepare(self, model):
        next(p for p in model.parameters() if p.requires_grad).register_hook(spring)
        return model

    def around_step(self):
        global steps
        steps += 1
        return super().around_step()


def refit(registry):
    (record,) = (p.record for p in registry.provided if p.record.name == "gradient-checkpointing")

    def less(asked, used, run_data, room):
        """Found by the first process, for both."""
        assert os.environ["RANK"] == "0"
        options = record.options(part="mlp" if len(used) == 1 else "layer")
        use = dataclasses.replace(asked.strategies[0], record=record, options=options)
        return Composition(recipe=dataclasses.replace(asked, strategies=(*asked.strategies, use)))

    return less


fitune.train.run._refitter = refit
if {rehearsed}:
    fitune.train.run.on_gpu = lambda parts: True


@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="trap", summary="Fails", options=NoOptions, make=lambda options: Trap())
'''


def write_trap(plugin: Path, *, step: int, enough: int = 1, rehearsed: bool = False) -> None:
    """Write it: memory runs out in this step, until both were started again so often; without a GPU a run is rehearsed
    as on one, if it says so.
    """
    text = TRAP.replace("{step}", str(step)).replace("{enough}", str(enough)).replace("{rehearsed}", str(rehearsed))
    plugin.write_text(text, encoding="utf-8")
