"""Mistakes in [[listener]], and in [log] and [checkpoint], whose keys of 0.1 are listeners' now."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

from support.mistakes.cases import TRAIN, above, case

CASES = (
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
        "unknown tracker",
        [above(TRAIN, '[[listener]]\nuse = "tracker"\nname = "tensorbord"')],
        [
            'r.toml:23: [listener] name: "name" is "tensorbord". Did you mean "tensorboard"? It takes: "aim" or "clearml" or "comet_ml" or "dvclive" or "mlflow" or "swanlab" or "tensorboard" or "trackio" or "wandb"'
        ],
    ),
)
