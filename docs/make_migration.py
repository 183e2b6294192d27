"""Writes docs/migration.md: each key of TRL, axolotl, LLaMA-Factory and others, and what a recipe says in its place.

python docs/make_migration.py          writes it
python docs/make_migration.py --check  exits with 1 if it is not what the tables of `fitune.recipe.foreign` say
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fitune.recipe.foreign.key import Known
from fitune.recipe.foreign.known import OTHERS, OWN, SETS, TRAINER

PAGE = Path(__file__).with_name("migration.md")

HEAD = """\
# Coming from another tool

<!-- Made by docs/make_migration.py from the code: change it there. -->

`ft convert FILE` turns a configuration of TRL (as `trl sft --config` takes it), axolotl or LLaMA-Factory, YAML or JSON,
into a recipe that `ft check` takes, and says of each of its keys what became of it: converted, not needed, or could not
be. `--to FILE` writes the recipe there; what could not be converted, and what is different, stands in its first lines,
too.

<!-- file: theirs.yml -->
```text
base_model: Qwen/Qwen2.5-0.5B-Instruct
datasets:
  - path: data.jsonl
    type: chat_template
sequence_len: 512
sample_packing: true
adapter: qlora
load_in_4bit: true
lora_r: 16
lora_alpha: 32
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 2
optimizer: adamw_bnb_8bit
learning_rate: 0.0002
warmup_ratio: 0.05
wandb_watch: gradients
```

```console
$ ft convert theirs.yml --to ours.toml
written: ours.toml
theirs.yml, a configuration of axolotl (--from says another): 18 keys, 17 converted, 0 not needed, 1 could not
could not:
  wandb_watch: gradients
      the tracker's own variables say it, e.g. WANDB_PROJECT
different:
  ...
checked: no problem found. Next: ft data ours.toml; ft plan ours.toml
```

Whose a file is, is told by its keys; `--from trl-dpo` says it where they do not. LLaMA-Factory's names of data sets are
looked up in its `dataset_info.json`. Python is not run: of Unsloth's notebooks, which are TRL's configurations and a
few keys of its own, the tables below say what each is.

What is different wherever one comes from: weights are in the type that the run computes in, without autocast, and what
trains has a float32 copy in the optimizer; only answers are trained on, unless `loss = "all"` of the stage `chat` says
otherwise; a step's loss is its sum over target tokens, over their number, however it is cut into micro-batches.

In the tables, *nothing* is a key that a recipe need not say, and *-* one that nothing here is like, with what comes
nearest.
"""

SECTIONS: Sequence[tuple[str, str, Mapping[str, Known]]] = (
    (
        "TRL",
        "Of `SFTConfig`, `DPOConfig`, `KTOConfig`, `RewardConfig`, `ScriptArguments` and `ModelConfig`.",
        OWN["trl"],
    ),
    ("axolotl", "Its keys; those of its `datasets` follow.", OWN["axolotl"]),
    ("A data set of axolotl", "Keys of an entry of `datasets`, `test_datasets` or `pretraining_dataset`.", SETS),
    ("LLaMA-Factory", "Its own keys, beside those of transformers' trainer.", OWN["llama-factory"]),
    (
        "transformers' trainer",
        "Keys of `TrainingArguments`, which TRL and LLaMA-Factory have, and axolotl in part.",
        TRAINER,
    ),
    ("Unsloth and others", "Names that other programs and older versions have.", OTHERS),
)


def page() -> str:
    """The page."""
    return HEAD + "".join(_section(*section) for section in SECTIONS)


def _section(title: str, what: str, keys: Mapping[str, Known]) -> str:
    return f"\n## {title}\n\n{what}\n\n| Key | In a recipe |\n|---|---|\n" + "\n".join(_rows(keys)) + "\n"


def _rows(keys: Mapping[str, Known]) -> Iterator[str]:
    for name, key in sorted(keys.items()):
        says = key.says.replace("|", "\\|")
        if key.fate == "not needed":
            says = f"*nothing*: {says.removeprefix('nothing: ')}"
        elif key.fate == "could not":
            says = f"*-* {says}"
        yield f"| `{name}` | {says} |"


def main(arguments: Sequence[str]) -> str | None:
    """Write the page, or check it; gives what is wrong."""
    if arguments == ["--check"]:
        right = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
        return None if right else f"{PAGE} is out of date: run {sys.argv[0]}"
    PAGE.write_text(page(), encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
