"""What every listener must keep to."""

from __future__ import annotations

import json
from pathlib import Path

from fitune.plugin.records import Listener
from fitune.testing.contracts.trial import Options, Trial, must_be_equal, must_go_on_to_the_bit, must_not_fail, weights


def listener_keeps_its_contract(plugin: object, name: str, directory: Path, options: Options) -> None:
    """Raise `AssertionError`, which says what of the contract is broken."""
    trial = Trial(plugin=plugin, directory=directory, changes={"listener": [{"use": name, **options}]})
    record = trial.find(Listener, name)
    given = next(use.options for use in trial.read("read").listeners if use.record.name == name)
    one, other = (must_not_fail("make fails", lambda: record.make(given)) for _ in range(2))
    assert one is not other, "make gives the same object again: each run needs one of its own"
    whole = must_go_on_to_the_bit(trial)
    without = Trial(plugin=plugin, directory=directory).ran("without")
    must_be_equal(weights(whole / "adapter"), weights(without / "adapter"), "a run with it learns something else")
    state, restore = getattr(one, "state", None), getattr(other, "restore", None)
    if callable(state) and callable(restore):
        said = must_not_fail("state fails", state)
        text = must_not_fail("what state gives is nothing that JSON can hold", lambda: json.dumps(said))
        must_not_fail("restore does not take what state gave", lambda: restore(json.loads(text)))
