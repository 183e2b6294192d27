"""Cases of `against_first.py` for items 1 to 4: code, bytes, records and places."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from against_first_given import ENDED, ERROR, Cases, Given

CASES = Cases()
PLUGIN = """\
from pathlib import Path
from fitune import hookimpl

Path("MARK").touch()


@hookimpl
def ft_commands(cli): pass
"""
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")


def plugin(given: Given) -> tuple[Path, Path]:
    """A project whose plugin leaves a mark as it is imported; gives the recipe and the mark."""
    mark = given.home / "mark"
    recipe = given.project({"plugins": ["own.py"]})
    (recipe.parent / "own.py").write_text(PLUGIN.replace("MARK", str(mark)), encoding="utf-8")
    return recipe, mark


def flip(file: Path, at: int = -3) -> None:
    """Turn one bit of a file."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(bytes(content))


def place_of_tokens(rows: Path) -> int:
    """Where the tokens begin in a file of prepared rows, which Arrow keeps as they are in memory."""
    import pyarrow as pa

    batch = pa.ipc.open_file(pa.memory_map(str(rows))).get_batch(0)
    tokens = batch.column("input_ids").values.to_numpy()[:16].tobytes()
    return rows.read_bytes().index(tokens)


def weights(run: Path) -> bytes:
    """The adapter of a run."""
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def git(given: Given, setting: str, attributes: str = "") -> str | None:
    """A recipe in a repository whose configuration names a program."""
    recipe, mark = given.project(), given.home / "mark"
    program = given.home / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n", encoding="utf-8")
    program.chmod(0o755)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*GIT, *words], cwd=recipe.parent, check=True, capture_output=True)
    if attributes:
        (recipe.parent / ".gitattributes").write_text(attributes, encoding="utf-8")
    os.utime(recipe, (1, 1))  # so that git looks at what is in it
    subprocess.run(["git", "config", setting, str(program)], cwd=recipe.parent, check=True)
    wrong = given.ft("run", recipe, "--out", "run").wrong(ENDED)
    return "the repository's program was run" if mark.exists() else wrong


CASES.of(1, "a recipe in a repository whose .git/config names core.fsmonitor")(
    lambda given: git(given, "core.fsmonitor")
)
CASES.of(1, "a recipe in a repository whose .git/config names a filter")(
    lambda given: git(given, "filter.x.clean", "* filter=x\n")
)


@CASES.of(1, "attn_implementation as a table that names a kernel of the hub")
def kernel_table(given: Given) -> str | None:
    recipe = given.project()
    file = recipe.parent / "model" / "config.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**said, "attn_implementation": {"": "somebody/kernel"}}), encoding="utf-8")
    ended = given.ft("run", recipe, "--out", "run")
    refused = "code of the hub" in ended.err
    return ended.wrong(ERROR) or (None if refused else f"it was to be loaded: {ended.err.splitlines()[-1][:160]}")


@CASES.of(1, "ft check of a recipe with a plugin that nobody has seen, in a pipe")
def unknown_plugin(given: Given) -> str | None:
    recipe, mark = plugin(given)
    ended = given.ft("check", recipe)
    return "its code was run unasked" if mark.exists() else ended.wrong(ERROR)


@CASES.of(1, "ft generate from a run directory of somebody else with a plugin")
def plugin_of_a_run(given: Given) -> str | None:
    recipe, mark = plugin(given)
    if wrong := given.ft("run", recipe, "--out", "run", env={"FT_ALLOW_PLUGINS": "1"}).wrong(ENDED):
        return wrong
    mark.unlink()
    ended = given.ft("generate", "run", "--prompt", "Count", "--max-new-tokens", "2")
    return "its code was run unasked" if mark.exists() else ended.wrong(ERROR)


def prepared(given: Given, spoil: str) -> str | None:
    """Spoil prepared rows between two equal runs."""
    recipe, cache = given.project(), given.home / "cache"
    env = {"FT_CACHE": str(cache)}
    if wrong := given.ft("run", recipe, "--out", "first", env=env).wrong(ENDED):
        return wrong
    rows = next(cache.rglob("rows.arrow"))
    if spoil == "a bit":
        flip(rows, place_of_tokens(rows) + 12)  # of the fourth token
    elif spoil == "cut":
        os.truncate(rows, rows.stat().st_size // 2)
    else:
        other = given.project(name="other")
        data = other.parent / "data.jsonl"
        data.write_text(data.read_text(encoding="utf-8").replace("Count", "Wreck"), encoding="utf-8")
        given.ft("run", other, "--out", "poison", env={"FT_CACHE": str(given.home / "another")})
        poisoned = next((given.home / "another").rglob("rows.arrow")).parent
        shutil.rmtree(rows.parent)
        shutil.copytree(poisoned, rows.parent)
    wrong = given.ft("run", recipe, "--out", "second", env=env).wrong(ENDED)
    if wrong:
        return wrong
    same = weights(given.home / "first") == weights(given.home / "second")
    return None if same else "another adapter was trained in silence"


CASES.of(2, "one bit of prepared rows is turned")(lambda given: prepared(given, "a bit"))
CASES.of(2, "prepared rows are cut in half")(lambda given: prepared(given, "cut"))
CASES.of(2, "a whole entry of other rows lies in a shared cache in the place of one's own")(
    lambda given: prepared(given, "poison")
)


@CASES.of(2, "one bit of a final adapter is turned, then ft generate")
def adapter_bit(given: Given) -> str | None:
    run = given.finished()
    flip(run / "adapter" / "adapter_model.safetensors")
    wrong = given.ft("generate", run, "--prompt", "Count", "--max-new-tokens", "2").wrong(ERROR)
    return wrong and f"it was not noticed ({wrong})"


@CASES.of(2, "lora_alpha of a final adapter's config is another, then ft merge")
def adapter_config(given: Given) -> str | None:
    run = given.finished()
    file = run / "adapter" / "adapter_config.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**said, "lora_alpha": 3 * said["lora_alpha"]}), encoding="utf-8")
    wrong = given.ft("merge", run, "--to", "merged").wrong(ERROR)
    return wrong and f"it was not noticed ({wrong})"


@CASES.of(2, "an adapter/ without weights is not done")
def without_weights(given: Given) -> str | None:
    run = given.finished()
    (run / "adapter" / "adapter_model.safetensors").unlink()
    wrong = given.ft("run", run).wrong(ENDED)
    return wrong or (None if (run / "adapter" / "adapter_model.safetensors").exists() else "it was taken for done")


@CASES.of(2, "a missing line of metrics is put back by a run that goes on")
def missing_line(given: Given) -> str | None:
    run = given.finished()
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not re.search(r'"step": 2\b', line)), encoding="utf-8")
    shutil.rmtree(run / "adapter")
    wrong = given.ft("run", run).wrong(ENDED)
    there = re.search(r'"step": 2\b', file.read_text(encoding="utf-8"))
    return wrong or (None if there else "it is missing still")


def runs(given: Given, spoil: str) -> str | None:
    """A bad record beside a good one."""
    home = given.home / "runs"
    good = given.finished("runs/good")
    bad = home / "bad" if spoil != "name" else Path(os.fsdecode(os.fsencode(home) + b"/bad-\xff"))
    shutil.copytree(good, bad)
    record = bad / "run.json"
    texts = {
        "NaN": re.sub(r'"seconds": [\d.]+', '"seconds": NaN', record.read_text(encoding="utf-8")),
        "deep": '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "surrogate": json.dumps({**json.loads(record.read_text(encoding="utf-8")), "name": "\ud800"}),
        "integer": '{"schema": 1, "steps_made": ' + "9" * 5000 + "}",
    }
    if spoil in texts:
        record.write_text(texts[spoil], encoding="utf-8")
    elif spoil == "pipe":
        record.unlink()
        os.mkfifo(record)
    elif spoil == "device":
        record.unlink()
        record.symlink_to("/dev/zero")
    elif spoil == "directory":
        (bad / "metrics.jsonl").unlink()
        (bad / "metrics.jsonl").mkdir()
    limits = ["prlimit", f"--as={8 << 30}"] if spoil == "device" and shutil.which("prlimit") else []
    given.words = (*limits, *given.words)
    ended = given.ft("runs", home, limit=60)
    return ended.wrong(ENDED) or (None if "good" in ended.out else "the good run is not listed")


RECORDS = {
    "NaN": "NaN",
    "deep": "lists 100,000 deep",
    "surrogate": "a lone surrogate",
    "integer": "an integer of 5,000 digits",
    "pipe": "a pipe in its place",
    "device": "/dev/zero in its place",
    "directory": "a directory in place of its metrics",
    "name": "a name that is no UTF-8",
}
for spoil, what in RECORDS.items():
    CASES.of(3, f"ft runs beside a record with {what}")(lambda given, spoil=spoil: runs(given, spoil))  # type: ignore[misc]


@CASES.of(3, "ft run of a directory whose identity.json is a pipe")
def pipe_of_a_run(given: Given) -> str | None:
    run = given.finished()
    (run / "identity.json").unlink()
    os.mkfifo(run / "identity.json")
    return given.ft("run", run, limit=90).wrong(ERROR)


@CASES.of(4, "links planted under the names of temporary files")
def planted(given: Given) -> str | None:
    recipe, victim, run = given.project(), given.home / "victim", given.home / "run"
    victim.write_text("precious", encoding="utf-8")
    run.mkdir()
    for name in ("recipe.toml", "identity.json", "run.json", "environment.json"):
        (run / f".{name}.partial").symlink_to(victim)
    ended = given.ft("run", recipe, "--out", run)
    same = victim.read_text(encoding="utf-8") == "precious"
    return ended.wrong(ENDED, ERROR) if same else "a file outside of the run was written"


@CASES.of(4, "a link in place of metrics.jsonl of a run that goes on")
def linked_metrics(given: Given) -> str | None:
    run, victim = given.finished(), given.home / "victim"
    (run / "metrics.jsonl").rename(victim)
    before = victim.read_bytes()
    (run / "metrics.jsonl").symlink_to(victim)
    shutil.rmtree(run / "adapter")
    ended = given.ft("run", run, "--set", "train.steps=5", "--allow-changed", "train.steps")
    return ended.wrong(ENDED, ERROR) if victim.read_bytes() == before else "a file outside of the run was written"


@CASES.of(4, "a link in place of the checkpoints of a run that goes on")
def linked_checkpoints(given: Given) -> str | None:
    run, outside = given.finished(), given.home / "outside"
    (run / "checkpoints").rename(outside)
    before = sorted(place.name for place in outside.iterdir())
    (run / "checkpoints").symlink_to(outside)
    shutil.rmtree(run / "adapter")
    ended = given.ft("run", run, "--set", "train.steps=5", "--allow-changed", "train.steps")
    after = sorted(place.name for place in outside.iterdir())
    return ended.wrong(ENDED, ERROR) if after == before else "files outside of the run were written"
