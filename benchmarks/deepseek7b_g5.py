"""Memory and speed of `recipes/deepseek7b_g5.toml` on a card made as small as a g5's A10G.

    python benchmarks/deepseek7b_g5.py --model DIR --data gsm8k.jsonl --out benchmarks/deepseek7b_g5.json

DIR holds DeepSeek-LLM 7B, or a checkpoint of its shape with random weights (memory and speed do not depend on their
values); where it has no tokenizer, one of the same vocabulary is trained on the data's text. Each case is a process of
its own, limited to `--gib` of allocator: 21.8 GiB stand for the 22.30 GiB of an A10G less its CUDA context. The
"long" cases train on rows of 2048 tokens, made of many problems each, which is the most that the recipe can meet.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "deepseek7b_g5.toml"
OWN = ['{use="gradient-checkpointing"}', '{use="accumulation",steps=4}', '{use="pinned-memory",enabled=false}']
CHUNKED, EXPANDABLE = '{use="chunked-loss"}', '{use="expandable-segments"}'
CASES: dict[str, tuple[str, list[str]]] = {
    "recipe as it is, gsm8k rows": ("rows", OWN),
    "recipe as it is, 2048-token rows": ("long", OWN),
    "with chunked-loss, 2048-token rows": ("long", [*OWN, CHUNKED]),
    "with chunked-loss and expandable-segments, 2048-token rows": ("long", [*OWN, CHUNKED, EXPANDABLE]),
    "without checkpointing, with chunked-loss and expandable-segments, 2048-token rows": (
        "long",
        [*OWN[1:], CHUNKED, EXPANDABLE],
    ),
    "with chunked-loss and expandable-segments, gsm8k rows packed to 2048 tokens": (
        "packed",
        [*OWN, CHUNKED, EXPANDABLE],
    ),
}
"""What is measured: which data, and the recipe's memory strategies."""


def main() -> None:
    """Run every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines with question and answer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gib", type=float, default=21.8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        run_case(arguments)
        return
    make_tokenizer(arguments.model, arguments.data)
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for number, case in enumerate(CASES):
            child = [sys.executable, __file__, *sys.argv[1:], "--case", case, "--directory", f"{directory}/{number}"]
            done = subprocess.run(child, check=False, text=True, capture_output=True)
            result = {"case": case, **measured(Path(directory) / str(number), done)}
            print(json.dumps(result), flush=True)
            results.append(result)
    arguments.out.write_text(json.dumps({**circumstances(arguments), "results": results}, indent=2) + "\n")


def run_case(arguments: argparse.Namespace) -> None:
    """One `ft run` in this process, under the limit."""
    import torch

    from fitune.cli.main import main as ft

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(arguments.gib * 2**30 / total)
    data, strategies = CASES[arguments.case]
    overrides = [
        f"model.path={arguments.model.resolve()}",
        f"train.steps={arguments.steps}",
        f"memory.strategy=[{','.join(strategies)}]",
        "memory.fast=false",
    ]
    file = arguments.data
    if data == "long":
        file = arguments.directory.with_suffix(".jsonl")
        write_long_rows(arguments.data, file, arguments.steps * 4)
        overrides.append("data.stage=[{use='chat'},{use='tokenize'},{use='truncate'}]")
    if data == "packed":
        stages = "{use='prompt-completion',prompt='question',completion='answer'},{use='chat'},{use='tokenize'}"
        overrides.append(f"data.stage=[{stages},{{use='truncate'}},{{use='pack'}}]")
    overrides.append(f"data.path={file.resolve()}")
    switches = [word for override in overrides for word in ("--set", override)]
    ft(["run", str(RECIPE), *switches, "--out", str(arguments.directory)])


def write_long_rows(data: Path, out: Path, rows: int) -> None:
    """Write conversations of so many problems that each is over 2048 tokens, which the recipe cuts to 2048."""
    problems = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    with out.open("w", encoding="utf-8") as file:
        for row in range(rows):
            messages = []
            for number in range(24):
                problem = problems[(row * 24 + number) % len(problems)]
                messages.append({"role": "user", "content": problem["question"]})
                messages.append({"role": "assistant", "content": problem["answer"]})
            file.write(json.dumps({"messages": messages}) + "\n")


def make_tokenizer(model: Path, data: Path) -> None:
    """Train a tokenizer with DeepSeek's special tokens at their places, if the checkpoint has none."""
    if (model / "tokenizer.json").exists():
        return
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = data.read_text(encoding="utf-8").splitlines()
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=16000, show_progress=False))
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary.update({f"<filler {number}>": number for number in range(len(vocabulary), 100000)})
    tokenizer = Tokenizer.from_str(json.dumps(state))
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    tokenizer.add_special_tokens([begin, end])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end).save_pretrained(str(model))


def measured(directory: Path, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The figures of a finished run: medians leave out the first five steps."""
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    return {
        "steps": len(steps),
        "peak_allocated_gib": round(steps[-1]["gpu_memory_peak"] / 2**30, 4),
        "peak_reserved_gib": round(steps[-1]["gpu_memory_reserved_peak"] / 2**30, 4),
        "tokens_per_step": statistics.median(step["tokens"] for step in steps),
        "tokens_per_second": round(statistics.median(step["tokens_per_second"] for step in steps[5:])),
        "loss": [round(step["loss"], 4) for step in steps],
    }


def circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    """Card, versions, date and command."""
    import accelerate
    import peft
    import torch
    import transformers

    packages = (torch, transformers, peft, accelerate)
    return {
        "card": torch.cuda.get_device_name(),
        "allocator_limit_gib": arguments.gib,
        "versions": {package.__name__: package.__version__ for package in packages},
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/deepseek7b_g5.py --model DIR --data gsm8k.jsonl --out FILE",
    }


if __name__ == "__main__":
    main()
