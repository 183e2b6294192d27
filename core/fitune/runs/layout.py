"""What a run's directory holds, by name. Beside these it holds what was trained, under the adapter's own name."""

from __future__ import annotations

RECIPE = "recipe.toml"
"""The recipe, every choice explicit; `ft run` takes it as it is."""

IDENTITY = "identity.json"
"""What makes it this run and no other."""

ENVIRONMENT = "environment.json"
"""Versions, plugins, devices, and the state of the recipe's git."""

RECORD = "run.json"
"""What became of it, over all of its starts."""

METRICS = "metrics.jsonl"
"""A line for each step, and each evaluation."""

ANSWERS = "examples.json"
"""Held-out answers, before training and after."""

MEMORY = "memory.json"
"""On a GPU, what was forecast beside what was measured."""

TRACKER = "tracker.json"
"""The experiment tracker's own name for the run."""

CHECKPOINTS = "checkpoints"
"""A directory for each checkpoint, `step-N`."""
