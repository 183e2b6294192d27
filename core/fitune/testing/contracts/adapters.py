"""What every adapter must keep to."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune.plugin.records import Adapter
from fitune.testing.contracts.trial import (
    Options,
    Trial,
    must_be_model,
    must_go_on_to_the_bit,
    must_not_fail,
    weights,
)
from fitune.testing.tiny import write_tiny_model

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4
"""By how much logits in float32 may differ where they must be alike; they are of the order of 1."""


def adapter_keeps_its_contract(plugin: object, name: str, directory: Path, options: Options) -> None:
    """Raise `AssertionError`, which says what of the contract is broken."""
    trial = Trial(plugin=plugin, directory=directory, changes={"adapter": {"use": name, **options}})
    record = trial.find(Adapter, name)
    given = trial.read("read").adapter.options
    _saves_what_it_trains(record, given, directory)
    weights(must_go_on_to_the_bit(trial, record.directory) / record.directory)
    trial.forecast()


def _saves_what_it_trains(record: Adapter[Any], options: Any, directory: Path) -> None:
    """Attach, change what trains, save, and ask each way back for the same logits."""
    import torch

    base = _base(directory / "base")
    before = _logits(base)
    model = must_be_model("attach", lambda: record.attach(options, copy.deepcopy(base)))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained, "attach leaves nothing that trains (requires_grad)"
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    after = _logits(model)
    assert not _alike(after, before), "what trains has no effect on the logits"
    if record.off is not None:
        with record.off(model):
            assert _alike(_logits(model), before), "`off` does not give the base's logits"
        assert _alike(_logits(model), after), "behind `off` the logits are others than before it"
    place = directory / "saved"
    place.mkdir(parents=True)
    must_not_fail("save fails", lambda: record.save(model, place))
    weights(place)
    _comes_back(record, options, base, place, after)


def _comes_back(record: Adapter[Any], options: Any, base: Any, place: Path, after: Tensor) -> None:
    import torch

    if record.fill is not None:
        fill, filled = record.fill, record.attach(options, copy.deepcopy(base))
        must_not_fail("fill fails", lambda: fill(options, filled, place))
        assert _alike(_logits(filled), after), "`fill` gives other logits than were saved"
        assert any(p.requires_grad for p in filled.parameters()), "behind `fill` nothing trains"
    if record.load is None:
        return
    load = record.load
    loaded = must_be_model("load", lambda: load(options, copy.deepcopy(base), place))
    assert _alike(_logits(loaded), after), "`load` gives other logits than were saved"
    assert not any(p.requires_grad for p in loaded.parameters()), "what `load` gives is not frozen"
    if record.merge is not None:
        merge = record.merge
        merged = must_be_model("merge", lambda: merge(loaded, torch.float32))
        assert type(merged) is type(base), f"merge gives a {type(merged).__name__}, not a {type(base).__name__}"
        assert merged.state_dict().keys() == base.state_dict().keys(), (
            "the merged model has other weights than the base"
        )
        assert _alike(_logits(merged), after), "`merge` gives other logits than were saved"


def _base(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(write_tiny_model(directory)).eval()


def _logits(model: Any) -> Tensor:
    import torch

    was, ids = model.training, torch.arange(24).view(2, 12) * 7 % 255
    model.eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    model.train(was)
    return found


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= TOLERANCE)
