"""What plugins ask of a model, or do to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from fitune import ModelError, buckets, decay_groups, has_values, mend_generation_config, unwrapped
from fitune.testing import write_tiny_model


class Wrapper(nn.Module):
    """A wrapper as an adapter may put one around a model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def get_base_model(self) -> nn.Module:
        """What it wraps."""
        return self.inner


@pytest.fixture
def model(tmp_path: Path) -> PreTrainedModel:
    """A model of a few thousand parameters."""
    return AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path))


def test_a_wrapped_model_is_found_and_one_without_a_wrapper_is_itself(model: PreTrainedModel) -> None:
    assert unwrapped(Wrapper(model)) is model
    assert unwrapped(model) is model


@pytest.mark.parametrize("other", [nn.Linear(2, 2), Wrapper(nn.Linear(2, 2))], ids=["plain", "wrapped"])
def test_what_is_no_model_of_transformers_is_refused(other: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"a Linear is no model of transformers\. A model loader gives"):
        unwrapped(other)


def test_one_parameter_without_values_is_enough() -> None:
    assert has_values(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert not has_values(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")))


def test_vectors_are_not_decayed_and_a_group_without_any_is_left_out() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    assert decay_groups([vector, matrix]) == [{"params": [matrix]}, {"params": [vector], "weight_decay": 0.0}]
    assert decay_groups(iter([matrix])) == [{"params": [matrix]}]
    assert decay_groups([vector]) == [{"params": [vector], "weight_decay": 0.0}]
    assert decay_groups([]) == []


def test_buckets_hold_no_more_than_they_may_or_one_alone() -> None:
    assert list(buckets(["aa", "b", "ccccc", "d", "ee", "f"], len, 3)) == [["aa", "b"], ["ccccc"], ["d", "ee"], ["f"]]
    assert list(buckets(iter([3, 4]), abs, 7)) == [[3, 4]]
    assert list(buckets([0, 0, 2], abs, 1)) == [[0, 0], [2]]
    assert list(buckets([], len, 3)) == []


def test_sound_settings_stay_as_they_are(model: PreTrainedModel) -> None:
    before = model.generation_config
    assert before is not None
    said = before.to_dict()
    mend_generation_config(model)
    assert model.generation_config is before
    assert before.to_dict() == said


def test_a_temperature_alone_gets_what_makes_it_count(model: PreTrainedModel) -> None:
    settings = model.generation_config
    assert settings is not None
    settings.temperature = 0.7
    with pytest.raises(ValueError, match="temperature"):
        settings.validate(strict=True)
    mend_generation_config(model)
    assert model.generation_config is settings
    assert (settings.do_sample, settings.temperature) == (True, 0.7)
    settings.validate(strict=True)


def test_what_cannot_be_mended_keeps_the_end_of_text_token(model: PreTrainedModel) -> None:
    settings = model.generation_config
    assert settings is not None
    settings.early_stopping = 7  # neither a truth value nor "never"
    with pytest.raises(ValueError, match="early_stopping"):
        settings.validate(strict=True)
    mend_generation_config(model)
    assert model.generation_config is not settings
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == 257
    model.generation_config.validate(strict=True)
