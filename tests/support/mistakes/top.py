"""Mistakes above a recipe's tables, in which tables there are, in TOML itself, and several at once."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

from support.light import LIGHT
from support.mistakes.cases import LORA, NAME, STEPS, TRAIN, above, below, case

CASES = (
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
            "memory, model, name, objective, plugins, seed, train"
        ],
    ),
    case("integer for a string", [(NAME, "name = 7")], ['r.toml:1: name: "name" is 7. It takes: string']),
    case(
        "string for an array of paths",
        [below(NAME, 'plugins = "mine.py"')],
        ['r.toml:2: plugins: "plugins" is "mine.py". It takes: array of paths'],
    ),
    case(
        "negative seed",
        [below(NAME, "seed = -1")],
        ['r.toml:2: seed: "seed" is -1. It takes: integer >= 0 and < 4294967296'],
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
    case("no name", [('name = "light"\n', "")], ['r.toml: "name" is missing. Add it; it takes: string']),
    case(
        "no [model]",
        [('[model]\nuse = "hf"\npath = "model"\n', "")],
        ["r.toml: the table [model] is missing. Add it, with use = one of: deepseek-7b, gguf, hf"],
    ),
    case(
        "no [adapter]",
        [('[adapter]\nuse = "lora"\n', "")],
        ["r.toml: the table [adapter] is missing. Add it, with use = one of: ia3, lora, none"],
    ),
    case(
        "empty file",
        [(LIGHT, "")],
        [
            'r.toml: "name" is missing. Add it; it takes: string',
            "r.toml: the table [adapter] is missing. Add it, with use = one of: ia3, lora, none",
            "r.toml: the table [model] is missing. Add it, with use = one of: deepseek-7b, gguf, hf",
            "r.toml: no data to train on. Add a [[data.source]]",
        ],
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
    case(
        "several problems",
        [
            below(NAME, "seed = -1"),
            (LORA, 'use = "lara"'),
            (STEPS, "step = 3\nlength = 1"),
            ('"data.jsonl"', '"nope.jsonl"'),
        ],
        [
            '--set train.micro_batch=0: "micro_batch" is 0. It takes: integer >= 1 and <= 65536',
            'r.toml:2: seed: "seed" is -1. It takes: integer >= 0 and < 4294967296',
            'r.toml:9: [adapter] use: unknown adapter "lara". Did you mean "lora"?',
            "r.toml:17: [data.source] path: no such file: {here}/nope.jsonl. Give the path of a JSON Lines file",
            'r.toml:23: [train] step: unknown key "step". Did you mean "steps"?',
            'r.toml:24: [train] length: "length" is 1. It takes: integer >= 2 and <= 16777216',
        ],
        sets=["train.micro_batch=0"],
    ),
)
