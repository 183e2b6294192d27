"""`host-embeddings` takes the table of input embeddings off the card; what a GPU shows is in `test_gpu_offload`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from fitune import ModelError, Plan, RecipeError
from fitune.memory.cards.cards import find_card
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.log import Block
from fitune.memory.trace.meta import DEVICE
from fitune.memory.trace.patches import as_on_card, as_with_values
from fitune.memory.trace.run import Trace, trace
from fitune.memory.trace.tracer import Tracer
from fitune.testing import write_recipe
from fitune_plugins.memory.host_embeddings import NAME, HostEmbeddings, ft_memory_strategies
from support.architectures import GRADIENT_CHECKPOINTING, recipe_of
from support.decoders import decoder
from support.tiny import losses, parts_of, train, with_lora

USE = f'memory.strategy=[{{use="{NAME}"}}]'
VOCABULARY, HIDDEN, HALF = 512, 64, 2


def _traced(directory: Path, *strategies: str, name: str = "llama", **named: Any) -> Trace:
    recipe = recipe_of(directory, name, *strategies, **named)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace(recipe, shapes_of_recipe(recipe, 1), find_card("a10g"))


def _standing(found: Trace) -> list[Block]:
    """What is left at the end."""
    log = found.log
    left = set(range(1, len(log.blocks) + 1)) - {-number for number in log.events if number < 0}
    return [log.blocks[number - 1] for number in sorted(left)]


@pytest.mark.parametrize("name", ["llama", "falcon", "gemma"])
def test_a_forecast_without_the_table(name: str, tmp_path: Path) -> None:
    untied = {"tie_word_embeddings": False}
    plain = _standing(_traced(tmp_path / "plain", name=name, changes=untied))
    found = _standing(_traced(tmp_path / "found", NAME, name=name, changes=untied))
    table = VOCABULARY * HIDDEN * HALF
    assert sum(b.bytes for b in plain) - sum(b.bytes for b in found) == table - HALF, "one number stands for it"
    assert [b.bytes for b in found if b.kind == "weights"].count(table) == 1, "of the output head"


def test_evaluation_generation_and_other_strategies(tmp_path: Path) -> None:
    found = _traced(
        tmp_path,
        GRADIENT_CHECKPOINTING,
        "offload-checkpoints",
        "tiled-mlp",
        "chunked-loss",
        NAME,
        evaluates=True,
        generates=True,
    )
    assert {block.phase for block in found.log.blocks} >= {"forward", "backward", "evaluation"}


def test_the_rows_go_over_the_host_link() -> None:
    with torch.device("meta"):
        model = with_lora(decoder(), "q_proj")
    tracer = Tracer(None, scratch={}, cublas_workspace=0)
    with as_on_card((8, 6)), as_with_values(), tracer:
        HostEmbeddings().prepare(model)
        tracer.enter("forward", 1)
        cast(Any, model)(input_ids=torch.zeros(2, 5, dtype=torch.int64, device=DEVICE))
    assert tracer.moved == 2 * 5 * 16 * 4
    weight = cast(nn.Embedding, cast(Any, model).get_input_embeddings()).weight
    assert cast(Any, model).device == DEVICE == weight.device
    assert weight.shape == (50, 16)
    assert weight.untyped_storage().nbytes() == 4


def test_tied_embeddings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"host-embeddings: the output head of Llama.* is the table .* \(tied\)"):
        _traced(tmp_path, NAME, changes={"tie_word_embeddings": True})


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("how", ["lora", "a copy that trains", "all"])
def test_embeddings_that_train_are_refused(how: str) -> None:
    model = decoder()
    if how == "lora":
        model = with_lora(model, "embed_tokens")
    elif how == "a copy that trains":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
        model = cast(Any, get_peft_model(model, config))
    with pytest.raises(ModelError, match="host-embeddings: the input embeddings train"):
        HostEmbeddings().prepare(model)


def test_full_fine_tuning_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"adapter": {"use": "none"}})
    with pytest.raises(RecipeError, match='"host-embeddings" cannot be used with "none": it trains every weight'):
        parts_of(recipe, USE)


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    assert HostEmbeddings().plan(Plan(gpu=True)).notices == ()
    (notice,) = HostEmbeddings().plan(Plan(gpu=False)).notices
    assert "no GPU here" in notice


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it has an effect")
def test_a_run_without_a_gpu_goes_as_without_it(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    train(recipe, tmp_path / "plain", "train.steps=2")
    run = train(recipe, tmp_path / "run", "train.steps=2", USE)
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    assert "no GPU here" in run.plan.notices[0]


def test_it_suits_untied_models() -> None:
    (record,) = ft_memory_strategies()
    assert record.fit is not None
    assert record.fit.suits is not None
    assert [record.fit.suits(LlamaConfig(tie_word_embeddings=tied)) for tied in (True, False)] == [False, True]
