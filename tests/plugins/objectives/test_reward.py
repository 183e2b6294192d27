"""A reward model: loss and gradient in float64 and beside TRL's, where a text ends, and models that it cannot be of."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fitune import Adapter, Example, ModelError, Objective, added_modules
from fitune.compose.objective import ObjectiveLoss, last_tokens, scores_of
from fitune.plugin.strategy import Plan
from support.packed import REGISTRY, SHAPE, batch_of
from support.preferences import SIZES, apart, gradients, pairs, rows, together
from support.tiny import assert_close

REWARD = REGISTRY.find(Objective, "reward")
ROLES = [(1.0, -1.0)] * len(SIZES)
PADDING = 0


def scorer(*, adapter: bool = True, seed: int = 0) -> PreTrainedModel:
    """A reward model, with an adapter or trained whole, as a run begins with it but for weights that say something."""
    torch.manual_seed(seed)
    base: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))
    assert REWARD.convert is not None
    model = REWARD.convert(REWARD.options(), base)
    model._fitune_added = ("score",)  # type: ignore[assignment]  # as the core notes it
    record = REGISTRY.find(Adapter, "lora" if adapter else "none")
    model = cast(PreTrainedModel, record.attach(record.options(), model).train())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def loss(**options: Any) -> ObjectiveLoss:
    """The objective at work."""
    return ObjectiveLoss(REWARD.make(REWARD.options(**options)), scores_of(Plan()), torch.device("cpu"))


def scores(model: nn.Module, examples: list[Example]) -> list[Tensor]:
    """Of each document by itself, by transformers' own forward pass."""
    every = [ids for e in examples for ids in torch.from_numpy(e.input_ids).long().split(e.lengths)]
    return [cast(Any, model)(input_ids=ids[None]).logits[0, 0] for ids in every]


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "whole"])
@pytest.mark.parametrize("center", [0.0, 0.3])
def test_loss_and_gradient_are_those_of_the_paper(center: float, adapter: bool) -> None:
    examples, model = pairs(), scorer(adapter=adapter)
    exact = copy.deepcopy(model).double()
    found = scores(exact, examples)
    expected = torch.zeros((), dtype=torch.float64)
    for w, r in zip(found[::2], found[1::2], strict=True):
        expected = expected - (1 / (1 + torch.exp(r - w))).log() + center * (w + r) ** 2
    expected.backward()
    ours = loss(center=center)
    value = ours(model, together(examples))
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert ours.units(examples) == 3
    assert_close([g.double() for g in gradients(model)], gradients(exact), relative=1e-5)


def test_the_gradient_does_not_depend_on_micro_batches() -> None:
    examples, model, ours = pairs(), scorer(), loss()
    ours(model, together(examples)).backward()
    whole = gradients(model)
    for batch in apart(examples):
        ours(model, batch).backward()
    assert_close(gradients(model), whole)


@pytest.mark.filterwarnings("ignore")
def test_loss_and_gradient_are_those_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
    from datasets import Dataset
    from transformers import AutoTokenizer

    from fitune.testing import write_recipe

    place = write_recipe(tmp_path).parent / "model"
    examples, model = pairs(), scorer(adapter=False)
    config = trl.RewardConfig(
        output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False, center_rewards_coefficient=0.2
    )
    judge = trl.RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({"chosen": ["a", "b"], "rejected": ["c", "d"]}),
        processing_class=AutoTokenizer.from_pretrained(str(place)),
    )
    model.config.get_text_config().pad_token_id = PADDING
    documents = [ids for e in examples for ids in torch.from_numpy(e.input_ids).long().split(e.lengths)]
    padded = torch.nn.utils.rnn.pad_sequence([*documents[::2], *documents[1::2]], batch_first=True)
    inputs = {"input_ids": padded, "attention_mask": (padded != PADDING).long()}
    expected = judge.compute_loss(judge.model, inputs)
    found = loss(center=0.2)(model, together(examples)) / len(examples)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    of_trl = gradients(model)
    found.backward()
    assert_close(gradients(model), of_trl, relative=1e-5)
    assert any(bool(g.any()) for g in of_trl)


@pytest.mark.parametrize("packed", [True, False])
def test_a_text_ends_where_transformers_finds_its_end(packed: bool) -> None:
    """At the last token that is not the padding token: where that ends answers too, at the token before it."""
    examples, model = rows(ROLES), scorer()
    for example in examples:
        example.input_ids[example.lengths[0] - 1] = PADDING
    if packed:
        batch = together(examples)
    else:
        singles = [replace(e, lengths=(), extras={"role": (1.0,)}) for e in examples]
        batch = batch_of(singles, 24)
    ends = last_tokens(batch, PADDING)
    first = 0 if not packed else next(at for at, role in enumerate(batch.extras["role"]) if role == 1)
    assert batch.input_ids.flatten()[ends[first]] != PADDING
    assert ends[first] == (examples[0].lengths[0] - 2 if packed else len(examples[0].input_ids) - 1)
    found = scores_of(Plan()).last_states(model, batch)
    assert found.shape == (len(ends), SHAPE["hidden_size"])
    if packed:
        expected = torch.stack(scores(model.eval(), examples))
        head = cast(Any, model).get_base_model().score
        real = batch.extras["role"] != 0
        torch.testing.assert_close(head(found)[real, 0], expected, rtol=1e-4, atol=1e-6)


def test_without_a_padding_token_the_last_counts() -> None:
    batch = together(pairs())
    ends = last_tokens(batch, None)
    assert [int(end) for end in ends[:2]] == [8, 15]


def test_what_was_loaded_is_kept_but_for_its_head() -> None:
    base: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))
    base.hf_quantizer = note = object()
    body = base.model
    assert REWARD.convert is not None
    model: Any = REWARD.convert(REWARD.options(), base)
    assert model.model is body
    assert model.hf_quantizer is note
    assert model.config is body.config
    assert not hasattr(base, "lm_head")
    assert model.get_output_embeddings() is None
    assert model.score.weight.shape == (1, SHAPE["hidden_size"])
    assert model.score.weight.any()


def test_other_decoders_have_it_too() -> None:
    base: Any = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    assert REWARD.convert is not None
    model = REWARD.convert(REWARD.options(), base)
    assert loss()(model.eval(), together(pairs())).item() > 0


def test_a_model_without_such_a_class_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    base: Any = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4))
    assert REWARD.convert is not None
    with pytest.raises(ModelError, match="no MambaForCausalLM that gives a text a score"):
        REWARD.convert(REWARD.options(), base)


def test_a_language_model_has_nothing_added() -> None:
    plain: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))
    assert added_modules(plain) == ()
    assert added_modules(scorer()) == ("score",)
