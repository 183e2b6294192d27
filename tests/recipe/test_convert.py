"""Configurations of other tools become recipes that can be checked, and each of their keys is accounted for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fitune.errors import RecipeError
from fitune.plugin.recipe import NewTokens, Recipe
from fitune.plugin.registry import Registry
from fitune.recipe.foreign.convert import DEFAULTS, OF_TRAINER, RATES, Conversion, convert
from fitune.recipe.foreign.known import keys_of
from fitune.recipe.reader import read_recipe_text
from fitune.testing import open_registry

AXOLOTL = """\
base_model: some/model-8B
load_in_4bit: true
adapter: qlora
datasets:
  - path: notes.jsonl
    type: chat_template
    field_messages: talk
    message_property_mappings: {role: from, content: value}
    roles_to_train: [assistant]
    shards: 3
sequence_len: 4096
sample_packing: true
val_set_size: 0.1
evals_per_epoch: 2
lora_r: 32
lora_alpha: 16
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 2e-4
warmup_ratio: 0.1
bf16: auto
gradient_checkpointing: true
wandb_project:
made_up_key: 7
"""

TRL_DPO = """\
model_name_or_path: some/model-1B
dataset_name: some/pairs
dataset_train_split: train_prefs
eval_strategy: steps
eval_steps: 100
beta: 0.3
loss_type: ipo
max_length: 2048
per_device_train_batch_size: 2
max_steps: 50
use_peft: true
lora_target_modules: [q_proj, v_proj]
bf16: true
output_dir: out
"""

LLAMA_FACTORY = """\
model_name_or_path: some/model-7B
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
dataset: notes,more
template: llama3
cutoff_len: 1024
per_device_train_batch_size: 1
bf16: true
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return open_registry()


@pytest.fixture(autouse=True)
def _beside_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.jsonl").write_text('{"messages": []}\n', encoding="utf-8")


def made(registry: Registry, text: str, **more: Any) -> tuple[Conversion, Recipe]:
    found = convert(text, Path("theirs.yaml"), registry, to=Path("ours.toml"), **more)
    return found, read_recipe_text(Path("ours.toml"), found.text, registry)


def outcomes(conversion: Conversion) -> dict[str, str]:
    return {one.key: one.outcome for one in conversion.accounts}


def test_axolotl(registry: Registry) -> None:
    found, recipe = made(registry, AXOLOTL)
    assert found.kind == "axolotl"
    train = recipe.train
    assert (train.micro_batch, train.accumulation, train.length, train.epochs) == (2, 4, 4096, 3.0)
    assert (train.learning_rate, train.warmup_ratio, train.schedule) == (2e-4, 0.1, "cosine")
    assert recipe.evaluation.fraction == 0.1
    lora = recipe.adapter.options
    assert (lora.r, lora.alpha, lora.targets, lora.dropout) == (32, 16, "all-linear", 0.0)
    strategies = {use.record.name: use.options for use in recipe.strategies}
    assert set(strategies) == {"nf4", "adamw-8bit", "gradient-checkpointing"}
    assert strategies["adamw-8bit"].paged
    assert strategies["nf4"].double_quantization  # as axolotl does where nothing is said
    stages = [use.record.name for use in recipe.stages]
    assert stages[:5] == ["sharegpt", "chat", "tokenize", "truncate", "pack"]
    assert recipe.stages[0].options.conversations == "talk"
    assert recipe.stages[3].options.policy == "drop"  # axolotl's own way with long rows
    said = outcomes(found)
    keys = [line.split(":")[0].strip(" -") for line in AXOLOTL.splitlines()]
    sets = ("path", "type", "field_messages", "message_property_mappings", "roles_to_train", "shards")
    assert set(said) == {f"datasets[0].{key}" if key in sets else key for key in keys}
    assert said["made_up_key"] == said["evals_per_epoch"] == said["datasets[0].shards"] == "could not"
    assert said["wandb_project"] == "not needed"
    assert "#   made_up_key: a key that ft convert does not know" in found.text


def test_trl_dpo(registry: Registry) -> None:
    found, recipe = made(registry, TRL_DPO)
    assert found.kind == "trl-dpo"
    assert (recipe.objective.record.name, recipe.objective.options.beta) == ("ipo", 0.3)
    train = recipe.train
    assert (train.length, train.steps, train.epochs) == (2 * 2048, 50, None)  # a row holds both answers
    assert (train.learning_rate, train.schedule) == (1e-6, "linear")  # TRL's defaults
    assert (recipe.adapter.options.r, recipe.adapter.options.alpha, recipe.adapter.options.dropout) == (16, 32, 0.05)
    assert recipe.evaluation.every == 100
    assert [use.options.split for use in recipe.eval_sources] == ["test"]
    assert set(outcomes(found).values()) == {"converted", "not needed"}
    assert "learning_rate = 1e-6  # the default of trl" in found.text


def test_llama_factory_with_its_list_of_data_sets(registry: Registry) -> None:
    Path("data").mkdir()
    Path("data/more.json").write_text('{"question": "?", "answer": "!"}\n', encoding="utf-8")
    Path("data/notes.json").write_text("[]", encoding="utf-8")
    entry = {"file_name": "more.json", "columns": {"prompt": "question", "response": "answer"}}
    Path("data/dataset_info.json").write_text(json.dumps({"notes": {"file_name": "notes.json"}, "more": entry}))
    found, recipe = made(registry, LLAMA_FACTORY)
    assert [(use.record.name, use.options.path.name) for use in recipe.sources] == [
        ("json", "notes.json"), ("jsonl", "more.json"),
    ]  # fmt: skip
    assert recipe.stages[0].options.instruction == "question"
    assert recipe.stages[1].options.template == "llama-3"
    assert (recipe.adapter.options.r, recipe.adapter.options.alpha) == (8, 16)  # alpha is twice r there
    assert "gradient-checkpointing" in [use.record.name for use in recipe.strategies]  # on, unless it is disabled
    assert any("several formats" in text for text in found.differs)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (
            {"ranking": True, "columns": {"prompt": "ask", "query": "more", "chosen": "a", "rejected": "b"}},
            "column more",
        ),
        ({"columns": {"messages": "messages", "kto_tag": "label"}}, "prompt, completion and label"),
        ({"columns": {"messages": "messages", "images": "images"}}, "images, videos and sounds are not read"),
    ],
)
def test_rows_that_are_read_otherwise_are_told_of(registry: Registry, entry: dict[str, Any], says: str) -> None:
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text(json.dumps({"notes": {"hf_hub_url": "a/b", **entry}}))
    found = convert(LLAMA_FACTORY.replace("notes,more", "notes"), Path("theirs.yaml"), registry)
    (lost,) = [one for one in found.accounts if one.outcome == "could not"]
    assert lost.key == "dataset"
    assert says in lost.says


def test_a_data_set_that_only_the_other_tool_knows_is_told(registry: Registry) -> None:
    found = convert(LLAMA_FACTORY, Path("theirs.yaml"), registry)
    (lost,) = [one for one in found.accounts if one.outcome == "could not"]
    assert (lost.key, lost.says.partition(":")[0]) == ("dataset", "notes, more")


@pytest.mark.parametrize(
    ("text", "strategies"),
    [
        ("", ["gradient-checkpointing"]),  # TRL's default
        ("gradient_checkpointing: false\n", []),
        ("gradient_checkpointing: false\noptim: adamw_8bit\n", ["adamw-8bit"]),
        ("gradient_checkpointing: false\nload_in_4bit: true\nuse_peft: true\n", ["nf4"]),
        ("use_liger_kernel: true\n", ["gradient-checkpointing", "chunked-loss"]),
        ("activation_offloading: true\n", ["gradient-checkpointing", "offload-checkpoints"]),
    ],
)
def test_strategies(registry: Registry, text: str, strategies: list[str]) -> None:
    found, recipe = made(registry, f"model_name_or_path: some/model\ndataset_name: some/rows\n{text}")
    assert [use.record.name for use in recipe.strategies] == strategies
    assert "could not" not in outcomes(found).values()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rate: 1e-4\n", "neither base_model (axolotl) nor model_name_or_path"),
        ("base_model: a\nbase_model: b\n", "theirs.yaml:2: base_model is said twice"),
        ("base_model: [a\n", "theirs.yaml:2: neither YAML nor JSON"),
        ("- a\n- b\n", "no table of keys"),
        ("", "no table of keys"),
        ("base_model: a\nlearning_rate: fast\n", "learning_rate is fast, which is no number"),
        ("base_model: a\nmicro_batch_size: 1.5\n", "micro_batch_size is 1.5, which is no whole number"),
        ("base_model: a\nrl: grpo\n", "rl: grpo: there is no such objective"),
        ("base_model:\nsequence_len: 8\n", "no base_model: the configuration names no model"),
        ("base_model: &a [x, x]\nb: &b [*a, *a]\n" + "".join(
            f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else '*b'] * 9)}]\n" for n in range(9)), "more than 20,000"),
        ("base_model: !!python/object/apply:os.system [ls]\n", "neither YAML nor JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_one_error(registry: Registry, text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        convert(text, Path("theirs.yaml"), registry)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("name", "more", "strategy", "betas"),
    [
        ("schedule_free_adamw", "", "schedule-free", {}),
        ("lion_32bit", "adam_beta1: 0.95\nadam_beta2: 0.98\n", "lion", {"beta1": 0.95, "beta2": 0.98}),
        ("adafactor", "adam_beta2: 0.98\nadam_epsilon: 1e-7\n", "adafactor", {}),
        ("muon", "adam_beta2: 0.95\n", "muon", {}),
    ],
)
def test_other_optimizers(registry: Registry, name: str, more: str, strategy: str, betas: dict[str, float]) -> None:
    """A recipe with what AdamW alone has, or with another schedule, would be refused."""
    _, recipe = made(registry, AXOLOTL.replace("paged_adamw_8bit", name) + more)
    options = {use.record.name: use.options for use in recipe.strategies}[strategy]
    assert {key: getattr(options, key) for key in betas} == betas
    assert (recipe.train.schedule == "constant_with_warmup") == (strategy == "schedule-free")
    assert (recipe.train.beta2 == 0.95) == (strategy == "muon")


STOPS = "early_stopping_patience: 3\nload_best_model_at_end: true\n"


@pytest.mark.parametrize(
    ("text", "outcome", "ends"),
    [
        (f"val_set_size: 0.1\neval_steps: 50\n{STOPS}", "converted", (50, 3, "best")),
        (f"val_set_size: 0.1\nevals_per_epoch: 2\n{STOPS}", "could not", (None, None, "last")),
        (STOPS, "not needed", (None, None, "last")),
    ],
)
def test_what_ends_a_run_early_takes_evaluations(
    registry: Registry, text: str, outcome: str, ends: tuple[int | None, int | None, str]
) -> None:
    kept = "\n".join(line for line in AXOLOTL.splitlines() if not line.startswith(("val_set_size", "evals_per")))
    found, recipe = made(registry, f"{kept}\n{text}")
    said = outcomes(found)
    assert said["early_stopping_patience"] == said["load_best_model_at_end"] == outcome
    assert (recipe.evaluation.every, recipe.evaluation.patience, recipe.train.result) == ends


def test_python_is_not_run(registry: Registry) -> None:
    with pytest.raises(RecipeError, match="Python is not run"):
        convert("import os", Path("theirs.py"), registry)


def test_numbers_that_yaml_takes_for_texts_are_numbers(registry: Registry) -> None:
    _, recipe = made(registry, "base_model: some/m\ndatasets: [{path: notes.jsonl}]\nlearning_rate: 2e-5\n")
    assert recipe.train.learning_rate == 2e-5


MORE = """\
base_model: a/b
datasets: [{path: x/y, type: chat_template}]
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_linear: true
lora_modules_to_save: [embed_tokens, lm_head]
peft_init_lora_weights: pissa_niter_4
learning_rate: 1e-4
val_set_size: 0.1
eval_steps: 50
early_stopping_patience: 3
load_best_model_at_end: true
metric_for_best_model: eval_loss
"""


def test_adapters_beginnings_whole_modules_and_the_best(registry: Registry) -> None:
    found, recipe = made(registry, MORE)
    assert set(outcomes(found).values()) == {"converted"}
    lora, evaluation = recipe.adapter.options, recipe.evaluation
    assert (lora.init, lora.modules_to_save) == ("pissa", ("embed_tokens", "lm_head"))
    assert (evaluation.every, evaluation.patience, evaluation.best_by) == (50, 3, "loss")
    assert recipe.train.result == "best"
    without = outcomes(convert(MORE.replace("val_set_size: 0.1\n", ""), Path("theirs.yaml"), registry))
    assert without["early_stopping_patience"] == without["metric_for_best_model"] == "not needed"


def test_added_tokens(registry: Registry) -> None:
    data = "datasets: [{path: notes.jsonl, type: chat_template, field_messages: messages}]"
    axolotl = f"base_model: some/model\nadapter: lora\ntokens: ['<tool>', '</tool>']\n{data}"
    _, recipe = made(registry, axolotl)
    assert recipe.model.tokens == NewTokens(add_tokens=("<tool>", "</tool>"))
    factory = "model_name_or_path: some/model\nfinetuning_type: lora\ndataset: a\ntemplate: qwen\nresize_vocab: true"
    Path("data").mkdir()
    Path("data/a.json").write_text("[]", encoding="utf-8")
    _, recipe = made(registry, f"{factory}\nadd_tokens: '<tool>, </tool>'\nadd_special_tokens: <mark>")
    assert recipe.model.tokens == NewTokens(add_tokens=("<tool>", "</tool>"), add_special_tokens=("<mark>",))


def test_a_template_in_the_configuration_is_written_beside_the_recipe(registry: Registry) -> None:
    text = 'model_name_or_path: some/m\ndataset_name: some/rows\nchat_template: "{{ messages }}"\n'
    found = convert(text, Path("theirs.yaml"), registry)
    assert found.files == {"theirs.jinja": "{{ messages }}"}
    assert 'template_file = "theirs.jinja"' in found.text


def test_all_keys_of_trl_are_known() -> None:
    """Of the TRL that is installed; and its defaults are those that are written down."""
    trl = pytest.importorskip("trl")
    known = keys_of("trl")
    for config, trainer in (
        (trl.SFTConfig, "sft"),
        (trl.DPOConfig, "dpo"),
        (trl.KTOConfig, "kto"),
        (trl.RewardConfig, "reward"),
    ):
        fields = {field.name: field.default for field in dataclasses.fields(config)}
        assert [name for name in fields if name not in known] == []
        assert fields["learning_rate"] == RATES[trainer]
        for key, value in DEFAULTS["trl"].items():
            if key in fields and key != "learning_rate":
                assert fields[key] == value, (config, key)
    for config in (trl.ScriptArguments, trl.ModelConfig):
        fields = {field.name: field.default for field in dataclasses.fields(config)}
        assert set(fields) <= set(known)
        assert {key: fields[key] for key in DEFAULTS["trl"] if key in fields} == {
            key: value for key, value in DEFAULTS["trl"].items() if key in fields
        }


def test_all_keys_of_the_trainer_are_known() -> None:
    from transformers import TrainingArguments

    fields = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    assert [name for name in fields if name not in keys_of("llama-factory")] == []
    assert {key: fields[key] for key in OF_TRAINER} == OF_TRAINER
