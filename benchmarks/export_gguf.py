"""The quickstart's run out as GGUF, loaded again, beside the run itself: parity and exact answers on held-out notes.

    ft run recipes/quickstart.toml --out runs/quickstart
    pip install llama-cpp-python
    python benchmarks/export_gguf.py runs/quickstart --out benchmarks/export_gguf.json

Each type is exported as `ft export` does it, with its limits, and read again by transformers in float32. Then base, run
and file answer the same held-out notes in the same way. Parity is of logits; the limit of q8_0 in
`fitune.trained.export.gguf` comes from its relative difference here. llama.cpp itself answers the notes too, from the
file alone: by the chat template and up to the end of turn that are in it, taking the likeliest token.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoTokenizer

from fitune.plugin.events import EvalReport
from fitune.plugin.registry import Registry
from fitune.trained import evaluate as evaluating
from fitune.trained.evaluate import find_to_evaluate, steps_of
from fitune.trained.export.gguf import Gguf, Type
from fitune.trained.export.gguf_read import opened as read_again
from fitune.trained.merge import Merge, merge
from fitune.trained.open import Opened, Trained, open_run

HELD_OUT = Path(__file__).parent.parent / "recipes" / "quickstart" / "held_out.jsonl"

PACKAGES = ("torch", "transformers", "gguf", "peft", "llama-cpp-python")

LONGEST = 36
"""Tokens of an answer, at most: the recipe's own `[eval] max_new_tokens`."""

TYPES: tuple[Type, ...] = ("f16", "q8_0")


def main() -> None:
    """Export, read again, answer, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=120, help="Held-out notes that are answered.")
    parser.add_argument("--compared", type=int, default=16, help="Of these, those whose logits are compared.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        rows = Path(made) / "rows.jsonl"
        with HELD_OUT.open(encoding="utf-8") as lines:
            rows.write_text("".join(islice(lines, arguments.rows)), encoding="utf-8")
        overrides = [f"eval.micro_batch={min(60, arguments.rows)}"]
        trained = find_to_evaluate(arguments.run, Registry.open(third_party=False), None, overrides, rows)
        run = evaluated(trained)
        answers = {"run": figures(run), "base": figures(evaluated(trained, base=True))}
        types = {}
        for kind in TYPES:
            types[kind] = exported(trained, kind, Path(made) / kind, arguments.compared)
            file = next((Path(made) / kind).glob("*.gguf"))
            types[kind]["llama_cpp"] = by_llama_cpp(file, rows, trained, [one.generated for one in run.answers])
    found = {
        "what": __doc__.splitlines()[0] if __doc__ else "",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": f"python benchmarks/export_gguf.py RUN --rows {arguments.rows} --compared {arguments.compared}",
        "steps": steps_of(trained),
        "rows": arguments.rows,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "answers": answers,
        "types": types,
    }
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def evaluated(trained: Trained, *, base: bool = False, model: Any = None) -> EvalReport:
    """Answers of the run, of its base, or of another model in its place."""

    def instead(asked: Trained, *, base: bool = False) -> Opened:
        opened = open_run(asked, base=base)
        return opened if model is None else replace(opened, model=model)

    with mock.patch.object(evaluating, "open_run", instead):
        return evaluating.evaluate(trained, base=base)


def figures(report: EvalReport) -> dict[str, Any]:
    """Of answers that transformers has written."""
    found = {"exact_match": report.exact_match, "rows": report.rows, "seconds": round(report.seconds, 1)}
    print(json.dumps(found), flush=True)
    return found


def by_llama_cpp(file: Path, rows: Path, trained: Trained, answers: list[str]) -> dict[str, Any]:
    """What llama.cpp makes of a file: the prompts' tokens beside the run's own tokenizer's, and its answers beside the
    run's. The file alone tells it the chat template, and what ends an answer.
    """
    from llama_cpp import Llama

    start = time.perf_counter()
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    model: Any = Llama(str(file), n_ctx=512, seed=0, n_threads=threads, verbose=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(trained.weights)
    conversations = [json.loads(line)["messages"] for line in rows.read_text(encoding="utf-8").splitlines()]
    tokens, exact, same, ended = 0, 0, 0, 0
    for messages, answer in zip(conversations, answers, strict=True):
        asked, expected = messages[:-1], messages[-1]["content"]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        tokens += model.tokenize(text.encode(), add_bos=False, special=True) == tokenizer(text)["input_ids"]
        said = model.create_chat_completion(asked, temperature=0.0, max_tokens=LONGEST)["choices"][0]
        exact += said["message"]["content"] == expected
        same += said["message"]["content"] == answer
        ended += said["finish_reason"] == "stop"
    count = len(answers)
    found = {
        "exact_match": exact / count,
        "same_answer_as_the_run": same / count,
        "ended_by_itself": ended / count,
        "same_tokens_of_the_prompt": tokens / count,
        "rows": count,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(found), flush=True)
    return found


def exported(trained: Trained, kind: Type, to: Path, compared: int) -> dict[str, Any]:
    """Figures of one type."""
    form = Gguf(name="smollm2-quickstart", type=kind)
    begun = time.perf_counter()
    parity = merge(trained, Merge(to=to, dtype=torch.float32, rows=compared, file=True, form=form))
    seconds = time.perf_counter() - begun
    print("\n".join(parity.lines), flush=True)
    model = read_again(to / form.file, torch.device("cpu"))
    shown = {
        name: value if not isinstance(value, float) else float(f"{value:.4g}")
        for name, value in parity.values().items()
        if name not in ("cast_difference", "unrun")
    }
    return {
        "bytes": (to / form.file).stat().st_size,
        "seconds_to_export": round(seconds, 1),
        "parity": shown,
        "answers": figures(evaluated(trained, model=model)),
    }


if __name__ == "__main__":
    main()
