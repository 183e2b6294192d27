"""How fast rows become packed, masked tokens: fitune's stages beside TRL's preparation, on the same rows.

    pip install trl
    python benchmarks/data.py --tokenizer DIR --data gsm8k.jsonl --out benchmarks/data.json

DIR holds a tokenizer with a chat template; the data's questions and answers are repeated, each time with another number
behind the question, up to `--rows` rows. Both sides render conversations by the template, train on the answers only,
and pack by best-fit-decreasing into rows of 2048 tokens. Each case is a process of its own; seconds are of the
preparation alone, without imports. "Warm" is a second start on the same data. Peak memory is the process' largest
resident set, also for four times the rows, which a preparation bounded in memory must not need more for.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LENGTH = 2048
CASES = ("fitune cold", "fitune warm", "fitune cold, 4 x rows", "trl cold", "trl cold, 2 processes", "trl warm")


def main() -> None:
    """Run every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines with question and answer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(arguments)))
        return
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for factor in (1, 4):
            write_rows(arguments.data, Path(directory) / f"rows-{factor}.jsonl", factor * arguments.rows)
        for case in CASES:
            child = [sys.executable, __file__, *sys.argv[1:], "--case", case, "--directory", directory]
            done = subprocess.run(child, check=True, text=True, stdout=subprocess.PIPE)
            results.append({"case": case, **json.loads(done.stdout.splitlines()[-1])})
            print(json.dumps(results[-1]), flush=True)
    arguments.out.write_text(json.dumps({**circumstances(arguments), "results": results}, indent=2) + "\n")


def write_rows(data: Path, out: Path, rows: int) -> None:
    """Write so many rows, no two of them equal."""
    problems = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    with out.open("w", encoding="utf-8") as file:
        for row in range(rows):
            problem = problems[row % len(problems)]
            question = f"{problem['question']} ({row // len(problems)})"
            file.write(json.dumps({"question": question, "answer": problem["answer"]}) + "\n")


def run_case(arguments: argparse.Namespace) -> dict[str, Any]:
    """One preparation, timed."""
    factor = 4 if "4 x rows" in arguments.case else 1
    file = arguments.directory / f"rows-{factor}.jsonl"
    prepare = of_fitune if arguments.case.startswith("fitune") else of_trl
    start, counted = prepare(arguments, file)
    begun = time.perf_counter()
    start()
    seconds = time.perf_counter() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    rows = factor * arguments.rows
    tokens, packed = counted()
    return {
        "rows": rows,
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds),
        "tokens_per_second": round(tokens / seconds),
        "packed_rows": packed,
        "packing_efficiency": round(tokens / (packed * LENGTH), 4),
        "peak_memory_mib": memory,
    }


def of_fitune(arguments: argparse.Namespace, file: Path) -> tuple[Callable[[], Any], Callable[[], tuple[int, int]]]:
    """The whole stage chain of a recipe, as `ft run` has it prepared."""
    import tomli_w
    from transformers import AutoTokenizer

    from fitune.data.prepare import context_of, training_data
    from fitune.plugin.registry import Registry
    from fitune.recipe.reader import read_recipe

    os.environ["FT_CACHE"] = str(arguments.directory / "cache")
    recipe = {
        "name": "data",
        "model": {"use": "hf", "path": str(arguments.directory)},
        "adapter": {"use": "lora"},
        "data": {
            "source": [{"use": "jsonl", "path": str(file)}],
            "stage": [
                {"use": "prompt-completion", "prompt": "question", "completion": "answer"},
                {"use": "chat"},
                {"use": "tokenize"},
                {"use": "truncate"},
                {"use": "pack"},
            ],
        },
        "train": {"length": LENGTH},
    }
    (arguments.directory / "config.json").write_text("{}")
    path = arguments.directory / "recipe.toml"
    path.write_text(tomli_w.dumps(recipe))
    read = read_recipe(path, Registry.open(third_party=False))
    context = context_of(read, AutoTokenizer.from_pretrained(arguments.tokenizer))
    made: list[Any] = []

    def counted() -> tuple[int, int]:
        rows = made[0].rows
        return sum(len(row.input_ids) for row in rows), len(rows)

    return lambda: made.append(training_data(read, context)), counted


def of_trl(arguments: argparse.Namespace, file: Path) -> tuple[Callable[[], Any], Callable[[], tuple[int, int]]]:
    """What TRL's SFTTrainer does to its data set before it trains."""
    processes = 2 if "2 processes" in arguments.case else None
    # A cache for each number of processes, or the second cold case would find what the first one made.
    os.environ["HF_DATASETS_CACHE"] = str(arguments.directory / f"hf-{processes}")
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    config = SFTConfig(
        output_dir=str(arguments.directory / "trl"),
        packing=True,
        max_length=LENGTH,
        dataset_num_proc=processes,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    shape = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    shape.vocab_size = len(tokenizer)
    sample = datasets.Dataset.from_list([conversation({"question": "?", "answer": "!"})] * 8)
    trainer = SFTTrainer(model=LlamaForCausalLM(shape), args=config, train_dataset=sample, processing_class=tokenizer)
    made: list[Any] = []

    def start() -> None:
        rows = datasets.load_dataset("json", data_files=str(file), split="train")
        rows = rows.map(conversation, remove_columns=rows.column_names, num_proc=processes)
        made.append(trainer._prepare_dataset(rows, tokenizer, config, True, None, "train"))

    def counted() -> tuple[int, int]:
        return sum(len(row) for row in made[0]["input_ids"]), len(made[0])

    return start, counted


def conversation(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """A row in TRL's format of prompts and completions."""
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


def circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions, date and command."""
    packages = ("fitune", "trl", "transformers", "datasets", "tokenizers", "pyarrow")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/data.py --tokenizer DIR --data gsm8k.jsonl --out FILE",
        "length": LENGTH,
    }


if __name__ == "__main__":
    main()
