"""The same loss and gradient as TRL's trainers, of the same batch with the same weights, in float32: TRL judges, and is
no part of fitune.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fitune import Example, Objective
from fitune.compose.loss import plain_log_probs, plain_loss
from fitune.compose.objective import ObjectiveLoss, RunScores
from fitune.testing import write_recipe
from support.packed import REGISTRY
from support.preferences import gradients, judged, pairs, together
from support.tiny import assert_close

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
pytestmark = pytest.mark.filterwarnings("ignore")

Inputs = dict[str, Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer."""
    return write_recipe(tmp_path_factory.mktemp("trl")).parent / "model"


def model(place: Path, seed: int) -> PreTrainedModel:
    """With weights of its own."""
    made: Any = AutoModelForCausalLM.from_pretrained(str(place), dtype=torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return cast(PreTrainedModel, made.eval())  # without dropout, as both have it


def trainer(kind: str, place: Path, policy: PreTrainedModel, reference: PreTrainedModel, **settings: Any) -> Any:
    """TRL's, whose own data are not looked at."""
    from datasets import Dataset

    rows = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}
    if kind == "KTO":
        rows = cast(Any, {"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]})
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(place / kind), per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False, **settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(trl, f"{kind}Trainer")(
            model=policy,
            ref_model=reference,
            args=config,
            train_dataset=Dataset.from_dict(rows),
            processing_class=AutoTokenizer.from_pretrained(str(place)),
        )


def documents(examples: Sequence[Example], which: int) -> Inputs:
    """The first or the second document of each row, padded on the right."""
    found = []
    for example in examples:
        first = example.lengths[0]
        part = slice(0, first) if which == 0 else slice(first, None)
        found.append((torch.from_numpy(example.input_ids[part]), torch.from_numpy(example.labels[part])))
    longest = max(len(ids) for ids, _ in found)

    def padded(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.nn.functional.pad(one.long(), (0, longest - len(one))) for one in tensors])

    return {
        "input_ids": padded([ids for ids, _ in found]),
        "attention_mask": padded([torch.ones_like(ids) for ids, _ in found]),
        "completion_mask": padded([(labels != -100).long() for _, labels in found]),
    }


def of_pairs(examples: Sequence[Example]) -> Inputs:
    """All chosen answers, then all rejected ones, as TRL's collator has them."""
    chosen, rejected = documents(examples, 0), documents(examples, 1)
    longest = max(chosen["input_ids"].shape[1], rejected["input_ids"].shape[1])

    def wide(one: Tensor) -> Tensor:
        return torch.nn.functional.pad(one, (0, longest - one.shape[1]))

    return {name: torch.cat([wide(chosen[name]), wide(rejected[name])]) for name in chosen}


def ours(
    name: str, policy: PreTrainedModel, reference: PreTrainedModel, examples: Sequence[Example], **options: Any
) -> Tensor:
    """The mean over pairs or answers; the reference is prepared, by the other model."""
    scores = RunScores(plain_loss, plain_log_probs, None)
    record = REGISTRY.find(Objective, name)
    loss = ObjectiveLoss(record.make(record.options(**options)), scores, torch.device("cpu"))
    batch = together(examples)
    with torch.no_grad():
        extras = {**batch.extras, "reference": scores.log_probs(reference, batch)}
    from dataclasses import replace

    return loss(policy, replace(batch, extras=extras)) / loss.units(examples)


def must_be_equal(found: Tensor, policy: PreTrainedModel, expected: Tensor) -> None:
    """Both losses, and both gradients, within 1e-5."""
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    of_trl = gradients(policy)
    found.backward()
    assert_close(gradients(policy), of_trl, relative=1e-5)
    assert any(bool(g.any()) for g in of_trl)


@pytest.mark.parametrize(
    ("settings", "name", "options"),
    [
        ({"loss_type": ["sigmoid"], "beta": 0.3}, "dpo", {"beta": 0.3}),
        ({"loss_type": ["ipo"], "beta": 0.2}, "ipo", {"beta": 0.2}),
    ],
    ids=["dpo", "ipo"],
)
def test_pairs(settings: dict[str, Any], name: str, options: dict[str, Any], place: Path) -> None:
    policy, reference = model(place, 1), model(place, 2)
    judge = trainer("DPO", place, policy, reference, **settings)
    policy.eval()
    examples = pairs()
    expected = judge._compute_loss(judge.model, of_pairs(examples), False)
    must_be_equal(ours(name, policy, reference, examples, **options), policy, expected)


def test_judged_answers(place: Path) -> None:
    policy, reference = model(place, 1), model(place, 2)
    judge = trainer("KTO", place, policy, reference, beta=0.3, undesirable_weight=1.5)
    policy.eval()
    examples = judged()
    mismatched = {f"KL_{name}": tensor for name, tensor in documents(examples, 1).items()}
    labels = torch.tensor([example.extras["role"][0] == 1 for example in examples])
    expected = judge._compute_loss(judge.model, {**documents(examples, 0), **mismatched, "label": labels}, False)
    must_be_equal(ours("kto", policy, reference, examples, beta=0.3, undesirable=1.5), policy, expected)


@pytest.mark.parametrize("name", ["orpo", "cpo", "simpo"])
def test_without_a_reference(name: str, place: Path) -> None:
    """Losses of log-probabilities, by TRL's own functions. The cross-entropy beside them is a mean over an answer here,
    as in the papers, and over all tokens of a batch in TRL, so it is left out, or added.
    """
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    policy, examples = model(place, 1), pairs()
    inputs = of_pairs(examples)
    logits = cast(Any, policy)(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    kind: Any = ORPOTrainer if name == "orpo" else CPOTrainer
    chosen, rejected = kind.get_batch_logps(logits, labels, average_log_prob=name != "cpo").chunk(2)
    device = SimpleNamespace(device="cpu")
    options: dict[str, Any] = {"beta": 0.4}
    if name == "orpo":
        judge = SimpleNamespace(beta=0.4, accelerator=device)
        expected = -kind.odds_ratio_loss(judge, chosen, rejected)[0].mean() - chosen.mean()
    else:
        loss_type = "sigmoid" if name == "cpo" else "simpo"
        judge = SimpleNamespace(
            beta=0.4, alpha=0.0, label_smoothing=0.0, simpo_gamma=0.7, loss_type=loss_type, accelerator=device
        )
        expected = kind.cpo_loss(judge, chosen, rejected)[0].mean()
        options |= {"alpha": 0.0} if name == "cpo" else {"gamma": 0.7}
    must_be_equal(ours(name, policy, policy, examples, **options), policy, expected)
