"""What every memory strategy must keep to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fitune.plugin.records import MemoryStrategy
from fitune.plugin.relations import ROLES, Role
from fitune.plugin.strategy import Plan, Strategy
from fitune.testing.contracts.trial import (
    STEPS,
    Options,
    Trial,
    losses,
    must_be_called,
    must_go_on_to_the_bit,
    must_not_fail,
)

ROUNDING = 1e-3
"""By how much losses in float32 may differ, relative, where a strategy says that it is exact."""


def strategy_keeps_its_contract(plugin: object, name: str, directory: Path, options: Options) -> None:
    """Raise `AssertionError`, which says what of the contract is broken."""
    record = Trial(plugin=plugin, directory=directory).find(MemoryStrategy, name)
    plain = {"train": {"steps": STEPS, "max_grad_norm": 0.0}} if "gradients" in record.makes else {}
    changes = {**plain, "memory": {"strategy": [{"use": name, **options}]}}
    trial = Trial(plugin=plugin, directory=directory, changes=changes)
    _says_what_it_makes(record, trial.read("read").strategies[0].options)
    found = losses(must_go_on_to_the_bit(trial))
    if record.exact and not record.accumulates:  # which changes what a step is
        wanted = losses(Trial(plugin=plugin, directory=directory, changes=plain).ran("without"))
        off = [abs(one / other - 1) for one, other in zip(found, wanted, strict=True)]
        worst = off.index(max(off))
        assert off[worst] <= ROUNDING, (
            f"its record says exact=True, but losses are off by {off[worst]:.2g} from those of a run without it: "
            f"{found[worst]:.6f} in place of {wanted[worst]:.6f} at step {worst + 1}"
        )
    trial.forecast()


def _says_what_it_makes(record: MemoryStrategy[Any], options: Any) -> None:
    """Raise `AssertionError` where it makes what a run has once, and its record does not say so, or the other way."""
    strategy = must_not_fail("make fails", lambda: record.make(options))
    must_be_called(strategy, Strategy)
    plan = must_not_fail("plan fails", lambda: strategy.plan(Plan(gpu=True)))
    makes: dict[Role, bool] = {
        "optimizer": type(strategy).make_optimizer is not Strategy.make_optimizer,
        "loss": plan.loss is not None or plan.log_probs is not None,
        "quantization": plan.quantization is not None,
        "gradients": type(strategy).own_gradients is not Strategy.own_gradients,
    }
    for role, does in makes.items():
        assert not does or role in record.makes, (
            f"it can {ROLES[role].replace('their', 'its')}, so its record must say so, for two that do cannot be in a "
            f'recipe: makes=("{role}",)'
        )
        assert does or role not in record.makes, f'its record says makes=("{role}",), and it does not'
