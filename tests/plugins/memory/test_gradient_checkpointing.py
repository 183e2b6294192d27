"""`gradient-checkpointing` recomputes the layers that it says, and changes no number."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from fitune import Batch, ModelError
from fitune.compose.loss import plain_loss
from fitune.testing import write_recipe
from fitune_plugins.memory.gradient_checkpointing import GradientCheckpointing, GradientCheckpointingOptions
from support.decoders import LAYERS, MODELS, decoder
from support.tiny import assert_close, gradients, loss_and_gradients, make_batch


def _checkpoint(model: PreTrainedModel, layers: int | None = None) -> PreTrainedModel:
    return GradientCheckpointing(GradientCheckpointingOptions(layers=layers)).prepare(model)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two rows, the second shorter."""
    tokens = torch.randint(1, 50, (2, 8), generator=torch.Generator().manual_seed(1)).tolist()
    return make_batch([(tokens[0], tokens[0]), (tokens[1][:5], tokens[1][:5])])


def _calls(model: PreTrainedModel, batch: Batch) -> list[int]:
    """How often each layer computes its MLP in a forward and backward pass."""
    counts = [0] * LAYERS
    layers = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    assert len(layers) == LAYERS
    for number, mlp in enumerate(layers):

        def count(*_: object, number: int = number) -> None:
            counts[number] += 1

        mlp.register_forward_pre_hook(count)  # the last one of a recomputation is cut off in its midst
    plain_loss(model, batch).backward()
    return counts


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_are_equal_and_layers_recomputed(kind: str, lora: bool, batch: Batch) -> None:
    value, expected = loss_and_gradients(plain_loss, decoder(kind, lora=lora), batch)
    checkpointed = _checkpoint(decoder(kind, lora=lora))
    found_value, found = loss_and_gradients(plain_loss, checkpointed, batch)
    assert found_value == value
    assert_close(found, expected, relative=1e-6)
    assert _calls(checkpointed, batch) == [2] * LAYERS


@pytest.mark.parametrize(("layers", "calls"), [(None, [2, 2, 2]), (1, [2, 1, 1]), (2, [2, 2, 1]), (3, [2, 2, 2])])
def test_the_first_layers_only(layers: int | None, calls: list[int], batch: Batch) -> None:
    model = _checkpoint(decoder(), layers)
    _, expected = loss_and_gradients(plain_loss, decoder(), batch)
    _, found = loss_and_gradients(plain_loss, model, batch)
    assert_close(found, expected, relative=1e-6)
    assert _calls(model, batch) == calls


def test_nothing_is_recomputed_without_it(batch: Batch) -> None:
    assert _calls(decoder(), batch) == [1] * LAYERS


@pytest.mark.parametrize("lora", [False, True])
def test_dropout_drops_the_same_units_again(lora: bool, batch: Batch) -> None:
    def both(model: PreTrainedModel) -> tuple[torch.Tensor, list[torch.Tensor]]:
        torch.manual_seed(7)
        return loss_and_gradients(plain_loss, model, batch)

    value, expected = both(decoder(dropout=0.5, lora=lora))
    found_value, found = both(_checkpoint(decoder(dropout=0.5, lora=lora)))
    assert found_value == value
    assert_close(found, expected, relative=1e-6)
    undropped, _ = both(decoder(lora=lora))
    assert undropped != value


def test_too_many_layers() -> None:
    with pytest.raises(ModelError, match="layers = 4, but the model has 3"):
        _checkpoint(decoder(), 4)


def test_a_model_without_layers() -> None:
    model = decoder()
    del model.model.layers
    with pytest.raises(ModelError, match="LlamaForCausalLM has no layers that can be checkpointed"):
        _checkpoint(model)


def test_evaluation_keeps_its_cache(batch: Batch) -> None:
    """Layers are checkpointed in training only: generation would otherwise lose its key-value cache."""
    model = _checkpoint(decoder()).eval()
    out = model(input_ids=batch.input_ids[:1], use_cache=True)
    assert out.past_key_values.get_seq_length() == batch.input_ids.shape[1]


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_in_a_run(adapter: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = write_recipe(tmp_path_factory.mktemp("run") / "recipe", {"adapter": {"use": adapter}})
    plain = gradients(recipe)
    found = gradients(recipe, 'memory.strategy=[{use="gradient-checkpointing"}]')
    assert len(found) == 3
    for step, expected in zip(found, plain, strict=True):
        assert_close(step, expected, relative=1e-5)
