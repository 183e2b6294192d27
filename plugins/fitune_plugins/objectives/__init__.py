"""Objectives: what a run minimises, `[objective] use = "NAME"`.

The files that are not listed below are what several of them share.
"""

PLUGINS: tuple[str, ...] = (
    "fitune_plugins.objectives.sft",  # the cross-entropy of target tokens
    "fitune_plugins.objectives.dpo",  # pairs, beside a reference
    "fitune_plugins.objectives.ipo",  # the same, with a margin that is aimed at
    "fitune_plugins.objectives.kto",  # single answers, good or bad, beside a reference
    "fitune_plugins.objectives.orpo",  # pairs and fine-tuning at once
    "fitune_plugins.objectives.simpo",  # pairs, by mean log-probabilities
    "fitune_plugins.objectives.cpo",  # pairs, and the chosen answer's cross-entropy
    "fitune_plugins.objectives.reward",  # pairs, by a head that gives a score: a reward model
)
"""Dotted names of the modules, in the order in which they are loaded."""
