"""Mistakes in [[listener]], and in [log] and [checkpoint], whose keys of 0.1 are listeners now."""

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
        "[log] every of 0.1, which is read as the listener's",
        [above(TRAIN, "[log]\nevery = 0")],
        ['r.toml:22: [log] every: "every" is 0. It takes: integer >= 1'],
    ),
    case(
        "[log] every beside the listener that it is now",
        [above(TRAIN, '[log]\nevery = 10\n[[listener]]\nuse = "metrics"')],
        ['r.toml:21: [log]: "metrics" stands here a second time. Keep one of them'],
    ),
    case(
        "[checkpoint] spot, which is a listener's, beside an unknown key",
        [above(TRAIN, '[checkpoint]\nspot = "awz"\nstep = 3')],
        [
            'r.toml:22: [checkpoint] spot: "cloud" is "awz". Did you mean "aws"? It takes: "aws" or "gcp" or "azure"',
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
