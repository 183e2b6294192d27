"""What every model loader must keep to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fitune.plugin.records import ModelLoader
from fitune.testing.contracts.trial import Options, Trial, must_not_fail


def loader_keeps_its_contract(plugin: object, name: str, directory: Path, options: Options) -> None:
    """Raise `AssertionError`, which says what of the contract is broken."""
    import torch

    trial = Trial(plugin=plugin, directory=directory, changes={"model": {"use": name, **options}})
    record = trial.find(ModelLoader, name)
    given = trial.read("read").model.options
    tokenizer: Any = must_not_fail("load_tokenizer fails", lambda: record.load_tokenizer(given))
    assert getattr(tokenizer, "is_fast", False), "load_tokenizer gives no fast tokenizer"
    assert tokenizer.pad_token_id is not None, "its tokenizer has no pad token"
    device = torch.device("cpu")
    model, again = (must_not_fail("load_model fails", lambda: record.load_model(given, device)) for _ in range(2))
    assert not model.training, "load_model gives a model that is not in evaluation mode: call model.eval()"
    elsewhere = [key for key, value in model.state_dict().items() if value.device != device]
    assert not elsewhere, f"load_model leaves {elsewhere[0]} off the device that it is given"
    wanted = model.state_dict()
    different = [key for key, value in again.state_dict().items() if not torch.equal(value, wanted[key])]
    assert not different, f"load_model gives other weights at each call, e.g. {different[0]}"
    if record.fingerprint is not None:
        tell = record.fingerprint
        assert tell(given) == tell(given), "its fingerprint changes though the weights do not"
    missing = [file for file in record.files(given) if not file.is_file()]
    assert not missing, f"its files are not there, e.g. {missing[0]}"
    if record.build_model is not None:
        build = record.build_model
        _is_its_like(must_not_fail("build_model fails", lambda: build(given)), model)
        trial.forecast()
    trial.ran("run")


def _is_its_like(built: Any, model: Any) -> None:
    found, wanted = ({k: (v.shape, v.dtype) for k, v in one.state_dict().items()} for one in (built, model))
    other = sorted(found.items() ^ wanted.items(), key=str)
    assert not other, f"build_model gives another model than load_model, e.g. {other[0][0]}: {other[0][1]}"
    real = [key for key, value in built.state_dict().items() if not value.is_meta]
    assert not real, f"build_model gives weights that are not on the meta device, e.g. {real[0]}"
