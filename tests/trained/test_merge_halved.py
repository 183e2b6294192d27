"""A run on packed layers that compute in 16 bits whatever the model's type is: merged, and compared with itself.

The packages of such layers (GPTQModel) are not needed: linear layers that round stand in their place, and the loader's
`load_plain` gives the model without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from fitune import RunError
from fitune.plugin.strategy import StoredQuantization
from fitune.testing import open_registry
from fitune.trained.merge import Merge, merge
from fitune.trained.open import Trained, find
from fitune.trained.parity import LIMITS
from support.after_runs import finished

STORED = StoredQuantization(name="GPTQ", dequantizes=True, unpacks=True)


class Halving(nn.Linear):
    """Computes in bfloat16, and gives what it was given: as packed layers do."""

    def forward(self, inputs: Tensor) -> Tensor:
        made = functional.linear(inputs.bfloat16(), self.weight.bfloat16(), None)
        return made.to(inputs.dtype)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("halved"), "eval.exact_match=false")


def _packed(run: Path, plain: Callable[[PreTrainedModel], None] = lambda model: None) -> Trained:
    """The run, as if its base were packed; `plain` changes the model that its loader unpacks."""
    found = find(run, open_registry())
    use = found.recipe.model
    load = use.record.load_model

    def halving(options: Any, device: torch.device) -> PreTrainedModel:
        model = load(options, device)
        for module in model.modules():
            if type(module) is nn.Linear and module is not model.get_output_embeddings():
                module.__class__ = Halving
        return model

    def unpacked(options: Any, device: torch.device) -> PreTrainedModel:
        model = load(options, device)
        plain(model)
        return model

    record = replace(use.record, load_model=halving, load_plain=unpacked, stored=lambda options: STORED)
    return replace(found, recipe=replace(found.recipe, model=replace(use, record=record)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_rounds_in_16_bits_is_within_the_limit_of_those(run: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    found = merge(_packed(run), Merge(to=tmp_path / "merged", dtype=dtype))
    assert found.trained_dtype == "float32"
    assert found.limit == LIMITS[torch.bfloat16]
    assert LIMITS[torch.float32] < found.relative_difference < found.limit  # as a model in float32 it would be refused
    assert (found.cast_difference is None) == (dtype != torch.float32)
    assert found.unrun == ""
    written = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in written


def test_what_is_unpacked_otherwise_than_it_was_trained_on_is_refused(run: Path, tmp_path: Path) -> None:
    def wrong(model: Any) -> None:
        model.get_submodule("model.layers.1.mlp.up_proj").weight.data.mul_(2)

    with pytest.raises(RunError, match=r"the relative difference is .*, over 0\.08"):
        merge(_packed(run, wrong), Merge(to=tmp_path / "merged", dtype=torch.float32))


def test_what_is_merged_wrong_is_told_from_rounding_by_what_is_cast(run: Path, tmp_path: Path) -> None:
    trained = _packed(run)
    use = trained.recipe.adapter
    right = use.record.merge
    assert right is not None

    def spoiled(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
        module: Any = model.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
        module.lora_B["default"].weight.data.mul_(0.9)
        return right(model, dtype)

    record = replace(use.record, merge=spoiled)
    trained = replace(trained, recipe=replace(trained.recipe, adapter=replace(use, record=record)))
    with pytest.raises(RunError, match=r"the relative difference from the adapter cast to float32 is .*, over 0\.0001"):
        merge(trained, Merge(to=tmp_path / "merged", dtype=torch.float32))
