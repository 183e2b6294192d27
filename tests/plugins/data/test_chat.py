"""The stage `chat`: each family's published text, what is trained on in it, and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fitune.plugin.options import parse
from fitune_plugins.data import chat
from fitune_plugins.data.chat_template import named, names
from support.templates import (
    DEEPSEEK,
    FAMILIES,
    QWEN,
    VICUNA,
    Family,
    conversation,
    error,
    label,
    marked,
    render,
    targets,
)
from support.templates import tokenizer as tokenizer_of

TALK = conversation("Hello!", "Hi there.", "How are you?", "Well, thanks.")
SYSTEM = {"role": "system", "content": "Be brief."}
WITH_SYSTEM = conversation(SYSTEM, "Hello!", "Hi there.")
BY_NAME = {family.name: family for family in FAMILIES}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}

# As the published templates render it; where they come from stands in each file of plugins/fitune_plugins/templates.
TEXTS = {
    "chatml": "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\nHi there.<|im_end|>\n"
    "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\nWell, thanks.<|im_end|>\n",
    "llama-2": "<s>[INST] Hello! [/INST] Hi there. </s><s>[INST] How are you? [/INST] Well, thanks. </s>",
    "llama-3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi there.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nWell, thanks.<|eot_id|>",
    "mistral": "<s> [INST] Hello! [/INST] Hi there.</s> [INST] How are you? [/INST] Well, thanks.</s>",
    "gemma": "<bos><start_of_turn>user\nHello!<end_of_turn>\n<start_of_turn>model\nHi there.<end_of_turn>\n"
    "<start_of_turn>user\nHow are you?<end_of_turn>\n<start_of_turn>model\nWell, thanks.<end_of_turn>\n",
    "deepseek-llm": "<｜begin▁of▁sentence｜>User: Hello!\n\nAssistant: Hi there.<｜end▁of▁sentence｜>"
    "User: How are you?\n\nAssistant: Well, thanks.<｜end▁of▁sentence｜>",
    "qwen": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\nHi there.<|im_end|>\n"
    "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\nWell, thanks.<|im_end|>\n",
    "phi-3": "<|user|>\nHello!<|end|>\n<|assistant|>\nHi there.<|end|>\n"
    "<|user|>\nHow are you?<|end|>\n<|assistant|>\nWell, thanks.<|end|>\n<|endoftext|>",
    "zephyr": "<|user|>\nHello!</s>\n<|assistant|>\nHi there.</s>\n"
    "<|user|>\nHow are you?</s>\n<|assistant|>\nWell, thanks.</s>\n",
    "vicuna": "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: Hello! ASSISTANT: Hi there.</s>"
    "USER: How are you? ASSISTANT: Well, thanks.</s>",
}

WITH_SYSTEM_TEXTS = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n",
    "llama-2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello! [/INST]",
    "llama-3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|>",
    "mistral": "<s> [INST] Be brief.\n\nHello! [/INST]",
    "deepseek-llm": f"{DEEPSEEK[0]}Be brief.\n\nUser: Hello!\n\n",
    "qwen": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n",
    "phi-3": "<|system|>\nBe brief.<|end|>\n<|user|>\nHello!<|end|>\n",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHello!</s>\n",
    "vicuna": "<s>Be brief. USER: Hello! ",
}

by_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def test_each_shipped_template_has_its_text_here() -> None:
    assert names() == sorted(TEXTS) == sorted(BY_NAME)
    for name in names():
        assert named(name).startswith("{#- "), "it says where it comes from"
        assert name in Path(chat.__file__).read_text(encoding="utf-8"), "it stands in the option's description"


@by_family
def test_text_is_the_published_one(family: Family) -> None:
    made = tokenizer_of(family)
    document = render(made, TALK, template=family.name)
    assert document.text == TEXTS[family.name]
    assert document.special
    assert marked(document) == [family.written("Hi there."), family.written("Well, thanks.")]


@pytest.mark.parametrize("name", WITH_SYSTEM_TEXTS)
def test_system_message_is_rendered_and_not_trained_on(name: str) -> None:
    family = BY_NAME[name]
    made = tokenizer_of(family)
    given = render(made, WITH_SYSTEM, template=name)
    assert given.text.startswith(WITH_SYSTEM_TEXTS[name])
    assert marked(given) == [family.written("Hi there.")]
    assert render(made, conversation("Hello!", "Hi there."), template=name, system="Be brief.") == given
    assert render(made, WITH_SYSTEM, template=name, system="Be long.") == given, "a row's own comes first"


def test_literals_of_the_families_are_whole() -> None:
    assert TEXTS["qwen"].startswith(QWEN)
    assert VICUNA in TEXTS["vicuna"]


@by_family
def test_loss_on_completion_and_on_all(family: Family) -> None:
    made = tokenizer_of(family)
    last = render(made, TALK, template=family.name, loss="completion")
    assert marked(last) == [family.written("Well, thanks.")]
    assert len(targets(made, label(made, last))) == 1
    whole = render(made, TALK, template=family.name, loss="all")
    assert marked(whole) == [TEXTS[family.name]] == [last.text]
    example = label(made, whole)
    assert example.labels.tolist() == example.input_ids.tolist()


@by_family
def test_end_marks_are_trained_on_though_they_pad(family: Family) -> None:
    made = tokenizer_of(family)
    assert made.pad_token_id == made.eos_token_id
    example = label(made, render(made, TALK, template=family.name))
    mark = made.convert_tokens_to_ids(family.mark.strip())
    trained = [token for token, target in zip(example.input_ids, example.labels, strict=True) if target == token]
    assert trained.count(mark) == 2
    assert trained[-1] == mark


@by_family
def test_prompt_is_what_the_model_sees_when_it_answers(family: Family) -> None:
    """The tokens before each answer are those of the prompt alone, as inference makes them."""
    made = tokenizer_of(family)
    made.chat_template = named(family.name)
    for answer in ("Hi", "\n\nHi", "  Hi", ""):
        talk = conversation("Hello!", answer)
        example = label(made, render(made, talk))
        encoded: Any = made.apply_chat_template([dict(talk.messages[0])], add_generation_prompt=True, return_dict=True)
        prompt = encoded["input_ids"]
        assert example.input_ids[: len(prompt)].tolist() == prompt
        assert (example.labels[: len(prompt)] == -100).all()
        assert example.labels[len(prompt)] != -100


# ------------------------------------------------------------------------------------------------------------- tools


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
WITH_TOOLS = conversation(
    "Rome?",
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
    "Thanks.",
    {"role": "assistant", "content": "Welcome."},
    tools=[WEATHER],
)


def test_calls_are_trained_on_and_what_tools_say_is_not() -> None:
    document = render(tokenizer_of(BY_NAME["qwen"]), WITH_TOOLS, template="qwen")
    assert '<tools>\n{"type": "function", "function": {"name": "weather",' in document.text
    assert "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n" in document.text
    assert marked(document) == [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
        "It is sunny.<|im_end|>",
        "Welcome.<|im_end|>",
    ]


# ----------------------------------------------------------------------------------------------------------- options


def check(**options: Any) -> list[str]:
    (stage,) = chat.ft_data_stages()
    chosen, problems = parse(stage.options, options)
    return [problem.sentence() for problem in (stage.check(chosen) if chosen else problems)]


def test_a_template_may_be_a_file(tmp_path: Path) -> None:
    family = BY_NAME["zephyr"]
    file = tmp_path / "mine.jinja"
    file.write_text(named("zephyr"), encoding="utf-8")
    assert check(template_file=str(file)) == []
    made = tokenizer_of(family)
    assert render(made, TALK, template_file=file) == render(made, TALK, template="zephyr")


def test_options_that_cannot_be(tmp_path: Path) -> None:
    (file := tmp_path / "a.jinja").write_text("", encoding="utf-8")
    assert check(template="chatlm") == [
        'no chat template is called "chatlm". Did you mean "chatml"? For a file, write template_file = ...'
    ]
    assert check(template_file="no.jinja") == ["no such file: no.jinja. Give the path of a Jinja file"]
    both = '"template_file" is given, and "template" too. Keep one of them'
    assert check(template="chatml", template_file=str(file)) == [both]
    assert check(loss="last") == ['"loss" is "last". It takes: "assistant" or "completion" or "all"']


def test_files_that_are_no_template(tmp_path: Path) -> None:
    made = tokenizer_of(BY_NAME["zephyr"])
    (broken := tmp_path / "broken.jinja").write_text("hello\n{% for %}", encoding="utf-8")
    (latin := tmp_path / "latin.jinja").write_bytes("é".encode("latin-1"))
    assert error(TALK, made, template_file=broken) == (
        f"{broken}:2: not Jinja: Expected an expression, got 'end of statement block'. Mend it, or use another template"
    )
    assert error(TALK, made, template_file=latin) == f"{latin}: the chat template is not UTF-8. Save the file as UTF-8"
    missing = tmp_path / "no.jinja"
    assert error(TALK, made, template_file=missing).startswith(f"{missing}: the chat template cannot be read: ")


def test_of_several_templates_of_a_tokenizer_tools_have_their_own() -> None:
    made = tokenizer_of(BY_NAME["chatml"])
    many: Any = {"default": named("chatml"), "tool_use": "tools\n" + named("chatml")}
    made.chat_template = many
    assert render(made, TALK).text == TEXTS["chatml"]
    with_tools = conversation("Hello!", "Hi there.", tools=[WEATHER])
    assert render(made, with_tools).text.startswith("tools<|im_start|>system\n# Tools\n")
