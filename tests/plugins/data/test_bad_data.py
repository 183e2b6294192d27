"""Every kind of bad data, through `ft run`: one line, exit code 2, and nothing left of the run."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fitune.cli.main import main
from fitune.errors import DataError
from fitune.testing import write_tiny_tokenizer
from fitune_plugins.data.sources import jsonl
from support.light import LIGHT, write_light

GOOD = '{"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]}\n'
PAIRS = ('data.stage=[{use="prompt-completion", prompt="question", completion="answer"}, {use="chat"}]',)
WANTED = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
LONG = json.dumps({"messages": [{"role": "user", "content": "?" * 99}, {"role": "assistant", "content": "1"}]}) + "\n"
REFUSING = "{{ raise_exception('roles must\\nalternate') }}"
ADDING = "{% for message in messages %}{{ 'turn ' + loop.index }}{% endfor %}"
FORGETTING = "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A data file, and what is printed of it."""

    name: str
    content: str | bytes
    error: str
    """{data} is the data file, {held_out} the held-out one."""
    sets: Sequence[str]
    template: str | None
    """A chat template in place of the tokenizer's own."""


def case(name: str, content: str | bytes, error: str, *, sets: Sequence[str] = (), template: str | None = None) -> Case:
    return Case(name=name, content=content, error=error, sets=sets, template=template)


def row(**values: object) -> str:
    return json.dumps(values) + "\n"


def turns(*messages: object) -> str:
    return row(messages=list(messages))


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def assistant(content: object) -> dict[str, object]:
    return {"role": "assistant", "content": content}


CASES = (
    # ---------------------------------------------------------------------------------------------------- files
    case("not JSON", GOOD + "\n{'a': 1}\n", "{data}:3: not JSON: Expecting property name enclosed in double quotes (column 2). Write one JSON object a line"),
    case("JSON over several lines", '[\n  {"messages": []}\n]\n', "{data}:1: not JSON: Expecting value (column 2). Write one JSON object a line"),
    case("row is an array", GOOD + "[1, 2]\n", "{data}:2: not a JSON object: [1, 2]. Write one JSON object a line"),
    case("row is null", "null\n", "{data}:1: not a JSON object: null. Write one JSON object a line"),
    case("row is a long text", json.dumps("x" * 99), "{data}:1: not a JSON object: \"" + "x" * 55 + " .... Write one JSON object a line"),
    case("comma-separated", "question,answer\n1,2\n", "{data}:1: not JSON: Expecting value (column 1). Write one JSON object a line"),
    case("not UTF-8", GOOD.encode() + '{"messages": "é"}\n'.encode("latin-1"), "{data}:2: not UTF-8 (byte 14 of the line). Save the file as UTF-8"),
    case("UTF-16", GOOD.encode("utf-16"), "{data}:1: not UTF-8 (byte 0 of the line). Save the file as UTF-8"),
    case("number of 5000 digits", '{"n": ' + "9" * 5000 + "}\n", "{data}:1: JSON that cannot be read: it holds a number of too many digits"),
    case("nested without end", "[" * 200_000, "{data}:1: JSON that cannot be read: it is nested too deeply"),
    case("blank lines alone", "\n  \n\n", "no row is left to train on: the sources are empty"),
    # -------------------------------------------------------------------------------------------------- columns
    case("misspelled column", row(mesages=[]), '{data}:1: the format cannot be told by its columns: mesages. Is "mesages" to be "messages"? Name a format and its columns in a [[data.stage]] before "chat"'),
    case("other columns", GOOD + row(text="a", id=1), '{data}:2: no column "messages". Known: id, text. Name the column in the stage\'s table: messages = ...'),
    case("empty object", "{}\n", '{data}:1: the format cannot be told by its columns: none. Name a format and its columns: [[data.stage]] use = "prompt-completion", prompt = ..., completion = ...'),
    case("no column of questions", row(answer="1"), '{data}:1: no column "question". Known: answer. Name the column in the stage\'s table: prompt = ...', sets=PAIRS),
    case("no column of answers", row(question="1", anser="1"), '{data}:1: no column "answer". Did you mean "anser"? Name the column in the stage\'s table: completion = ...', sets=PAIRS),
    case("question is a number", row(question=1, answer="1"), '{data}:1: column "question" is 1, not a text', sets=PAIRS),
    case("answer is null", row(question="1", answer=None), '{data}:1: column "answer" is null, not a text', sets=PAIRS),
    # ------------------------------------------------------------------------------------------------- messages
    case("messages are a text", row(messages="hello"), f'{{data}}:1: column "messages" is not a list of messages. It takes: {WANTED}'),
    case("messages are empty", GOOD + turns(), f'{{data}}:2: column "messages" is not a list of messages. It takes: {WANTED}'),
    case("message is a text", turns("hello"), "{data}:1: message 1 is not an object with a role and a content"),
    case("message without a role", turns(user("1"), {"from": "gpt", "value": "1"}), "{data}:1: message 2 is not an object with a role and a content. It has: from, value"),
    case("role is a number", turns({"role": 1, "content": "1"}), "{data}:1: message 1 is not an object with a role and a content. It has: role, content"),
    case("message without content", turns({"role": "user"}), '{data}:1: message 1 (user): "content" is null, not a text'),
    case("content is a list", turns(user([{"type": "text"}])), '{data}:1: message 1 (user): "content": a part of it is null, not a text'),
    case("content with half a character", turns(user("1?"), assistant("1 \ud83d")), "{data}:1: JSON that cannot be read: \\ud83d is half a character: text was cut inside a surrogate pair"),
    case("no turn of the assistant", turns({"role": "system", "content": "s"}, user("1?")), '{data}:1: no message has the role "assistant", so there is nothing to train on. Roles: system, user'),
    # ------------------------------------------------------------------------------------------------ templates
    case("template refuses", GOOD, "{data}:1: the chat template refuses it: roles must alternate", template=REFUSING),
    case("template fails", GOOD, '{data}:1: the chat template refuses it: can only concatenate str (not "int") to str', template=ADDING),
    case("template forgets", turns(user("a"), assistant("b"), user("c"), assistant("d")), "{data}:1: message 2 is rendered in a way that does not show exactly which text is its own. Use a template with {% generation %} marks, by template_file", template=FORGETTING),
    case("no template", GOOD, 'the tokenizer has no chat template, which the stage "chat" needs. Use a model with one (an "instruct" or "chat" model), or name one: template = one of chatml, deepseek-llm, gemma, llama-2, llama-3, mistral, phi-3, qwen, vicuna, zephyr', template=""),
    # ------------------------------------------------------------------------------------------ nothing is left
    case("no target after truncation", GOOD * 2, "no row is left to train on (rows read as messages: 2; rows cut at the right: 2; rows left out: no token to train on: 2)", sets=["train.length=4"]),
    case("every row dropped", GOOD * 3, "no row is left to train on (rows read as messages: 3; rows dropped: too long: 3)", sets=["train.length=4", 'data.stage=[{use="chat"}, {use="tokenize"}, {use="truncate", policy="drop"}]']),
    case("held-out data without a target", GOOD, "no row is left to evaluate on (rows read as messages: 1; rows cut at the right: 1; rows left out: no token to train on: 1)", sets=["train.length=50", 'eval.source=[{use="jsonl", path="long.jsonl"}]']),
    case("fraction of too few rows", GOOD, "no row is left to evaluate on: [eval] fraction = 0.01 of so few rows puts them all on the other side", sets=["eval.fraction=0.01"]),
    case("too many rows without a target", GOOD * 9 + LONG, "training data: 1 of 10 rows have no token to train on, more than [data] max_empty = 0.05 allows. They are left out; to see what is left: ft data r.toml --set data.max_empty=1", sets=["train.length=50"]),
    case("bad row of held-out data", GOOD, "{held_out}:1: not a JSON object: 3. Write one JSON object a line", sets=['eval.source=[{use="jsonl", path="held_out.jsonl"}]']),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer."""
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(directory)
    return directory


def write(directory: Path, tokenizer: Path, content: str | bytes, template: str | None) -> None:
    """The light recipe with a tokenizer and data; its model has no weights, so an error must come before they are read."""
    write_light(directory, LIGHT)
    for file in tokenizer.iterdir():
        (directory / "model" / file.name).write_bytes(file.read_bytes())
    chat_template = directory / "model" / "chat_template.jinja"
    assert chat_template.is_file()
    if template:
        chat_template.write_text(template, encoding="utf-8")
    elif template == "":
        chat_template.unlink()
    (directory / "data.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    (directory / "held_out.jsonl").write_text("3\n", encoding="utf-8")
    (directory / "long.jsonl").write_text(LONG, encoding="utf-8")


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_each_is_one_line(bad: Case, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, tokenizer, bad.content, bad.template)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(SystemExit) as exit_:
        main(["run", "r.toml", "--no-third-party", *[word for text in bad.sets for word in ("--set", text)]])

    error = bad.error.replace("{data}", str(tmp_path / "data.jsonl"))
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert printed.err == f"error: {error.replace('{held_out}', str(tmp_path / 'held_out.jsonl'))}\n"
    training, held_out = "preparing the training data\n", "preparing the held-out data\n"
    of_held_out = printed.out == training + held_out
    assert of_held_out or printed.out == training
    entries = [entry.name for entry in (tmp_path / "cache").iterdir()]
    assert len(entries) == (1 if of_held_out else 0), "good training data are kept though the held-out ones are bad"
    of_the_user = {"cache", "state"}  # prepared data, and the key that seals them
    after = [one for one in sorted(tmp_path.rglob("*")) if not of_the_user & {*one.relative_to(tmp_path).parts}]
    assert after == before, "a run that never began leaves nothing behind"


def test_there_are_many_kinds() -> None:
    assert len({bad.name for bad in CASES}) == len(CASES) >= 30


def test_good_data_get_past_all_of_this(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, tokenizer, "\ufeff" + GOOD, None)
    with pytest.raises(SystemExit):
        main(["run", "r.toml", "--no-third-party"])
    assert f"the model {tmp_path / 'model'} cannot be loaded" in capsys.readouterr().err


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        list(jsonl.read(tmp_path / "gone.jsonl"))
    assert error.value.message == f"{tmp_path / 'gone.jsonl'}: cannot be read: No such file or directory"


def test_a_data_set_that_cannot_be_loaded(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise ValueError("Config name is missing.\nPlease pick one of: ['main', 'socratic']\n")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    write(tmp_path, tokenizer, GOOD, None)
    with pytest.raises(SystemExit):
        main(["run", "r.toml", "--no-third-party", "--set", 'data.source=[{use="hf-dataset", id="openai/gsm8k"}]'])
    assert capsys.readouterr().err == (
        "error: the data set openai/gsm8k cannot be loaded: Config name is missing. Please pick one of: "
        "['main', 'socratic']. To train on a local file instead: --set data.path=FILE.jsonl\n"
    )
