"""Suites of tasks that a trained model can be measured by."""

PLUGINS = (
    "fitune_plugins.tasks.lm_eval_harness",  # those of lm-evaluation-harness
)
