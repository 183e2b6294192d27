"""Cases of `against_first.py` for items 5 to 9: what is printed, connections, bounds, places and words."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from against_first_given import ENDED, ERROR, STOPPED, UNREAD, Cases, Ended, Given

CASES = Cases()
OBEYED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys, but for ends of lines."""
CLIPBOARD = "\x1b]52;c;b3duZWQ=\x07"


def clean(ended: Ended, *codes: int) -> str | None:
    """A command that ended so, and printed text alone."""
    odd = OBEYED.search(ended.text.replace("\r", ""))
    return ended.wrong(*codes) or (f"{odd[0]!a} was printed as it is" if odd else None)


def with_row(given: Given, turn: Mapping[str, str]) -> Path:
    recipe = given.project()
    rows = [{"messages": [{"role": "user", "content": "a", **turn}, {"role": "assistant", "content": "b"}]}] * 3
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (recipe.parent / "data.jsonl").write_text(text, encoding="utf-8")
    return recipe


CASES.of(5, "OSC 52 in a row, then ft data")(
    lambda given: clean(given.ft("data", with_row(given, {"content": CLIPBOARD})), ENDED, ERROR)
)
CASES.of(5, "a mark of direction in a row, then ft data")(
    lambda given: clean(given.ft("data", with_row(given, {"content": "\u202eevil"})), ENDED, ERROR)
)


@CASES.of(5, "OSC 52 in a plugin's error")
def plugin_error(given: Given) -> str | None:
    recipe = given.project({"plugins": ["own.py"]})
    (recipe.parent / "own.py").write_text(f"raise ValueError({CLIPBOARD!r})\n", encoding="utf-8")
    return clean(given.ft("check", recipe, env={"FT_ALLOW_PLUGINS": "1"}), ERROR)


@CASES.of(5, "OSC 52 in a template's message")
def template_message(given: Given) -> str | None:
    recipe = given.project()
    template = '{{ raise_exception("' + CLIPBOARD + '") }}'
    (recipe.parent / "model" / "chat_template.jinja").write_text(template, encoding="utf-8")
    return clean(given.ft("data", recipe), ERROR)


@CASES.of(5, "OSC 52 in the name of a run's record, then ft runs")
def record_name(given: Given) -> str | None:
    run = given.finished("runs/one")
    said = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**said, "name": CLIPBOARD, "error": CLIPBOARD}), encoding="utf-8")
    return clean(given.ft("runs", "runs"), ENDED)


@CASES.of(5, "the value of PGPASSWORD in an error, with --debug")
def secret(given: Given) -> str | None:
    secret = "hunter2-hunter2"
    recipe = given.project({"plugins": ["own.py"]})
    (recipe.parent / "own.py").write_text("import os\nraise ValueError(os.environ['PGPASSWORD'])\n", encoding="utf-8")
    ended = given.ft("check", recipe, "--debug", env={"FT_ALLOW_PLUGINS": "1", "PGPASSWORD": secret})
    return "it was printed" if secret in ended.text else None if ended.code == ERROR else ended.wrong(ERROR)


@CASES.of(6, "SIGHUP ends a run with a checkpoint")
def hangup(given: Given) -> str | None:
    recipe = given.project({"train": {"steps": 100_000}})
    process = given.start("run", recipe, "--out", "run", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics, end = given.home / "run" / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") > 2):
        if time.monotonic() > end or process.poll() is not None:
            process.kill()
            return "it did not begin"
        time.sleep(0.2)
    process.send_signal(signal.SIGHUP)
    code = process.wait(240)
    saved = list((given.home / "run").glob("checkpoints/step-*"))
    return None if code == STOPPED and saved else f"exit code {code}, {len(saved)} checkpoint(s)"


def into(given: Given, command: str, *codes: int) -> str | None:
    """A command of a shell, in which `$FT` stands for `ft`."""
    script = command.replace("$FT", " ".join(given.words))
    shell = Given(["bash", "-c", script], given.home, given.base)
    return shell.ft().wrong(*codes)


def run_into(given: Given, to: str) -> str | None:
    recipe = given.project()
    wrong = into(given, f"$FT run {recipe} --out run {to}", ENDED)
    return wrong or (None if (given.home / "run" / "adapter").exists() else "nothing was trained")


CASES.of(6, "ft run with a full standard output")(lambda given: run_into(given, "> /dev/full"))
CASES.of(6, "ft run with a closed standard output")(lambda given: run_into(given, ">&-"))
CASES.of(6, "ft run | head -0")(lambda given: run_into(given, "| (head -0; exec <&-); exit ${PIPESTATUS[0]}"))
CASES.of(6, "ft plan | head, of which nothing is read")(
    lambda given: into(
        given, f"$FT plan {given.project()} --gpu a10g | (exec <&-); exit ${{PIPESTATUS[0]}}", ENDED, UNREAD
    )
)
CASES.of(6, "ft plugins into /dev/full")(lambda given: into(given, "$FT plugins > /dev/full", ERROR))
CASES.of(6, "a working directory that is gone")(
    lambda given: into(given, "mkdir gone; cd gone; rmdir ../gone; $FT runs", ERROR)
)
CASES.of(6, "standard input that is no text, then ft generate")(
    lambda given: given.ft("generate", given.finished(), stdin=b"\xff\xfe\x00\x80").wrong(ERROR)
)


@CASES.of(6, "an ASCII terminal, and a recipe's name that is not ASCII")
def ascii_terminal(given: Given) -> str | None:
    recipe = given.project({"name": "z\u00fcrich"})
    return given.ft("run", recipe, "--out", "run", env={"PYTHONIOENCODING": "ascii"}).wrong(ENDED)


@CASES.of(6, "a disk that is full at the very first file")
def full_disk(given: Given) -> str | None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    return given.ft("run", given.project(), "--out", "run", preexec_fn=limit).wrong(ERROR)


def bounded(given: Given, text: str, command: str = "check", limit: float = 60) -> str | None:
    """A recipe with this at its end or, if it is a table, with these in it."""
    recipe = given.project()
    recipe.write_text(f"{text}\n{recipe.read_text(encoding='utf-8')}", encoding="utf-8")
    return short(given.ft(command, recipe, limit=limit))


def short(ended: Ended) -> str | None:
    """Refused, in few lines of which none is long."""
    longest = max(map(len, ended.err.splitlines()), default=0)
    lines = len(ended.err.splitlines())
    said = f"{lines} lines of at most {longest:,} characters" if longest > 5_000 or lines > 200 else None
    return ended.wrong(ERROR) or said


for what, text in {
    "TOML nested 400 deep": "x = " + "[" * 400 + "]" * 400,
    "a key of 500 parts": ".".join("a" * 500) + " = 1",
    "an integer of 5,000 digits": "x = " + "9" * 5000,
    "30,000 unknown keys": "\n".join(f"key_{number} = 1" for number in range(30_000)),
    "a key of 100,000 characters": "k" * 100_000 + " = 1",
}.items():
    CASES.of(7, f"a recipe with {what}")(lambda given, text=text: bounded(given, text))  # type: ignore[misc]


def set_to(given: Given, *sets: str) -> str | None:
    words = [word for one in sets for word in ("--set", one)]
    return short(given.ft("run", given.project(), "--out", "run", *words, limit=120, preexec_fn=small))


def small() -> None:
    """At most 12 GiB of addresses, so that what is without bounds harms nobody."""
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))


CASES.of(7, "micro_batch = 10^9")(lambda given: set_to(given, "train.micro_batch=1000000000"))
CASES.of(7, "r = 10^6")(lambda given: set_to(given, "adapter.r=100000000"))


@CASES.of(7, "a CSV file with one field of 40 MB")
def wide_field(given: Given) -> str | None:
    recipe = given.project({"data": {"source": [{"use": "csv", "path": "d.csv"}]}})
    (recipe.parent / "d.csv").write_text("prompt,completion\nx," + "y" * 40_000_000 + "\n", encoding="utf-8")
    return short(given.ft("data", recipe, limit=120, preexec_fn=small))


def templated(given: Given, template: str) -> str | None:
    recipe = given.project()
    (recipe.parent / "model" / "chat_template.jinja").write_text(template, encoding="utf-8")
    return short(given.ft("data", recipe, limit=90, preexec_fn=small))


NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
CASES.of(7, "a template with loops in loops")(lambda given: templated(given, NESTED))
CASES.of(7, "a template that calls itself")(
    lambda given: templated(given, "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")
)
CASES.of(7, "a template that repeats a text without end")(lambda given: templated(given, "{{ 'a' * 10000000000 }}"))


@CASES.of(8, "a project that was moved with its run generates, evaluates and goes on")
def moved(given: Given) -> str | None:
    source = {"eval": {"source": [{"use": "jsonl", "path": "data.jsonl"}]}}
    recipe = given.project(source)
    if wrong := given.ft("run", recipe, "--out", recipe.parent / "run").wrong(ENDED):
        return wrong
    run = recipe.parent.rename(given.home / "elsewhere") / "run"
    shutil.rmtree(run / "adapter")
    for words in (["run"], ["eval"], ["generate", "--prompt", "Count", "--max-new-tokens", "2"]):
        if wrong := given.ft(words[0], run, *words[1:]).wrong(ENDED):
            return f"ft {words[0]}: {wrong}"
    return None


@CASES.of(8, "two starts within a second have their own directories")
def within_a_second(given: Given) -> str | None:
    clock = given.home / "clock"
    clock.mkdir()
    # A clock that stands still, for this process alone.
    still = "import time\nkept = time.strftime\ntime.strftime = lambda form, *rest: kept(form, time.gmtime(0))\n"
    (clock / "sitecustomize.py").write_text(still, encoding="utf-8")
    path = f"{clock}:{given.environment.get('PYTHONPATH', '')}"
    recipe = given.project()
    for _ in range(2):
        if wrong := given.ft("run", recipe, env={"PYTHONPATH": path}).wrong(ENDED):
            return wrong
    found = len(list((given.home / "runs").iterdir()))
    return None if found == 2 else f"{found} directories"


@CASES.of(8, "two equal runs give equal files of the adapter")
def equal(given: Given) -> str | None:
    recipe = given.project({"adapter": {"targets": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}})
    for seed in ("1", "2"):
        if wrong := given.ft("run", recipe, "--out", f"run-{seed}", env={"PYTHONHASHSEED": seed}).wrong(ENDED):
            return wrong
    one, other = (given.home / f"run-{seed}" / "adapter" / "adapter_config.json" for seed in ("1", "2"))
    return None if one.read_bytes() == other.read_bytes() else "adapter_config.json differs"


def spoilt(given: Given, strategy: str, change: Callable[[Any], Any], blamed: str) -> str | None:
    """A model with other weights, and a strategy that its error should not name."""
    from safetensors.torch import load_file, save_file

    recipe = given.project({"memory": {"strategy": [{"use": strategy}]}} if strategy != "pack" else PACKED)
    file = recipe.parent / "model" / "model.safetensors"
    tensors = {name: change(tensor) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    ended = given.ft("run", recipe, "--out", "run")
    told = next((line for line in ended.err.splitlines() if line.startswith("error")), "")
    return ended.wrong(ERROR) or (f"it blames {blamed}: {told[:120]}" if blamed in told else None)


PACKED = {
    "data": {
        "source": [{"use": "jsonl", "path": "data.jsonl"}],
        "stage": [{"use": "chat"}, {"use": "tokenize"}, {"use": "pack"}],
    }
}
CASES.of(9, "weights that are no numbers, with chunked-loss")(
    lambda given: spoilt(given, "chunked-loss", lambda tensor: tensor * float("nan"), "chunked-loss")
)
CASES.of(9, "weights that are all zeros, with pack")(
    lambda given: spoilt(given, "pack", lambda tensor: tensor * 0, "pack")
)


@CASES.of(9, "ft plan --fit with a target that the model has not")
def wrong_target(given: Given) -> str | None:
    recipe = given.project({"adapter": {"targets": ["nonsense_proj"]}})
    ended = given.ft("plan", recipe, "--fit", "--gpu", "a10g")
    named = "nonsense_proj" in ended.err and "no composition" not in ended.err
    return ended.wrong(ERROR) or (None if named else f"it says: {ended.err[:120]}")


@CASES.of(9, "adapter.r is another in a run that goes on")
def other_rank(given: Given) -> str | None:
    run = given.finished()
    shutil.rmtree(run / "adapter")
    ended = given.ft("run", run, "--set", "adapter.r=6", "--allow-changed", "adapter.r")
    odd = re.search(r"(\d+) tensors there, \1 here", ended.err)
    return ended.wrong(ERROR) or (f"it says: {odd[0]}" if odd else None)
