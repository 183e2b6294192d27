"""Mistakes in what `--set` says."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

from support.mistakes.cases import case

CASES = (
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
    case(
        "--set out of range",
        [],
        ['--set adapter.r=0: "r" is 0. It takes: integer >= 1 and <= 65536'],
        sets=["adapter.r=0"],
    ),
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
)
