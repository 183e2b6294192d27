"""Weights that are no numbers, or all zeros, are named where something fails. On 0.1 what failed was blamed instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fitune import ModelError
from fitune.compose.weights import unsound_weights, weights_to_blame
from fitune.errors import DataError, RunError
from fitune.testing import write_recipe
from support.tiny import parts_of, train

CHUNKED = 'memory.strategy=[{use="chunked-loss"}]'
PACKED = 'data.stage=[{use="chat"}, {use="tokenize"}, {use="pack"}]'
EMBEDDING = "model.embed_tokens.weight"


def broken(directory: Path, change: Callable[[str, Tensor], object]) -> Path:
    """A recipe whose model was changed by tensor."""
    recipe = write_recipe(directory)
    file = recipe.parent / "model" / "model.safetensors"
    weights = load_file(file)
    for name, values in weights.items():
        change(name, values)
    save_file(weights, file, {"format": "pt"})
    return recipe


def no_numbers(name: str, values: Tensor) -> None:
    if "q_proj" in name:
        values[0, 0] = torch.nan


def zeros(name: str, values: Tensor) -> None:
    values.zero_()


def infinite_embedding(name: str, values: Tensor) -> None:
    if name == EMBEDDING:
        values.fill_(torch.inf)


NO_NUMBERS = r"q_proj\S*weight, \S*q_proj\S*weight of the model hold values that are no numbers \(NaN, or infinite\)"


@pytest.mark.parametrize(
    ("change", "setting", "said"),
    [
        (infinite_embedding, CHUNKED, r"embed_tokens\.weight.* of the model holds? values that are no numbers"),
        (infinite_embedding, PACKED, r"embed_tokens\.weight.* of the model holds? values that are no numbers"),
        (zeros, PACKED, "nothing but zeros. Its files are damaged, or were saved so: load another copy of it"),
        (no_numbers, PACKED, NO_NUMBERS),
    ],
)
def test_what_proves_a_model_is_not_blamed_for_its_weights(
    change: Callable[[str, Tensor], object], setting: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said) as error:
        parts_of(broken(tmp_path / "recipe", change), setting)
    assert "chunked-loss" not in str(error.value)
    assert "pack" not in str(error.value)


def test_a_step_that_is_no_number_names_weights_that_are_none(tmp_path: Path) -> None:
    """It is not the learning rate."""
    recipe = broken(tmp_path / "recipe", no_numbers)
    with pytest.raises(
        RunError, match=rf"step 1: the loss is nan.*No weight was changed by it\. .*{NO_NUMBERS}"
    ) as error:
        train(recipe, tmp_path / "run")
    assert "learning_rate" not in str(error.value)


def test_a_step_that_trains_nothing_names_weights_that_are_zeros(tmp_path: Path) -> None:
    run = train(broken(tmp_path / "recipe", zeros), tmp_path / "run", "train.steps=1")
    told = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert run.steps == 1
    assert "nothing trains: " in told
    assert "nothing but zeros" in told


def test_sound_weights_are_not_blamed() -> None:
    """An adapter begins with zeros, biases may stay so, and what the base has in other types cannot be told."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Sequential(first, second)
    nn.init.zeros_(second.weight)
    first.requires_grad_(False)
    model.register_parameter("packed", nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False))
    model.register_parameter("down_proj_bias", nn.Parameter(torch.zeros(2, 2), requires_grad=False))
    assert unsound_weights(model) == ""
    assert unsound_weights(nn.Linear(2, 2, device="meta")) == ""
    with pytest.raises(DataError, match=r"^mine$"), weights_to_blame(model):
        raise DataError("mine")
    first.weight[0, 0] = torch.inf
    with pytest.raises(ModelError, match=r"^0\.weight of the model holds values"), weights_to_blame(model):
        raise DataError("mine")
    with pytest.raises(ZeroDivisionError), weights_to_blame(model):
        raise ZeroDivisionError
