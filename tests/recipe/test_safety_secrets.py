"""No secret of the environment, and no token of a known shape, in what a run saves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fitune import Notice, RecipeError
from fitune.recipe.reader import read_recipe
from fitune.recipe.secrets import redacted, redacted_values, secret_in
from fitune.testing import open_registry
from fitune.train.out_of_memory import log
from support.light import write_light
from support.tiny import train

HF, AWS = "hf_" + "QwErTyUiOp" * 3, "wJalrXUtnFEMI/K7MDENG+bPxRfiCY"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"--set x={HF}", "--set x=[redacted]"),
        ("AKIA" + "A1B2" * 4 + " failed", "[redacted] failed"),
        ("key sk-proj-" + "aB3_" * 8, "key [redacted]"),
        ("ghp_" + "a1" * 18, "[redacted]"),
        ("github_pat_" + "a1_B" * 8, "[redacted]"),
        ("https://anna:hunter2@host/x", "https://[redacted]@host/x"),
        ("https://host/x?a=1&token=0123456789&b=2", "https://host/x?a=1&token=[redacted]&b=2"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghij", "[redacted]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----", "[redacted]"),
        ("postgres://me:p@ss/word@host/db", "postgres://[redacted]@host/db"),
        ("https://" + "0a1b" * 8 + "@sentry.io/4", "https://[redacted]@sentry.io/4"),
        ("https://hooks.slack.com/services/T0/B0/x", "https://hooks.slack.com/[redacted]"),
        ("post to https://discord.com/api/webhooks/1/a.", "post to https://discord.com/[redacted]"),
        ("https://api.telegram.org/bot12:ab/sendMessage", "https://api.telegram.org/[redacted]"),
        ("https://x.webhook.office.com/webhookb2/a@b/c", "https://x.webhook.office.com/[redacted]"),
        ("Server=tcp:x;User ID=z;Password=hunter22;", "Server=tcp:x;User ID=z;Password=[redacted];"),
        ("host=h password=hunter22 dbname=x", "host=h password=[redacted] dbname=x"),
        ("AccountName=a;AccountKey=ab+/cd==;E=x", "AccountName=a;AccountKey=[redacted];E=x"),
        # What only looks alike stays.
        ("https://github.com/org/webhook-tool", "https://github.com/org/webhook-tool"),
        ("http://localhost:8080/models@main", "http://localhost:8080/models@main"),
        ("task-management-of-many-words", "task-management-of-many-words"),
        ("hf_dataset of /data/hf_hub", "hf_dataset of /data/hf_hub"),
        ("https://host:8080/x", "https://host:8080/x"),
        ("cc61b1cc41d1ee9f9d8a87a5ae4a3e3b9ed93a6d", "cc61b1cc41d1ee9f9d8a87a5ae4a3e3b9ed93a6d"),
    ],
)
def test_tokens_of_a_known_shape(text: str, clean: str) -> None:
    assert redacted(text, {}) == clean
    assert (secret_in(text, {}) is None) == (text == clean)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("password: hunter22", "password: [redacted]"),
        ("{'Authorization': 'Bearer abcdefghijklmnop'}", "{'Authorization': '[redacted]'}"),
        ("Cookie: session=abcdef; a=b\nnext", "Cookie: [redacted]\nnext"),
        ("sent bearer abcdefghijklmnop", "sent bearer [redacted]"),
    ],
)
def test_what_programs_say_of_secrets(text: str, clean: str) -> None:
    """In their errors; a recipe's prompt may say "password: ..." all the same, and an answer too."""
    assert redacted(text, {}) == clean
    assert redacted(text, {}, prose=True) == text
    assert secret_in(text, {}) is None


@pytest.mark.parametrize(
    "name",
    ["PGPASSWORD", "MYSQL_PWD", "HFTOKEN", "my_tokens", "SESSION_COOKIE", "COOKIES", "AZURE_STORAGE_CONNECTION_STRING",
     "SENTRY_DSN", "SLACK_WEBHOOK_URL", "OPENAI_APIKEY", "DJANGO_SECRET_KEY", "GH_PAT", "RestToken"],
)  # fmt: skip
def test_variables_that_hold_a_secret(name: str) -> None:
    """Of these, 0.1 knew the secret key, the last but one, and the one with an underscore before its TOKENS."""
    assert redacted("it is shown-to-nobody.", {name: "shown-to-nobody"}) == "it is [redacted]."


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "PWD", "KEYBOARD", "AUTHOR", "TOKEN_FILE", "COMPASS"])
def test_variables_that_hold_none(name: str) -> None:
    assert redacted("it is shown-to-everybody.", {name: "shown-to-everybody"}) == "it is shown-to-everybody."


def test_a_password_in_the_address_of_a_variable() -> None:
    environment = {"DATABASE_URL": "postgres://me:cor%40rect-horse@host/db"}
    assert redacted("login cor@rect-horse, or cor%40rect-horse", environment) == "login [redacted], or [redacted]"


@pytest.mark.parametrize("write", [repr, json.dumps])
def test_a_secret_that_is_written_otherwise(write: Callable[[str], str]) -> None:
    secret = "back\\slash and \n a line"
    assert "slash" not in redacted(f"failed with {write(secret)}", {"A_TOKEN": secret})


def test_values_of_the_environment(tmp_path: Path) -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": AWS,
        "DB_PASSWORD": "correct horse\nbattery staple of a long line",
        "SHORT_TOKEN": "abc",
        "PWD": "/work/somewhere",
        "TOKENIZERS_PARALLELISM": "somewhere",
        "KEY_FILE": "somewhere",
        "GOOGLE_CREDENTIALS": str(tmp_path),
    }
    text = f"{AWS} wJalrXUtnFEMI%2FK7MDENG%2BbPxRfiCY abc /work/somewhere {tmp_path}"
    assert redacted(text, environment) == f"[redacted] [redacted] abc /work/somewhere {tmp_path}"
    assert redacted("the line: battery staple of a long line.", environment) == "the line: [redacted]."
    assert secret_in(f"x{AWS}", environment) == "the value of the environment variable AWS_SECRET_ACCESS_KEY"
    values = {"a": [AWS, 7, None], "b": {"c": f"in {AWS}"}}
    assert redacted_values(values, environment) == {"a": ["[redacted]", 7, None], "b": {"c": "in [redacted]"}}


@pytest.mark.parametrize(
    ("override", "key", "what"),
    [
        (f'revision = "{HF}"', "revision", "a Hugging Face token"),
        (f'id = "org/{AWS}"', "id", "the value of the environment variable AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_recipe_with_a_secret_is_refused_without_telling_it(
    override: str, key: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", AWS)
    text = write_light(tmp_path / "light").read_text(encoding="utf-8")
    recipe = tmp_path / "light" / "secret.toml"
    new = f"[model]\n{override}\n"
    recipe.write_text(text.replace("[model]\n", new), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe, open_registry())
    assert f'"{key}" holds {what}. A recipe is saved with its run. ' in str(caught.value)
    assert HF not in str(caught.value)
    assert AWS not in str(caught.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory, of a process with secrets in its environment and on its command line."""
    from fitune.testing import write_recipe

    home = tmp_path_factory.mktemp("secret")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("HF_TOKEN", HF)
        patch.setenv("AWS_SECRET_ACCESS_KEY", AWS)
        patch.setattr("sys.argv", ["ft", "run", "recipe.toml", "--set", f"model.token={HF}", f"--key={AWS}"])
        train(write_recipe(home / "recipe"), home / "run", "train.steps=2", "checkpoint.steps=1")
    return home / "run"


def test_nothing_that_a_run_saves_holds_a_secret(run: Path) -> None:
    files = [file for file in run.rglob("*") if file.is_file()]
    assert {"environment.json", "recipe.toml", "identity.json", "metrics.jsonl"} <= {file.name for file in files}
    for file in files:
        content = file.read_bytes()
        assert HF.encode() not in content, file
        assert AWS.encode() not in content, file
    command = json.loads((run / "environment.json").read_text(encoding="utf-8"))["command"]
    assert command == ["run", "recipe.toml", "--set", "model.token=[redacted]", "--key=[redacted]"]


def test_what_ran_out_of_memory_is_kept_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "not-of-a-known-shape")
    try:
        raise RuntimeError("CUDA out of memory, said not-of-a-known-shape")
    except RuntimeError as error:
        log(error, tmp_path)
    text = (tmp_path / "error.txt").read_text(encoding="utf-8")
    assert "CUDA out of memory, said [redacted]" in text


def test_no_secret_in_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    from fitune.runs.metrics import MetricsFile

    monkeypatch.setenv("HF_TOKEN", "not-of-a-known-shape")
    written: list[object] = []
    file = MetricsFile()
    monkeypatch.setattr(file, "_write", written.append)
    file.ft_noticed(Notice(step=3, kind="not saved", what="https://x/not-of-a-known-shape"))
    assert written == [{"event": "notice", "step": 3, "kind": "not saved", "what": "https://x/[redacted]"}]
