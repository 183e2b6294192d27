"""The task suite `lm-eval`, on a task whose data lie here: what it says is what plain arithmetic says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fitune import NoOptions, TaskRequest, TaskSuite, hookimpl
from fitune.testing import open_registry
from fitune.trained.open import find, open_run
from fitune.trained.tasks import Asked, measure, suite_of
from support.after_runs import finished, ft, refused

QUESTIONS = [(f"Count to {number}.", ["1 2", "1 2 3", "7 7 7"], number % 3) for number in range(1, 7)]

DESCRIPTION = """\
task: counting
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("tasks"), "eval.exact_match=false")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("described")
    rows = (json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in QUESTIONS)
    (home / "counting.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (home / "counting.yaml").write_text(DESCRIPTION.format(data=home / "counting.jsonl"), encoding="utf-8")
    return home


def _by_hand(run: Path, *, base: bool) -> float:
    """The share of questions whose right answer is the likeliest, of the texts that the harness asks with."""
    opened = open_run(find(run, open_registry()), base=base)
    model: Any = opened.model
    tokenizer: Any = opened.tokenizer
    right = 0
    for question, choices, answer in QUESTIONS:
        prompt = f"<|start|>user\n{question}<|end|>\n<|start|>assistant\n"
        sums = []
        for choice in choices:
            begin, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + choice))
            with torch.no_grad():
                likely = model(input_ids=torch.tensor([whole])).logits[0].float().log_softmax(-1)
            places = range(len(begin), len(whole))
            sums.append(sum(likely[at - 1, whole[at]].item() for at in places))
        right += sums.index(max(sums)) == answer
    return right / len(QUESTIONS)


def test_before_and_after_as_by_hand(run: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'fitune[lm-eval]'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tasks / "cache"))
    out, _ = ft("eval", run, "--tasks", "counting", "--tasks-from", tasks, "--json")
    found = json.loads(out)
    assert (found["suite"], found["checkpoint"]) == ("lm-eval", None)
    assert found["before"] == {"counting": {"acc": pytest.approx(_by_hand(run, base=True))}}
    assert found["after"] == {"counting": {"acc": pytest.approx(_by_hand(run, base=False))}}


def test_a_task_that_nobody_knows(run: Path, tasks: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'fitune[lm-eval]'")
    said = refused("eval", run, "--tasks", "countng", "--tasks-from", tasks)
    assert 'lm-eval has no task "countng"' in said
    assert "no such directory" in refused("eval", run, "--tasks", "counting", "--tasks-from", tasks / "none")


def test_without_the_package(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    said = refused("eval", run, "--tasks", "counting")
    assert said == "the package lm-eval is not installed. Install it: pip install 'fitune[lm-eval]'."


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tasks", "x", "--data", "x.jsonl"], "--data has no effect with --tasks"),
        (["--limit", "3"], "--limit has no effect with an evaluation on data, without --tasks"),
        (["--tasks", " , "], "--tasks names no task"),
        (["--tasks", "x", "--suite", "lm-evil"], 'unknown task suite "lm-evil". Did you mean "lm-eval"?'),
    ],
)
def test_options_that_do_nothing(run: Path, options: list[str], said: str) -> None:
    assert said in refused("eval", run, *options)


class _Suite:
    """A plugin with a suite that keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[TaskRequest] = []

    @hookimpl
    def ft_task_suites(self) -> list[TaskSuite[NoOptions]]:
        """Offer it."""
        return [TaskSuite(name="own", summary="Keeps what it is asked", options=NoOptions, measure=self._measure)]

    def _measure(self, options: NoOptions, asked: TaskRequest) -> dict[str, dict[str, float]]:
        self.asked.append(asked)
        return {task: {"acc": 0.5} for task in asked.tasks}


def test_a_suite_of_somebody_else(run: Path) -> None:
    plugin = _Suite()
    registry = open_registry(plugin)
    suite, options = suite_of(registry, "own")
    found = measure(find(run, registry), suite, options, Asked(tasks=("a", "b"), shots=2, limit=3))
    assert found == {"a": {"acc": 0.5}, "b": {"acc": 0.5}}
    (asked,) = plugin.asked
    assert (asked.tasks, asked.shots, asked.limit, asked.chat) == (("a", "b"), 2, 3, True)
    tokenizer: Any = asked.tokenizer
    assert "<|start|>" in tokenizer.chat_template
    assert not asked.model.training
