"""Data stages: from rows to padded batches, `[[data.stage]] use = "NAME"`; sources are in `sources/`.

The files that are not listed below are what the stages are made of: turns, templates, masks, labels, bin packing.
"""

from fitune_plugins.data import sources

PLUGINS: tuple[str, ...] = (
    *sources.PLUGINS,
    "fitune_plugins.data.formats",  # "messages", "sharegpt", "alpaca", "prompt-completion"
    "fitune_plugins.data.detect",  # finds the format by the columns
    "fitune_plugins.data.preferences",  # pairs of answers, and judged ones
    "fitune_plugins.data.plain_text",  # texts, trained on as a whole
    "fitune_plugins.data.chat",  # conversations by a chat template
    "fitune_plugins.data.tokenize",  # tokens and labels
    "fitune_plugins.data.truncate",  # rows that are too long: cut, split or dropped
    "fitune_plugins.data.pack",  # several documents to a row
    "fitune_plugins.data.pad",  # rows to one length
)
"""Dotted names of the modules, in the order in which they are loaded."""
