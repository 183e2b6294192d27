"""Secrets, kept out of what a run saves and says: values of the environment that look secret, and well-known tokens.

What cannot be known is not found: a password in a recipe's text that no variable holds and that has no known shape.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from fitune.errors import Problem, visible
from fitune.plugin.hookspecs import hookimpl
from fitune.plugin.recipe import Recipe

REDACTED = "[redacted]"
"""What stands in a secret's place."""

SHORTEST = 8
"""Characters of a value below which it is no secret: replaced, it would tear words apart."""

SECRET_WORDS = frozenset({"KEY", "KEYS", "SECRET", "SECRETS", "PASS", "AUTH", "PAT", "PSK", "DSN", "PWD", "JWT"})
"""Words, between underscores, of the name of a variable that holds a secret."""

SECRET_PARTS = re.compile(
    "TOKEN(?!I[SZ])|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|COOKIE|API_?KEY|CONNECTION_?STRING|CONN_?STR|SECRET_?KEY"
)
"""What such a name may hold anywhere, as in PGPASSWORD; but no tokenizer."""

PLAIN_ENDS = ("_FILE", "_PATH", "_DIR", "_SOCK", "_URL", "_URI", "_HOST", "_NAME", "_TYPE", "_MODE", "_VERSION")
"""Ends of the names of variables that say where a secret is, or of which kind."""

PLAIN_NAMES = frozenset({"PWD", "OLDPWD"})
"""Variables that every shell has: directories."""

SHAPES: dict[str, re.Pattern[str]] = {
    name: re.compile(rf"(?<![A-Za-z0-9]){shape}")
    for name, shape in {
        "Hugging Face token": r"hf_[A-Za-z0-9]{16,}",
        "AWS access key": r"(?:AKIA|ASIA)[A-Z0-9]{16}",
        "API key": r"sk-[A-Za-z0-9_-]{20,}",
        "GitHub token": r"(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
        "GitLab token": r"glpat-[A-Za-z0-9_-]{16,}",
        "Slack token": r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
        "Google API key": r"AIza[A-Za-z0-9_-]{35}",
        "npm token": r"npm_[A-Za-z0-9]{20,}",
        "PyPI token": r"pypi-[A-Za-z0-9_-]{16,}",
        "JSON web token": r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
        "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    }.items()
}
"""Tokens that are known by their shape, each by its name."""

USER_INFO = re.compile(
    r"""(?x)(?<=://)(?:
        (?<!http://)(?<!https://)[^/\s:@"'<>]*:[^\s"'<>]{1,64}  # a database's password may hold a slash
        | [^/\s:@"'<>]*:[^/\s"'<>]+  # and any an @: the last one counts
        | [\w.~%+-]{20,}  # a key
    )(?=@)""",
    re.I,
)
"""A user and a password in an address, or a key in their place."""

WEBHOOK = re.compile(
    r"""(?x)(https?://(?:
        [\w-]{0,16}hooks?\.[^/\s"'<>]{1,64}
        | [^/\s"'<>:]{1,64}(?::\d+)?(?=/(?:[^\s"'<>]{0,64}?/)?(?:webhooks?/|webhookb2/|v2/hook/|bot\d+:))
    ))/[^\s"'<>]+""",
    re.I,
)
"""An address that whoever knows it may write to: its path is the secret. Slack's, Discord's, Teams', Telegram's ..."""

SIGNATURE = re.compile(
    r"(?<=[?&])(?:(?:access_|api_?|id_)?(?:token|key)|sig|signature|X-Amz-Signature)=[^&\s\"']{8,}", re.I
)
"""What signs an address, in its query."""

PAIR = re.compile(
    r"""(?x)(?<![\w-])(
        (?:account|(?:shared)?access|api|secret)[ _-]?key | sharedaccesssignature | password | passwd | pwd
        | client[ _-]?secret | (?:access|refresh|auth|api)[ _-]token
    )(["']?\s{0,8}[=:]\s{0,8})("[^"\s]{6,}"|'[^'\s]{6,}'|[^;,\s"'&{}()<>]{6,})""",
    re.I,
)
"""A key and its value, as connection strings and settings have them."""

CONNECTED = re.compile(r"\b(?:host|server|user(?: ?id| ?name)?|uid|endpoint|accountname|dbname|database)\s{0,8}=", re.I)
"""What else a connection string says."""

HEADER = re.compile(
    r"""(?x)(?<![\w-])(
        (?:proxy-)?authorization | (?:set-)?cookie | x-(?:api|auth)-(?:key|token)
    )(["']?\s{0,8}:\s{0,8}["']?)([^\r\n"']{6,})""",
    re.I,
)
"""A header of HTTP that says who asks."""

BEARER = re.compile(r"(?<=bearer )[\w.~+/=-]{12,}", re.I)


def redacted(text: str, environment: Mapping[str, str] = os.environ, *, prose: bool = False) -> str:
    """The text without its secrets. For JSON use `redacted_values`, since a secret may be written otherwise there.

    In `prose`, such as rows and answers, "password: something" stays, which is a secret in what programs say.
    """
    for value in sorted(_spellings(environment), key=len, reverse=True):
        text = text.replace(value, REDACTED)
    for shape in (*SHAPES.values(), USER_INFO, *(() if prose else (BEARER,))):
        text = shape.sub(REDACTED, text)
    text = WEBHOOK.sub(rf"\1/{REDACTED}", text)
    for pair in () if prose else (HEADER, PAIR):
        text = pair.sub(rf"\1\2{REDACTED}", text)
    return SIGNATURE.sub(lambda found: f"{found[0].partition('=')[0]}={REDACTED}", text)


def told(text: str, environment: Mapping[str, str] = os.environ, *, prose: bool = False) -> str:
    """The text as a terminal or a log may have it: without secrets, and without characters that a terminal obeys.

    The one filter of what is printed: rows, names, records, errors of plugins and of libraries all go through it.
    """
    return visible(redacted(text, environment, prose=prose))


def redacted_values(value: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """Plain values, e.g. for JSON, with every text in them redacted; names of keys stay as they are."""
    if isinstance(value, str):
        return redacted(value, environment)
    if isinstance(value, Mapping):
        return {key: redacted_values(inner, environment) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(inner, environment) for inner in value]
    return value


def secret_in(text: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """What secret a text holds, in words: "a Hugging Face token"; None if it is known to hold none."""
    for name, shape in SHAPES.items():
        if shape.search(text):
            return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
    if USER_INFO.search(text):
        return "an address with a password"
    if WEBHOOK.search(text):
        return "the address of a webhook"
    if CONNECTED.search(text) and PAIR.search(text):
        return "a connection string with a password"
    if SIGNATURE.search(text):
        return "an address that is signed"
    for name, value in _of_environment(environment):
        if value in text:
            return f"the value of the environment variable {name}"
    return None


def secrets_in(value: Any, key: str = "", environment: Mapping[str, str] = os.environ) -> Iterator[tuple[str, str]]:
    """Every secret in plain values, as (dotted key, what it is)."""
    if isinstance(value, str):
        if (found := secret_in(value, environment)) is not None:
            yield key, found
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from secrets_in(inner, f"{key}.{name}" if key else str(name), environment)
    elif isinstance(value, Sequence):
        for number, inner in enumerate(value):
            yield from secrets_in(inner, f"{key}.{number}", environment)


def _of_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Variables that hold a secret, by their names, and passwords in the addresses that others hold."""
    for name, value in environment.items():
        if _is_secret(name.upper()) and len(value.strip()) >= SHORTEST and not _is_place(value):
            yield name, value.strip()
        elif (found := USER_INFO.search(value)) is not None:
            password = found[0].partition(":")[2] or found[0]
            yield from ((name, part) for part in (password, unquote(password)) if len(part) >= SHORTEST)


def _is_secret(name: str) -> bool:
    """Whether a variable of this name, in capitals, holds a secret."""
    if "WEBHOOK" in name:
        return True
    if name.endswith(PLAIN_ENDS) or name in PLAIN_NAMES:
        return False
    return SECRET_PARTS.search(name) is not None or not SECRET_WORDS.isdisjoint(name.split("_"))


def _is_place(value: str) -> bool:
    """Whether a value is a path of this machine: of a file with credentials, say."""
    try:
        return value.startswith(("/", "~")) and Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _spellings(environment: Mapping[str, str]) -> set[str]:
    """Secrets of the environment as they may be written: whole, as part of an address, and line by line."""
    found: set[str] = set()
    for _, value in _of_environment(environment):
        found |= {value, quote(value, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1]}
        found |= {line for line in map(str.strip, value.splitlines()) if len(line) >= 2 * SHORTEST}
    return found


@hookimpl
def ft_check(recipe: Recipe) -> Iterable[Problem]:
    """Name every key that holds a secret, and not the secret."""
    for key, what in secrets_in(recipe.to_toml()):
        name = key.rpartition(".")[2]
        fix = (
            "A recipe is saved with its run. Put the secret into the environment, where the libraries look for it, "
            "e.g. HF_TOKEN for the hub"
        )
        yield Problem(key=key, what=f'"{name}" holds {what}', fix=fix)
