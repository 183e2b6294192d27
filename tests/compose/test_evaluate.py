"""Evaluation: its loss, its answers, and that it leaves training alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli
import tomli_w
import torch
from transformers import GenerationConfig

from fitune import Example, Origin
from fitune.compose.evaluate import Evaluator, split_answer
from fitune.compose.parts import Parts
from fitune.plugin.events import EvalReport
from fitune.runs.metrics import eval_values
from fitune.testing import write_recipe, write_tiny_data
from fitune.train.loop import train
from support.tiny import adapter, losses, parts_of
from support.tiny import train as train_run

ORIGIN = Origin(file="f", row=1)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows to learn by heart, five of them held out too."""
    changes = {
        "train": {"steps": 60, "learning_rate": 1e-2, "micro_batch": 12},
        "eval": {"source": [{"use": "jsonl", "path": "held_out.jsonl"}], "before": False, "micro_batch": 2},
    }
    path = write_recipe(tmp_path_factory.mktemp("evaluate") / "recipe", changes)
    write_tiny_data(path.parent / "held_out.jsonl", rows=5)
    return path


@pytest.fixture(scope="module")
def learnt(recipe: Path) -> tuple[Parts, EvalReport]:
    """A model that has learnt its rows, and its evaluation."""
    parts = parts_of(recipe, 'adapter={use="none"}', "eval.exact_match=true", "eval.max_new_tokens=16")
    *_, report = train(parts)
    assert isinstance(report, EvalReport)
    return parts, report


def _evaluator(parts: Parts) -> Evaluator:
    assert parts.evaluator is not None
    return parts.evaluator


def test_loss_is_the_mean_over_target_tokens(recipe: Path) -> None:
    evaluator = _evaluator(parts_of(recipe))
    total, targets = 0.0, 0
    for example in evaluator.examples:
        ids = torch.from_numpy(example.input_ids).long()
        with torch.no_grad():
            logs = evaluator.model.eval()(ids[None]).logits[0].log_softmax(-1)
        for position in range(1, len(ids)):
            if example.labels[position] != -100:
                total -= float(logs[position - 1, ids[position]])
                targets += 1
    report = evaluator.evaluate(0)
    assert report.loss == pytest.approx(total / targets, rel=1e-5)
    assert (report.targets, report.rows, report.exact_match) == (targets, 5, None)


def test_loss_can_be_left_out(recipe: Path) -> None:
    evaluator = _evaluator(parts_of(recipe, "eval.loss=false", "eval.exact_match=true", "eval.max_new_tokens=1"))
    evaluator.objective.scores.token_loss = _fail
    report = evaluator.evaluate(0)
    assert report.loss is None
    assert len(report.answers) == report.rows == 5
    assert "loss" not in eval_values(report)


def test_exact_match_counts(learnt: tuple[Parts, EvalReport]) -> None:
    report = learnt[1]
    assert [a.expected for a in report.answers] == ["1", "1 2", "1 2 3", "1 2 3 4", "1 2 3 4 5"]  # the data's order
    assert report.answers[2].prompt.endswith("Count to 3.\nassistant\n")
    right = sum(a.expected.strip() == a.generated.strip() for a in report.answers)
    assert right >= 4
    assert report.exact_match == right / 5
    wrong = replace_expected(report)
    assert wrong.exact_match == (right - report.answers[0].exact) / 5


def replace_expected(report: EvalReport) -> EvalReport:
    """The report, had the first row's right answer been another."""
    from dataclasses import replace

    first, *rest = report.answers
    return replace(report, answers=(replace(first, expected="2"), *rest))


def test_padding_does_not_change_answers(learnt: tuple[Parts, EvalReport]) -> None:
    """Rows of different length in one batch, padded on the left, and one by one."""
    parts, together = learnt
    evaluator = _evaluator(parts)
    examples = [*evaluator.examples, _longer(parts, evaluator.examples[1])]
    answers = []
    for micro_batch in (6, 1):
        settings = _with(evaluator.settings, micro_batch=micro_batch)
        one = Evaluator(
            settings=settings, examples=examples, make_batches=parts.make_batches, objective=evaluator.objective,
            model=parts.run.model, tokenizer=parts.run.tokenizer, accelerator=parts.accelerator, ends=evaluator.ends,
        )  # fmt: skip
        answers.append(one.evaluate(0).answers)
    assert answers[0] == answers[1]
    assert [a.generated for a in answers[0][:5]] == [a.generated for a in together.answers]


def _with(settings: Any, **changes: object) -> Any:
    from dataclasses import replace

    return replace(settings, **changes)


def _longer(parts: Parts, example: Example) -> Example:
    ids = np.concatenate([np.full(40, 65, dtype=np.int32), example.input_ids])
    labels = np.concatenate([np.full(40, -100, dtype=np.int32), example.labels])
    return Example(input_ids=ids, labels=labels, origin=example.origin)


def test_answers_are_greedy_whatever_the_model_says(learnt: tuple[Parts, EvalReport]) -> None:
    """Published models carry sampling settings and repetition penalties, which would change the figure."""
    parts, report = learnt
    model: Any = parts.run.model
    before = model.generation_config
    own = GenerationConfig(repetition_penalty=5.0, do_sample=True, temperature=9.0, num_beams=3, max_length=7)
    model.generation_config = own
    try:
        assert _evaluator(parts).evaluate(0).answers == report.answers
        assert model.generation_config is own
    finally:
        model.generation_config = before


def test_the_same_with_peft(recipe: Path) -> None:
    parts = parts_of(recipe, "eval.exact_match=true", "eval.max_new_tokens=5")
    plain = _evaluator(parts).evaluate(0).answers
    inner: Any = parts.run.model
    inner.get_base_model().generation_config = GenerationConfig(repetition_penalty=50.0)
    assert _evaluator(parts).evaluate(0).answers == plain


@pytest.mark.parametrize("exact_match", ["true", "false"])
def test_evaluation_leaves_training_alone(recipe: Path, tmp_path: Path, exact_match: str) -> None:
    """With dropout, every random number counts: losses and weights are the same, evaluated or not."""
    common = ["train.steps=4", "train.micro_batch=2", "adapter.dropout=0.3", "eval.max_new_tokens=3"]
    without = tmp_path / "without.toml"
    tables = tomli.loads(recipe.read_text(encoding="utf-8"))
    del tables["eval"]
    tables["model"]["path"] = str(recipe.parent / "model")
    tables["data"]["source"][0]["path"] = str(recipe.parent / "data.jsonl")
    without.write_text(tomli_w.dumps(tables), encoding="utf-8")
    train_run(without, tmp_path / "without", *[c for c in common if not c.startswith("eval.")])
    every = ["eval.before=true", "eval.every=1", f"eval.exact_match={exact_match}"]
    train_run(recipe, tmp_path / "with", *common, *every)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    one, other = adapter(tmp_path / "with"), adapter(tmp_path / "without")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_training_mode_and_random_numbers_are_restored(recipe: Path) -> None:
    parts = parts_of(recipe, "eval.exact_match=true", "eval.max_new_tokens=2")
    state = torch.get_rng_state()
    _evaluator(parts).evaluate(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in parts.run.model.modules())
    evaluator = _evaluator(parts)
    evaluator.objective.scores.token_loss = _fail
    with pytest.raises(ZeroDivisionError):
        evaluator.evaluate(0)
    assert parts.run.model.training


def _fail(*_: object) -> torch.Tensor:
    raise ZeroDivisionError


def _example(labels: list[int]) -> Example:
    ids = np.arange(10, 10 + len(labels), dtype=np.int32)
    return Example(input_ids=ids, labels=np.asarray(labels, dtype=np.int32), origin=ORIGIN)


@pytest.mark.parametrize(
    ("labels", "prompt", "answer"),
    [
        ([-100, -100, 12, 13], [10, 11], [12, 13]),
        ([-100, 11, -100, -100, 14, 15, -100], [10, 11, 12, 13], [14, 15]),  # several turns: the last
        ([10, 11, 12], [10], [11, 12]),  # all of it is trained on: the first token is predicted by none
        ([-100, 11], [10], [11]),
    ],
)
def test_prompt_and_answer(labels: list[int], prompt: list[int], answer: list[int]) -> None:
    found = split_answer(_example(labels))
    assert [part.tolist() for part in found] == [prompt, answer]


def test_turns_before_the_last_are_in_the_prompt(recipe: Path, tmp_path: Path) -> None:
    turns = [("user", "a?"), ("assistant", "A"), ("user", "b?"), ("assistant", "B")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (tmp_path / "several.jsonl").write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    source = f'eval.source=[{{use="jsonl", path="{tmp_path / "several.jsonl"}"}}]'
    parts = parts_of(recipe, source, "eval.exact_match=true", "eval.max_new_tokens=1")
    (answer,) = _evaluator(parts).evaluate(0).answers
    assert answer.prompt == "user\na?\nassistant\nA\nuser\nb?\nassistant\n"
    assert answer.expected == "B"


TEXT_END = (
    "{%- for m in messages -%}{{- m.role + ': ' + m.content + (' END' if m.role == 'assistant' else '') + '\\n' -}}\
{%- endfor -%}{%- if add_generation_prompt -%}{{- 'assistant: ' -}}{%- endif -%}"
)
"""No special token ends an answer, but a text of several tokens."""


def test_answers_end_at_a_text_too(tmp_path: Path) -> None:
    """As those of `ft generate` do: the text that ends them is no part of what is expected or generated."""
    changes = {
        "train": {"steps": 80, "learning_rate": 1e-2, "micro_batch": 12},
        "eval": {"source": [{"use": "jsonl", "path": "held_out.jsonl"}], "before": False, "micro_batch": 2},
    }
    path = write_recipe(tmp_path / "recipe", changes)
    write_tiny_data(path.parent / "held_out.jsonl", rows=5)
    (path.parent / "end.jinja").write_text(TEXT_END, encoding="utf-8")
    ended = f"data.stage=[{{use='chat', template_file='{path.parent / 'end.jinja'}'}}]"
    parts = parts_of(path, 'adapter={use="none"}', "eval.exact_match=true", "eval.max_new_tokens=24", ended)
    assert _evaluator(parts).ends.texts == (" END",)
    *_, report = train(parts)
    assert isinstance(report, EvalReport)
    assert [a.expected for a in report.answers] == ["1", "1 2", "1 2 3", "1 2 3 4", "1 2 3 4 5"]
    assert not any("END" in a.generated for a in report.answers)
    assert report.exact_match is not None
    assert report.exact_match >= 0.8
    assert not any(a.cut for a in report.answers)
