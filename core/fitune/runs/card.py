"""The model card (README.md) of what was trained: what it came from, what came of it, how to use it.

Made from the files of a run alone. It may be published: a path of this machine is given by its last part, and an
address without the name and the password in it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fitune.errors import one_line, visible
from fitune.plugin.paths import located
from fitune.plugin.units import gib
from fitune.recipe.renamed import place_of_run
from fitune.recipe.secrets import redacted_values
from fitune.runs.atomic import write_file
from fitune.runs.layout import ENVIRONMENT, MANIFEST, MEMORY, RECIPE, read_json, read_toml
from fitune.runs.lines import readable_metrics

CARD = "README.md"

GROW = """\
rows = base.get_input_embeddings().num_embeddings
if len(tokenizer) > rows:
    base.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=math.gcd(rows, 64))
"""
"""What a base needs whose adapter has the rows of more tokens, as `fitune.compose.tokens` has made them."""

MARKS = re.compile(r"[\\`*_{}\[\]<>()#!|~&$^]|(?<=:)//|(?<=www)\.|@")
"""Characters that mean something in Markdown, and the beginnings of what becomes a link by itself."""

Values = dict[str, Any]


def write_card(
    directory: Path, target: Path, *, name: str | None = None, parity: Sequence[str] = (), file: str | None = None
) -> None:
    """Write the card of a run's model into the directory that holds it.

    `name` is what that directory will be called; `parity` what was compared of a merged model, in lines; `file` the
    GGUF file that it is in, if it is. A file of the run that is missing leaves its lines out; nothing that is wrong
    here raises: the model is worth more than its card.
    """
    with contextlib.suppress(Exception):
        facts = _Facts(directory, target)
        text = "\n".join([_head(facts, file), *_body(facts, name or target.name, parity, file)])
        write_file(target / CARD, text.rstrip("\n") + "\n")


class _Facts:
    """What a run's files tell."""

    def __init__(self, directory: Path, target: Path) -> None:
        recipe = read_toml(directory / RECIPE)
        self.recipe: Values = redacted_values(published(recipe))
        self.environment = read_json(directory / ENVIRONMENT)
        self.memory = read_json(directory / MEMORY)
        self.metrics = readable_metrics(directory)
        self.saved = read_json(target / MANIFEST).get("step")
        self.is_adapter = (target / "adapter_config.json").is_file()
        self.gives_scores = gives_scores(target)
        self.license = _license(recipe.get("model"), self.environment.get("model_commit"), directory)

    def _table(self, name: str) -> Values:
        table = self.recipe.get(name)
        return table if isinstance(table, dict) else {}

    @property
    def base(self) -> str:
        """What the base model is called."""
        model = self._table("model")
        return str(model.get("path") or model.get("id") or model.get("package") or model.get("use") or "unknown")

    @property
    def hub_id(self) -> str | None:
        """Its name on the hub, if it came from there."""
        model = self._table("model")
        found = None if model.get("path") else model.get("id")
        return found if isinstance(found, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", found) else None

    @property
    def adds_tokens(self) -> bool:
        """Whether the base must have rows for more tokens before the adapter is put on it."""
        model = self._table("model")
        return any(model.get(key) for key in ("add_tokens", "add_special_tokens"))

    def of(self, event: str) -> list[Values]:
        """Lines of the metrics of one kind."""
        return self.metrics.of(event)

    def sources(self, table: str) -> list[Values]:
        """The sources of `data` or `eval`."""
        found = self._table(table).get("source")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def gives_scores(directory: Path) -> bool:
    """Whether a directory holds a model of transformers that gives a text a score, or an adapter of one."""
    if read_json(directory / "adapter_config.json").get("task_type") == "SEQ_CLS":
        return True
    named = read_json(directory / "config.json").get("architectures")
    return isinstance(named, list) and any("ForSequenceClassification" in str(one) for one in named)


def _head(facts: _Facts, file: str | None) -> str:
    """What the hub reads of a card: a YAML head."""
    from huggingface_hub import ModelCardData

    adapter = facts.recipe.get("adapter")
    kind = adapter.get("use") if isinstance(adapter, dict) else None
    data = ModelCardData(
        base_model=facts.hub_id,
        library_name="gguf" if file else "peft" if facts.is_adapter else "transformers",
        license=facts.license,
        pipeline_tag="text-classification" if facts.gives_scores else "text-generation",
        datasets=sorted({one["id"] for one in facts.sources("data") if isinstance(one.get("id"), str)}) or None,
        tags=["fitune", *([kind] if isinstance(kind, str) and kind != "none" else [])],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _body(facts: _Facts, name: str, parity: Sequence[str], file: str | None) -> Iterator[str]:
    commit, version = facts.environment.get("model_commit"), facts.environment.get("fitune", "")
    what = "An adapter of" if facts.is_adapter else "A model merged from" if parity else "A fine-tuned"
    at = f" (commit {code(commit)})" if commit else ""
    licensed = f" Its license: {text(facts.license)}." if facts.license else ""
    yield f"# {text(facts.recipe.get('name', name))}\n"
    yield f"{what} {code(facts.base)}{at}, trained by fitune {text(version)}.{licensed}\n".replace("  ", " ")
    yield from _use(facts, name, file)
    yield from _data(facts)
    yield from _results(facts)
    yield from _memory(facts.memory)
    if parity:
        yield "## Parity of the merged model\n"
        yield block("text", "\n".join(parity) + "\n") + "\n"
    packages = facts.environment.get("packages")
    if isinstance(packages, dict):
        found = {"python": facts.environment.get("python"), **packages}
        yield "## Versions\n"
        yield ", ".join(f"{text(package)} {text(number)}" for package, number in found.items() if number) + "\n"
    if facts.recipe:
        yield "## Recipe\n"
        yield block("toml", tomli_w.dumps(facts.recipe))


def _use(facts: _Facts, name: str, file: str | None) -> Iterator[str]:
    if file is not None:
        yield "## Use\n"
        yield block("console", f"$ llama-cli -m {file} --jinja\n") + "\n"
        yield f"llama.cpp, and what is built on it, reads {code(file)}: weights, tokenizer and chat template.\n"
        return
    kind = "AutoModelForSequenceClassification" if facts.gives_scores else "AutoModelForCausalLM"
    load = "import math\n\n" if facts.is_adapter and facts.adds_tokens else ""
    load += f"from transformers import {kind}, AutoTokenizer\n\n"
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
    if facts.is_adapter:
        load += "from peft import PeftModel\n\n"
        more = ", num_labels=1, pad_token_id=tokenizer.pad_token_id" if facts.gives_scores else ""
        added = facts.adds_tokens
        load += f"{tokenizer if more or added else ''}base = {kind}.from_pretrained({json.dumps(facts.base)}{more})\n"
        load += GROW if added else ""
        load += f"model = PeftModel.from_pretrained(base, {json.dumps(name)})\n"
    else:
        load += f'model = {kind}.from_pretrained("{name}")\n'
    load += "" if tokenizer in load else tokenizer
    if facts.gives_scores:
        load += "score = model(**tokenizer(text, return_tensors='pt', add_special_tokens=False)).logits\n"
    yield "## Use\n"
    yield block("python", load) + "\n"
    if facts.gives_scores:
        yield "Of a text in the chat template; the higher, the better the answer at its end. "
        yield "Or, on pairs, with the run's directory: `ft eval RUN --data FILE`.\n"
    else:
        yield "Or, with the run's directory: `ft generate RUN --prompt TEXT`.\n"


def _data(facts: _Facts) -> Iterator[str]:
    lines = [f"- {_source(one)}" for one in facts.sources("data")]
    lines += [f"- held out: {_source(one)}" for one in facts.sources("eval")]
    steps, evaluations = facts.of("step"), facts.of("evaluation")
    if steps:
        last = steps[-1]
        passes = f", {last['epoch']:g} passes over the data" if isinstance(last.get("epoch"), int | float) else ""
        lines.append(f"- {last.get('step')} steps{passes}")
        if isinstance(facts.saved, int) and facts.saved != last.get("step"):
            lines.append(f"- what is here was trained in {facts.saved} of them: the best of the evaluations")
    if evaluations:
        rows, targets = evaluations[-1].get("rows"), evaluations[-1].get("target_tokens")
        lines.append(f"- {rows} held-out rows, {targets} tokens that a loss is taken over")
    if lines:
        yield "## Data\n"
        yield "\n".join(lines) + "\n"


def _source(table: Values) -> str:
    shown = {key: value for key, value in table.items() if key != "use"}
    said = (f"{text(key)} {code(value)}" for key, value in shown.items() if value is not None)
    return f"{code(table.get('use'))} " + ", ".join(said)


def _results(facts: _Facts) -> Iterator[str]:
    rows = []
    for what, lines, key in (
        ("training loss", facts.of("step"), "loss"),
        ("held-out loss", facts.of("evaluation"), "loss"),
        ("held-out exact match", facts.of("evaluation"), "exact_match"),
    ):
        found = [line for line in lines if isinstance(line.get(key), int | float)]
        if found:
            first, last = found[0], next((line for line in found if line.get("step") == facts.saved), found[-1])
            rows.append(f"| {what} | {first[key]:.4f} (step {first['step']}) | {last[key]:.4f} (step {last['step']}) |")
    if rows:
        yield "## Results, measured\n"
        yield "\n".join(["| | first | last |", "|---|---|---|", *rows]) + "\n"


def _memory(memory: Values) -> Iterator[str]:
    forecast, measured = memory.get("forecast"), memory.get("measured")
    if not isinstance(forecast, dict) or not isinstance(measured, dict) or forecast.get("error"):
        return
    yield f"## Memory on {text(forecast.get('card'))}\n"
    rows = (
        f"| {key} | {gib(forecast[key], 3)} | {gib(measured[key], 3)} |" for key in ("allocated", "reserved", "context")
    )
    yield "\n".join(["| | forecast | measured |", "|---|---|---|", *rows]) + "\n"


def text(value: object) -> str:
    """A value as plain text of Markdown, in one line: nothing in it is a mark, a link, an image or HTML."""
    return MARKS.sub(r"\\\g<0>", one_line(str(value)))


def code(value: object) -> str:
    """A value as code in a line, between more backticks than it has itself; nothing in it is a mark."""
    said = one_line(str(value))
    ticks = "`" * (1 + max(map(len, re.findall("`+", said)), default=0))
    edge = " " if not said or "`" in (said[0], said[-1]) else ""
    return f"{ticks}{edge}{said or ' '}{edge}{ticks}"


def block(language: str, lines: str) -> str:
    """Lines as a block of code, with more backticks around it than it has itself. Ends without a line's end."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return f"{ticks}{language}\n{visible(lines)}{ticks}"


def published(value: Any) -> Any:
    """A value of a recipe as others may see it."""
    if isinstance(value, Mapping):
        return {key: published(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [published(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        return re.sub(r"://[^/@\s]*@", "://", value)
    place = re.match(r"(/|~|\.\.[\\/]|[A-Za-z]:[\\/])", value)
    return re.split(r"[\\/]", value.rstrip("\\/"))[-1] if place else value


def _license(model: Any, commit: object, directory: Path) -> str | None:
    """The base model's license, by its own card, if that is on this machine."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    with contextlib.suppress(Exception):  # a card is what anybody wrote
        if isinstance(model.get("path"), str):
            was = place_of_run(directory / RECIPE)
            file: object = located(directory.resolve(), Path(model["path"]), was) / CARD
        else:
            revision = commit if isinstance(commit, str) else None
            file = try_to_load_from_cache(str(model["id"]), CARD, revision=revision)
        found = (
            ModelCard.load(str(file)).data.license if isinstance(file, str | Path) and Path(file).is_file() else None
        )
        return found if isinstance(found, str) else None
    return None
