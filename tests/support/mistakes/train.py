"""Mistakes in [train]."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

from support.mistakes.cases import STEPS, TRAIN, below, case

CASES = (
    case(
        "unknown key in [train]",
        [below(STEPS, "lerning_rate = 1e-3")],
        ['r.toml:23: [train] lerning_rate: unknown key "lerning_rate". Did you mean "learning_rate"?'],
    ),
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
        "unknown choice",
        [(STEPS, 'schedule = "step"')],
        [
            'r.toml:22: [train] schedule: "schedule" is "step". It takes: "linear" or "cosine" or "constant" or "constant_with_warmup" or "inverse_sqrt"'
        ],
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
        "warm-up of a schedule that has none",
        [(STEPS, 'schedule = "constant"\nwarmup_steps = 10')],
        [
            'r.toml:23: [train] warmup_steps: "warmup_steps" has no effect with schedule = "constant". Use schedule = "constant_with_warmup"'
        ],
    ),
    case(
        "two warm-ups",
        [(STEPS, "warmup_steps = 10\nwarmup_ratio = 0.1")],
        ['r.toml:23: [train] warmup_ratio: "warmup_ratio" says what "warmup_steps" says already. Keep one of them'],
    ),
    case(
        "[[..]] for a table",
        [(TRAIN, "[[train]]")],
        ['r.toml:21: [train]: "train" is an array of tables. Write [train], not [[train]]'],
    ),
)
