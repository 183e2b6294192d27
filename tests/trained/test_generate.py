"""`ft generate`: the template that was trained with, answers as the run's evaluation gives them, and a conversation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fitune.compose.dialogue import dialogue_of
from fitune.compose.stopping import Ends, ends_of
from fitune.plugin.records import Dialogue
from fitune.testing import open_registry
from fitune.trained.generate import Generator, Sampling
from fitune.trained.open import Opened, find, open_run
from support.after_runs import finished, ft, refused

END = 257
"""The tiny tokenizer's token that ends a turn."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for long enough to end its answers."""
    long = ["train.steps=60", "train.learning_rate=0.03", "train.micro_batch=12", "train.schedule=linear"]
    return finished(tmp_path_factory.mktemp("generate"), *long)


@pytest.fixture(scope="module")
def opened(run: Path) -> Opened:
    return open_run(find(run, open_registry()))


@pytest.fixture
def generator(opened: Opened) -> Generator:
    return _generator(opened, dialogue_of(opened.trained.recipe, opened.context))


def _generator(opened: Opened, dialogue: Dialogue | None, **sampling: Any) -> Generator:
    sampling = {"max_new_tokens": 8, **sampling}
    return Generator(model=opened.model, tokenizer=opened.tokenizer, dialogue=dialogue, sampling=Sampling(**sampling))


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _questions(run: Path) -> list[str]:
    lines = (run.parent / "recipe" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"][0]["content"] for line in lines]


def test_answers_are_those_of_the_runs_evaluation(run: Path) -> None:
    answers = json.loads((run / "examples.json").read_text(encoding="utf-8"))["answers"]
    prompts = [part for question in _questions(run) for part in ("--prompt", question)]
    out, _ = ft("generate", run, *prompts, "--max-new-tokens", 8)
    assert out == "\n".join(f"{answer['generated']}\n" for answer in answers)
    assert len({answer["generated"] for answer in answers}) > 1


def test_the_untrained_model_answers_otherwise(run: Path) -> None:
    trained, base = (ft("generate", run, "--prompt", "Count to 3.", *how)[0] for how in ([], ["--base"]))
    assert trained != base


def test_the_prompt_is_read_from_standard_input(run: Path) -> None:
    given = ft("generate", run, "--max-new-tokens", 8, "--prompt", "Count to 4.")[0]
    assert ft("generate", run, "--max-new-tokens", 8, stdin="Count to 4.\n")[0] == given
    assert "standard input is empty" in refused("generate", run, stdin="")


def test_the_prompt_is_that_of_training(generator: Generator, opened: Opened) -> None:
    text = opened.tokenizer.decode(generator.tokens([_user("Hi")]))
    assert text == "<|start|>user\nHi<|end|>\n<|start|>assistant\n"
    raw = _generator(opened, None)
    assert opened.tokenizer.decode(raw.tokens([_user("Hi")])) == "Hi"


def test_pieces_join_to_the_answer_and_end_where_the_turn_ends(generator: Generator) -> None:
    pieces: list[str] = []
    answer = generator.answer([_user("Count to 2.")], pieces.append)
    assert "".join(pieces) == answer
    assert len(pieces) > 1
    assert "<|" not in answer
    assert len(answer) < 8  # a token a character: it ended itself


def test_greedy_whatever_the_models_own_settings_say(opened: Opened, generator: Generator) -> None:
    plain = generator.answer([_user("Count to 5.")], _nothing)
    inner: Any = opened.model
    settings = inner.get_base_model().generation_config
    settings.repetition_penalty, settings.min_new_tokens = 50.0, 8
    try:
        assert generator.answer([_user("Count to 5.")], _nothing) == plain
    finally:
        settings.repetition_penalty, settings.min_new_tokens = None, None


def test_drawing_is_told_by_the_seed(run: Path) -> None:
    def drawn(seed: int, *more: object) -> str:
        return ft("generate", run, "--prompt", "Hi", "--temperature", 5, "--seed", seed, "--raw", *more)[0]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    greedy = ft("generate", run, "--prompt", "Hi", "--raw")[0]
    assert drawn(1, "--top-p", 1e-6) == drawn(2, "--top-p", 1e-6) == greedy


def test_a_conversation_has_a_history_until_it_is_cleared(run: Path, opened: Opened, generator: Generator) -> None:
    asked = ["Count to 2.", "Count to 3."]
    first = generator.answer([_user(asked[0])], _nothing)
    with_history = [_user(asked[0]), {"role": "assistant", "content": first}, _user(asked[1])]
    second = generator.answer(with_history, _nothing)
    alone = generator.answer([_user(asked[1])], _nothing)
    assert second != alone
    lines = f"{asked[0]}\n\n{asked[1]}\n/clear\n{asked[1]}\n/exit\nnever\n"
    out, err = ft("generate", run, "--interactive", "--max-new-tokens", 8, stdin=lines)
    assert out == f"{first}\n{second}\n{alone}\n"
    assert "error" not in err


def test_a_conversation_outlives_a_question_that_is_too_long(run: Path) -> None:
    lines = f"{'x' * 600}\nCount to 2.\n"  # ends without /exit, as by Ctrl-D
    out, err = ft("generate", run, "--interactive", "--max-new-tokens", 8, stdin=lines)
    assert out == ft("generate", run, "--prompt", "Count to 2.", "--max-new-tokens", 8)[0]
    assert "note: the prompt has 619 tokens, and the model takes 512 in all. Shorten it. /clear begins anew" in err


def test_a_system_message(run: Path, opened: Opened) -> None:
    said = ft("generate", run, "--system", "Count.", "--prompt", "Hi", "--max-new-tokens", 8)[0]
    generator = _generator(opened, dialogue_of(opened.trained.recipe, opened.context))
    assert said == generator.answer([{"role": "system", "content": "Count."}, _user("Hi")], _nothing) + "\n"
    assert "--raw gives the prompt as it is" in refused("generate", run, "--raw", "--system", "x", "--prompt", "x")


def test_the_system_message_of_training_is_given_too(run: Path) -> None:
    recipe = find(run, open_registry(), overrides=["data.stage=[{use='chat', system='Be brief.'}]"]).recipe
    opened = find(run, open_registry())
    tokenizer = opened.recipe.model.record.load_tokenizer(opened.recipe.model.options)
    from fitune.data.prepare import context_of

    dialogue = dialogue_of(recipe, context_of(recipe, tokenizer))
    assert dialogue is not None
    assert dialogue.prompt([_user("Hi")]).startswith("<|start|>system\nBe brief.<|end|>\n<|start|>user\nHi")
    own = dialogue.prompt([{"role": "system", "content": "Own."}, _user("Hi")])
    assert "Be brief." not in own


def test_ends(opened: Opened) -> None:
    dialogue = dialogue_of(opened.trained.recipe, opened.context)
    assert dialogue is not None
    assert dialogue.end == "<|end|>"
    assert ends_of(opened.tokenizer, dialogue) == Ends(tokens=(END,))
    several = Dialogue(prompt=str, end="\n### User", ends=("\n### User", " <|pad|>", "END"), template="")
    assert ends_of(opened.tokenizer, several) == Ends(tokens=(END, 258), texts=("\n### User", "END"))
    assert ends_of(opened.tokenizer, None) == Ends(tokens=(END,))


def test_texts_that_end_answers_are_no_part_of_them(opened: Opened, generator: Generator) -> None:
    """Of several tokens, each of them; nothing of one is told while the answer is written, either."""
    whole = generator.answer([_user("Count to 5.")], _nothing)
    assert len(whole) > 3
    own = dialogue_of(opened.trained.recipe, opened.context)
    assert own is not None
    mark = whole[2:4]
    for ends in ((mark,), ("never", mark), (mark, "never")):
        ending = Dialogue(prompt=own.prompt, end=ends[0], ends=ends, template=own.template)
        told: list[str] = []
        answer = _generator(opened, ending).answer([_user("Count to 5.")], told.append)
        assert answer == "".join(told) == whole[: whole.index(mark)]


def test_what_only_begins_as_an_end_does_is_told(opened: Opened, generator: Generator) -> None:
    whole = generator.answer([_user("Count to 5.")], _nothing)
    own = dialogue_of(opened.trained.recipe, opened.context)
    assert own is not None
    for end in (whole[1:3] + "!", whole[-2:] + "!"):
        told: list[str] = []
        ending = Dialogue(prompt=own.prompt, end=end, template=own.template)
        assert _generator(opened, ending).answer([_user("Count to 5.")], told.append) == whole
        assert "".join(told) == whole


def test_what_cannot_be_asked_is_told(run: Path) -> None:
    assert "takes no --prompt" in refused("generate", run, "--interactive", "--prompt", "x")
    assert "the prompt is empty" in refused("generate", run, "--raw", "--prompt", "")


def test_a_recipe_without_a_template_goes_on_with_text(tmp_path: Path, run: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    text = (copy / "recipe.toml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if 'use = "chat"' not in line]
    plain = "\n".join(line.replace('use = "detect", loss_keys = true', 'use = "plain-text"') for line in lines)
    (copy / "recipe.toml").write_text(plain, encoding="utf-8")
    assert ft("generate", copy, "--prompt", "1 2 ")[0] == ft("generate", run, "--raw", "--prompt", "1 2 ")[0]
    assert "trained on text without a chat template" in refused("generate", copy, "--system", "x", "--prompt", "x")


def _nothing(text: str) -> None:
    assert isinstance(text, str)


def test_rows_of_the_model_are_not_changed(opened: Opened, generator: Generator) -> None:
    before = {name: p.clone() for name, p in opened.model.named_parameters()}
    generator.answer([_user("Count to 2.")], _nothing)
    assert all(torch.equal(before[name], p) for name, p in opened.model.named_parameters())
