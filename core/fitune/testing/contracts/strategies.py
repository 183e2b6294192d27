"""What every memory strategy must keep to."""

from __future__ import annotations

from pathlib import Path

from fitune.plugin.records import MemoryStrategy
from fitune.testing.contracts.trial import Options, Trial, losses, must_go_on_to_the_bit

ROUNDING = 1e-3
"""By how much losses in float32 may differ, relative, where a strategy says that it is exact."""


def strategy_keeps_its_contract(plugin: object, name: str, directory: Path, options: Options) -> None:
    """Raise `AssertionError`, which says what of the contract is broken."""
    trial = Trial(plugin=plugin, directory=directory, changes={"memory": {"strategy": [{"use": name, **options}]}})
    record = trial.find(MemoryStrategy, name)
    found = losses(must_go_on_to_the_bit(trial))
    if record.exact and not record.accumulates:  # which changes what a step is
        wanted = losses(Trial(plugin=plugin, directory=directory).ran("without"))
        off = max(abs(one / other - 1) for one, other in zip(found, wanted, strict=True))
        assert off <= ROUNDING, (
            f"its record says exact=True, but losses are off by {off:.2g} from those of a run without it: {found} in "
            f"place of {wanted}"
        )
    trial.forecast()
