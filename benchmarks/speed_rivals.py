"""One rival's run of `benchmarks/speed.py`, in a process of its own:

    python benchmarks/speed_rivals.py STACK CASE.json

CASE.json says what to train on and where to write. Each stack is used as its documentation says: what is not said here
is its default.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speed_clock import Clock, limit

Json = dict[str, Any]
PACKAGES = ("torch", "transformers", "peft", "trl", "liger_kernel", "unsloth", "bitsandbytes", "xformers")
IGNORED = -100


def main() -> None:
    """Train; what went wrong stands in the file."""
    stack, case = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    clock = Clock(Path(case["out"]), case["timed"])
    if case["gib"]:
        limit(case["gib"])
    try:
        STACKS[stack](case, clock)
        clock.tell(versions=versions())
    except BaseException as error:
        clock.tell(error=f"{type(error).__name__}: {error}"[:1500], versions=versions())
        raise


def versions() -> dict[str, str]:
    """Of the packages that are there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def rows_of(case: Json) -> list[Json]:
    """The rows to train on: texts as they are, or first fit of them to a row where they are packed."""
    texts: list[list[int]] = json.loads(Path(case["tokens"]).read_text(encoding="utf-8"))
    if not case["packed"]:
        return [{"input_ids": text, "labels": text} for text in texts]
    bins: list[list[list[int]]] = []
    for text in texts:
        held = next((one for one in bins[-50:] if sum(map(len, one)) + len(text) <= case["length"]), None)
        if held is None:
            bins.append([text])
        else:
            held.append(text)
    return [
        {
            "input_ids": [token for text in held for token in text],
            "labels": [token for text in held for token in (IGNORED, *text[1:])],
            "position_ids": [place for text in held for place in range(len(text))],
        }
        for held in bins
    ]


def collate(rows: list[Json]) -> Json:
    """One row as tensors. No mask: nothing is padded, and packed texts are told by their positions."""
    import torch

    (row,) = rows
    return {name: torch.tensor([values]) for name, values in row.items()}


def timed_trainer(base: Any, clock: Clock) -> Any:
    """This class of trainer, with the clock in it."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            tokens = sum(int(one) for one in self.seen)
            self.seen.clear()
            clock.step_done(tokens)

    class Timed(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **others: Any) -> None:
            super().__init__(*args, **others)
            self.own = Callback()
            self.add_callback(self.own)

        def training_step(self, model: Any, inputs: Any, *args: Any, **others: Any) -> Any:
            mask = inputs.get("attention_mask")
            self.own.seen.append(inputs["input_ids"].numel() if mask is None or mask.dim() != 2 else mask.sum())
            return super().training_step(model, inputs, *args, **others)

    return Timed


def settings(case: Json) -> Json:
    """Of any of transformers' trainers."""
    return {
        "output_dir": str(Path(case["out"]).with_suffix("")),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": case["accumulation"],
        "max_steps": case["timed"] + 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "bf16": True,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": case["cpu"],
    }


def quantization(case: Json) -> Json:
    """What a model is loaded with where its base is to be of 4 bits."""
    if not case["nf4"]:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    kind = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **kind)}


def lora(case: Json) -> Any:
    """peft's configuration."""
    from peft import LoraConfig

    return LoraConfig(r=case["r"], lora_alpha=case["alpha"], target_modules=case["targets"], task_type="CAUSAL_LM")


def load(case: Json) -> Any:
    """The model of transformers, on the card."""
    import torch
    from transformers import AutoModelForCausalLM

    where = "cpu" if case["cpu"] else "cuda"
    return AutoModelForCausalLM.from_pretrained(
        case["model"], dtype=torch.bfloat16, device_map=where, **quantization(case)
    )


def with_transformers(case: Json, clock: Clock) -> None:
    """transformers' Trainer and peft."""
    import peft
    from transformers import Trainer, TrainingArguments

    model = load(case)
    if case["nf4"]:
        prepared: Any = peft.prepare_model_for_kbit_training
        model = prepared(model, use_gradient_checkpointing=case["checkpointing"])
    model = peft.get_peft_model(model, lora(case))
    if case["checkpointing"]:
        model.enable_input_require_grads()
    arguments = TrainingArguments(
        **settings(case), gradient_checkpointing=case["checkpointing"], remove_unused_columns=False
    )
    trainer = timed_trainer(Trainer, clock)(
        model=model, args=arguments, train_dataset=rows_of(case), data_collator=collate
    )
    finish(trainer, clock)


def with_liger(case: Json, clock: Clock) -> None:
    """The same, with Liger's kernels in place of transformers' own."""
    importlib.import_module("liger_kernel.transformers").apply_liger_kernel_to_llama()
    with_transformers(case, clock)


def finish(trainer: Any, clock: Clock) -> None:
    """Train, and tell the losses."""
    trainer.train()
    clock.tell(loss=[line["loss"] for line in trainer.state.log_history if "loss" in line][: clock.timed])


def texts_of(case: Json) -> Any:
    """The texts as a data set of token ids, which a trainer that packs does for itself."""
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": json.loads(Path(case["tokens"]).read_text(encoding="utf-8"))})


def with_trl(case: Json, clock: Clock) -> None:
    """TRL's SFTTrainer."""
    import torch
    from transformers import AutoTokenizer

    trl = importlib.import_module("trl")
    where = "cpu" if case["cpu"] else "cuda"
    arguments = trl.SFTConfig(
        **settings(case),
        gradient_checkpointing=case["checkpointing"],
        max_length=case["length"],
        packing=case["packed"],
        model_init_kwargs={"dtype": torch.bfloat16, "device_map": where, **quantization(case)},
    )
    trainer = timed_trainer(trl.SFTTrainer, clock)(
        model=case["model"],
        args=arguments,
        train_dataset=texts_of(case),
        processing_class=AutoTokenizer.from_pretrained(case["model"]),
        peft_config=lora(case),
    )
    finish(trainer, clock)


def with_unsloth(case: Json, clock: Clock) -> None:
    """Unsloth's model in TRL's SFTTrainer."""
    import torch

    unsloth = importlib.import_module("unsloth")
    trl = importlib.import_module("trl")
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        model_name=case["model"], max_seq_length=case["length"], dtype=torch.bfloat16, load_in_4bit=case["nf4"]
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=case["r"],
        lora_alpha=case["alpha"],
        lora_dropout=0,
        bias="none",
        target_modules=case["targets"],
        use_gradient_checkpointing="unsloth" if case["checkpointing"] else False,
        random_state=0,
    )
    arguments = trl.SFTConfig(**settings(case), max_length=case["length"], packing=case["packed"])
    if not case["checkpointing"]:
        arguments.gradient_checkpointing = False
    trainer = timed_trainer(trl.SFTTrainer, clock)(
        model=model, args=arguments, train_dataset=texts_of(case), processing_class=tokenizer
    )
    finish(trainer, clock)


def with_compiled(case: Json, clock: Clock) -> None:
    """A plain loop, its layers compiled."""
    from speed_loop import train

    train(case, clock, load(case), lora(case), [collate([row]) for row in rows_of(case)])


STACKS: dict[str, Callable[[Json, Clock], None]] = {
    "transformers": with_transformers,
    "trl": with_trl,
    "liger": with_liger,
    "unsloth": with_unsloth,
    "unsloth-xformers": with_unsloth,
    "compiled": with_compiled,
}

if __name__ == "__main__":
    main()
