"""Mistakes in [data] and [eval]: sources, stages and files."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

from support.mistakes.cases import TRAIN, above, below, case

CASES = (
    case(
        "unknown array of tables",
        [("[[data.stage]]", "[[stage]]")],
        [
            "r.toml:14: [data]: the data stages end with rows, not with batches. Add a [[data.stage]] that takes rows: alpaca, detect, messages, plain-text, preferences, prompt-completion, sharegpt",
            'r.toml:18: [stage]: unknown table "stage". Known: adapter, checkpoint, data, deterministic, eval, listener, '
            "memory, model, name, objective, plugins, seed, train",
        ],
    ),
    case(
        "unknown key in [data], meant for a table that is read elsewhere",
        [above("[[data.source]]", "[data]\nsources = 1")],
        ['r.toml:15: [data] sources: unknown key "sources". Did you mean "source"?'],
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
    case(
        "stage before what it needs",
        [below("[[data.stage]]", 'use = "truncate"\n\n[[data.stage]]')],
        [
            'r.toml:18: [data.stage]: "truncate" takes examples, but what comes to it is rows. Stages that take rows: alpaca, detect, messages, plain-text, preferences, prompt-completion, sharegpt'
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
            "r.toml:14: [data]: the data stages end with rows, not with batches. Add a [[data.stage]] that takes rows: alpaca, detect, messages, plain-text, preferences, prompt-completion, sharegpt"
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
        [
            'r.toml:20: [data.stage] prompt: unknown key "prompt". "prompt" is a key of [[data.stage]] use = "prompt-completion" and of [[data.stage]] use = "preferences"'
        ],
    ),
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
)
