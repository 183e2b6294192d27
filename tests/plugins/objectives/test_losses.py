"""Each objective's loss, gradient and measures equal those of its paper's formula, document by document, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fitune import Example
from support.preferences import apart, gradients, judged, objective, pairs, policy, together
from support.tiny import assert_close

Answers = Sequence[tuple[Tensor, Tensor, int]]
"""Of each document: its log-probability by the model and by the reference, and its target tokens."""


def answers(model: nn.Module, examples: Sequence[Example]) -> Answers:
    """One document at a time, without anything of fitune's."""
    found = []
    for example in examples:
        at = 0
        for length in example.lengths:
            ids = torch.from_numpy(example.input_ids[at : at + length]).long()
            labels = torch.from_numpy(example.labels[at : at + length]).long()
            at += length
            of_model = _log_prob(model, ids, labels)
            with torch.no_grad(), cast(Any, model).disable_adapter():
                of_reference = _log_prob(model, ids, labels)
            found.append((of_model, of_reference, int((labels != -100).sum())))
    return found


def _log_prob(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    logs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    places = [at for at in range(1, len(ids)) if labels[at] != -100]
    return torch.stack([logs[at - 1, ids[at]] for at in places]).sum()


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def dpo(found: Answers, beta: float = 0.1, smoothing: float = 0.0, alpha: float = 0.0, norm: bool = False) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for (w, ref_w, n_w), (r, ref_r, n_r) in zip(found[::2], found[1::2], strict=True):
        h = (w - ref_w) / (n_w if norm else 1) - (r - ref_r) / (n_r if norm else 1)
        total = total - (1 - smoothing) * _sigmoid(beta * h).log() - smoothing * _sigmoid(-beta * h).log()
        total = total - alpha * w / n_w
    return total


def ipo(found: Answers, beta: float = 0.1, norm: bool = True) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for (w, ref_w, n_w), (r, ref_r, n_r) in zip(found[::2], found[1::2], strict=True):
        h = (w - ref_w) / (n_w if norm else 1) - (r - ref_r) / (n_r if norm else 1)
        total = total + (h - 1 / (2 * beta)) ** 2
    return total


def kto(found: Answers, beta: float = 0.1, good: float = 1.0, bad: float = 1.0) -> Tensor:
    z = max(0.0, sum(m.item() - ref.item() for m, ref, _ in found[1::2]) / len(found[1::2]))
    total = torch.zeros((), dtype=torch.float64)
    for (m, ref, _), role in zip(found[::2], (1, -1, 1), strict=True):
        r = m - ref
        value = good * _sigmoid(beta * (r - z)) if role == 1 else bad * _sigmoid(beta * (z - r))
        total = total + (good if role == 1 else bad) - value
    return total


def orpo(found: Answers, beta: float = 0.1) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for (w, _, n_w), (r, _, n_r) in zip(found[::2], found[1::2], strict=True):
        p_w, p_r = torch.exp(w / n_w), torch.exp(r / n_r)
        odds = (p_w / (1 - p_w)) / (p_r / (1 - p_r))
        total = total - w / n_w - beta * _sigmoid(odds.log()).log()
    return total


def simpo(found: Answers, beta: float = 2.0, gamma: float = 1.0, alpha: float = 0.0) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for (w, _, n_w), (r, _, n_r) in zip(found[::2], found[1::2], strict=True):
        total = total - _sigmoid(beta / n_w * w - beta / n_r * r - gamma).log() - alpha * w / n_w
    return total


def cpo(found: Answers, beta: float = 0.1, alpha: float = 1.0, smoothing: float = 0.0) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for (w, _, n_w), (r, _, _) in zip(found[::2], found[1::2], strict=True):
        h = beta * (w - r)
        total = total - (1 - smoothing) * _sigmoid(h).log() - smoothing * _sigmoid(-h).log() - alpha * w / n_w
    return total


CASES: dict[str, tuple[str, dict[str, Any], Callable[..., Tensor], dict[str, Any]]] = {
    "dpo": ("dpo", {}, dpo, {}),
    "dpo, all options": (
        "dpo",
        {"beta": 0.7, "label_smoothing": 0.2, "rpo_alpha": 0.5, "length_normalized": True},
        dpo,
        {"beta": 0.7, "smoothing": 0.2, "alpha": 0.5, "norm": True},
    ),
    "ipo": ("ipo", {}, ipo, {}),
    "ipo, sums": ("ipo", {"beta": 0.3, "length_normalized": False}, ipo, {"beta": 0.3, "norm": False}),
    "kto": ("kto", {}, kto, {}),
    "kto, weights": ("kto", {"beta": 1.5, "undesirable": 2.0}, kto, {"beta": 1.5, "bad": 2.0}),
    "kto, one weight": ("kto", {"desirable": 0.5}, kto, {"good": 0.5}),
    "orpo": ("orpo", {}, orpo, {}),
    "orpo, beta": ("orpo", {"beta": 2.0}, orpo, {"beta": 2.0}),
    "simpo": ("simpo", {}, simpo, {}),
    "simpo, gamma": ("simpo", {"beta": 3.0, "gamma": 0.3}, simpo, {"beta": 3.0, "gamma": 0.3}),
    "simpo, alpha": ("simpo", {"alpha": 0.4}, simpo, {"alpha": 0.4}),
    "cpo": ("cpo", {}, cpo, {}),
    "cpo, smoothed": ("cpo", {"alpha": 0.0, "label_smoothing": 0.1}, cpo, {"alpha": 0.0, "smoothing": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("log_probs", ["plain", "chunked"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient(case: str, log_probs: str) -> None:
    name, options, formula, settings = CASES[case]
    examples = judged() if name == "kto" else pairs()
    model = policy()
    exact = copy.deepcopy(model).double()
    expected = formula(answers(exact, examples), **settings)
    expected.backward()
    loss = objective(name, log_probs, **options)
    found = loss(model, together(examples))
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.units(examples) == 3
    assert_close([g.double() for g in gradients(model)], gradients(exact), relative=1e-5)


@pytest.mark.parametrize("name", ["dpo", "ipo", "orpo", "simpo", "cpo"])
def test_the_gradient_does_not_depend_on_micro_batches(name: str) -> None:
    examples, model, loss = pairs(), policy(), objective(name, "chunked")
    loss(model, together(examples)).backward()
    whole = gradients(model)
    for batch in apart(examples):
        loss(model, batch).backward()
    assert_close(gradients(model), whole)


def test_measures_of_pairs() -> None:
    examples, model = pairs(), policy()
    found = answers(copy.deepcopy(model).double(), examples)
    loss = objective("dpo", beta=0.5)
    for batch in apart(examples):
        loss(model, batch)
    rewards = [0.5 * (m - ref).item() for m, ref, _ in found]
    chosen, rejected = rewards[::2], rewards[1::2]
    means = measured(loss)
    assert means["accuracy"] == pytest.approx(sum(c > r for c, r in zip(chosen, rejected, strict=True)) / 3)
    assert means["margin"] == pytest.approx(sum(chosen) / 3 - sum(rejected) / 3, rel=1e-4)
    assert means["rewards/chosen"] == pytest.approx(sum(chosen) / 3, rel=1e-4)
    assert means["rewards/rejected"] == pytest.approx(sum(rejected) / 3, rel=1e-4)
    assert means["log_probs/chosen"] == pytest.approx(sum(m.item() for m, _, _ in found[::2]) / 3, rel=1e-5)
    assert means["log_probs/rejected"] == pytest.approx(sum(m.item() for m, _, _ in found[1::2]) / 3, rel=1e-5)


def test_measures_of_judged_answers() -> None:
    examples, model = judged(), policy()
    found = answers(copy.deepcopy(model).double(), examples)
    loss = objective("kto", beta=0.5)
    loss(model, together(examples))
    gains = [(m - ref).item() for m, ref, _ in found]
    z = max(0.0, sum(gains[1::2]) / 3)
    means = measured(loss)
    assert means["kl"] == pytest.approx(z, rel=1e-4)
    assert means["rewards/chosen"] == pytest.approx(0.5 * (gains[0] + gains[4]) / 2, rel=1e-4)
    assert means["rewards/rejected"] == pytest.approx(0.5 * gains[2], rel=1e-4)
    right = [gains[0] > z, gains[2] < z, gains[4] > z]
    assert means["accuracy"] == pytest.approx(sum(right) / 3)


def test_kl_is_never_below_zero_and_has_no_gradient() -> None:
    """Whatever the mismatched answers do: only their own gains enter, and none passes a gradient."""
    model = policy()
    examples = judged()
    loss = objective("kto")
    only_mismatched = [
        Example(input_ids=e.input_ids, labels=e.labels, origin=e.origin, lengths=e.lengths, extras={"role": (0.0, 2.0)})
        for e in examples
    ]
    total = loss(model, together(only_mismatched))
    total.backward()
    assert total.item() == 0
    assert not any(bool(g.any()) for g in gradients(model))
    assert measured(loss)["kl"] >= 0


def test_the_reference_is_exact_under_dropout() -> None:
    """Its model is in evaluation mode, and as it was afterwards."""
    model = policy(dropout=0.5)
    batch = together(pairs())
    scores = objective("dpo").scores
    first, second = scores.reference(model, batch), scores.reference(model, batch)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert all(module.training for module in model.modules())
    plain = answers(copy.deepcopy(model).eval().double(), pairs())
    real = first[batch.extras["role"] != 0]
    torch.testing.assert_close(real.double(), torch.stack([ref for _, ref, _ in plain]), rtol=1e-5, atol=0)


def test_padding_has_no_log_probability() -> None:
    batch = together(pairs(), 40)
    scores = objective("dpo").scores
    padding = batch.extras["role"] == 0
    assert bool(padding.any())
    assert not bool(scores.log_probs(policy(), batch)[padding].any())
    assert not bool(scores.targets(batch)[padding].any())


def test_certain_answers_have_finite_odds() -> None:
    """Where an answer's probability is 1 in float32, ORPO's odds and their gradient are finite all the same."""
    from fitune_plugins.objectives.orpo import _log_odds

    sure = torch.tensor([0.0, -1e-9, -1.0], requires_grad=True)
    odds = _log_odds(sure)
    odds.sum().backward()
    assert sure.grad is not None
    assert bool(torch.isfinite(odds).all())
    assert bool(torch.isfinite(sure.grad).all())
    assert odds[2].item() == pytest.approx(math.log(math.exp(-1) / (1 - math.exp(-1))), rel=1e-5)


def measured(loss: Any) -> dict[str, float]:
    """The means of what was measured, of this process."""
    from types import SimpleNamespace

    return cast(dict[str, float], loss.tally.means(SimpleNamespace(reduce=lambda sums, reduction: sums)))


def test_smoothing_is_of_the_paper() -> None:
    from fitune_plugins.objectives.pairs import smoothed

    logits = torch.tensor([-3.0, 0.0, 5.0])
    torch.testing.assert_close(smoothed(logits, 0.0), F.softplus(-logits))
    torch.testing.assert_close(smoothed(logits, 0.25), 0.75 * F.softplus(-logits) + 0.25 * F.softplus(logits))
