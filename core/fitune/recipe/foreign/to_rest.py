"""Of a configuration: evaluations, checkpoints, what is told of a run, and its cards."""

from __future__ import annotations

from typing import Any

from fitune.recipe.draft import Draft
from fitune.recipe.foreign.source import Source

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")

SWITCHES = {
    "use_wandb": "wandb",
    "wandb_project": "wandb",
    "use_mlflow": "mlflow",
    "mlflow_experiment_name": "mlflow",
    "use_comet": "comet_ml",
    "use_tensorboard": "tensorboard",
    "use_trackio": "trackio",
    "trackio_project_name": "trackio",
    "use_swanlab": "swanlab",
    "swanlab_project": "swanlab",
}
"""Keys that switch a tracker on."""

OF_EVAL = ("eval_steps", "eval_strategy", "evaluation_strategy", "evals_per_epoch", "eval_batch_size", "eval_on_start",
           "per_device_eval_batch_size", "eval_table_size", "eval_max_new_tokens", "early_stopping_patience",
           "early_stopping_steps", "early_stopping_threshold", "load_best_model_at_end",
           "metric_for_best_model", "greater_is_better")  # fmt: skip
"""Keys that say nothing where no rows are held out."""

PATIENCE = ("early_stopping_patience", "early_stopping_steps")
"""Keys that say after how many evaluations without a better one a run ends."""


def evaluation(source: Source, draft: Draft, *, held_out: bool) -> None:
    """Fill in `[eval]`, where rows are held out."""
    if not held_out:
        for key in OF_EVAL:
            source.needless(key, "no rows are held out")
        return
    strategy = source.get("eval_strategy", str) or source.get("evaluation_strategy", str)
    if strategy == "no":
        source.needless("eval_strategy", "held-out rows are evaluated before the first step and after the last")
    elif strategy == "epoch":
        source.could_not("eval_strategy", "[eval] every is a number of steps: ft data says how many an epoch has")
    elif strategy is not None:
        source.converted("eval_strategy", "[eval] every")
        source.converted("evaluation_strategy", "[eval] every")
    each = source.get("evals_per_epoch", float)
    if each:
        source.could_not("evals_per_epoch", "[eval] every is a number of steps: ft data says how many an epoch has")
    metric = source.get("metric_for_best_model", str)
    if metric in ("loss", "eval_loss"):
        draft.set("eval", "best_by", "loss")
        source.converted("metric_for_best_model", '[eval] best_by = "loss"')
    elif metric is not None:
        source.could_not(
            "metric_for_best_model", '[eval] best_by is "loss", "exact_match" or what the objective measures'
        )
    steps = source.get("eval_steps", float)
    if steps is not None and (steps < 1 or steps != int(steps)):
        source.could_not("eval_steps", "[eval] every is a number of steps, not a share of them")
    before = bool(source.get("eval_on_start", bool))
    draft.set("eval", "before", before, "" if before else "true evaluates the base model, too, to compare")
    source.converted("eval_on_start", "[eval] before")
    _ending(source, draft, every=steps is not None and steps >= 1 and steps == int(steps) and strategy != "no")


def _ending(source: Source, draft: Draft, *, every: bool) -> None:
    """Fill in what ends a run early, or with the best, for which there must be evaluations on the way."""
    by_hand = "takes evaluations on the way, and how many steps lie between them is not known here: set [eval] every"
    for key in PATIENCE:
        patience = source.get(key, int)
        if patience and every:
            draft.set("eval", "patience", patience)
            source.converted(key, "[eval] patience")
            if (least := source.get("early_stopping_threshold", float)) is not None:
                draft.set("eval", "min_delta", least)
                source.converted("early_stopping_threshold", "[eval] min_delta")
        elif patience:
            source.could_not(key, f"[eval] patience {by_hand}")
    if source.get("load_best_model_at_end", bool):
        if every:
            draft.set("train", "result", "best")
            source.converted("load_best_model_at_end", '[train] result = "best"')
        else:
            source.could_not("load_best_model_at_end", f'[train] result = "best" {by_hand}')


def checkpoints(source: Source, draft: Draft) -> None:
    """Fill in `[checkpoint]`."""
    strategy, steps = source.get("save_strategy", str), source.get("save_steps", float)
    each = source.get("saves_per_epoch", float)
    if strategy == "no":
        draft.set("checkpoint", "minutes", 0, "none on the way; one stands at the end")
        source.converted("save_strategy", "[checkpoint] minutes = 0")
        source.needless("save_steps", "save_strategy says that there are none")
    elif strategy in ("epoch", "best") or each:
        why = "a checkpoint comes every 30 minutes ([checkpoint] minutes), and the best evaluation's is kept"
        for key in ("saves_per_epoch", "save_strategy"):
            source.needless(key, why)
    elif steps is not None and steps >= 1 and steps == int(steps):
        given = "save_steps" in source.given
        draft.set("checkpoint", "steps", int(steps), "" if given else f"the default of {source.tool}")
        source.converted("save_steps", "[checkpoint] steps")
        source.converted("save_strategy", "[checkpoint] steps")
    elif steps is not None:
        source.could_not("save_steps", "[checkpoint] steps is a number of steps, not a share of them")
        source.needless("save_strategy", "a checkpoint comes every 30 minutes ([checkpoint] minutes)")
    if not source.has("save_total_limit"):
        draft.differs.append("[checkpoint] keep: the newest 2 are kept, and the best; the tool keeps all")


def listeners(source: Source, draft: Draft) -> None:
    """Fill in `[[listener]]`."""
    every = source.get("logging_steps", float)
    if every is not None and every > 1 and every == int(every) and "logging_steps" in source.given:
        draft.add("listener", {"use": "metrics", "every": int(every)})
        source.converted("logging_steps", '[[listener]] use = "metrics", every')
    elif every is not None:
        source.needless("logging_steps", "each step is shown, and written to metrics.jsonl")
    for key in ("report_to", *SWITCHES):
        if not source.has(key) or source.values[key] is False:
            continue
        if key != "report_to":
            names: list[Any] = [SWITCHES[key]]
        else:
            said = source.values[key]
            names = said if isinstance(said, list) else str(said).split(",")
        known = [str(name).strip() for name in names if str(name).strip() in TRACKERS]
        for name in known:
            draft.add("listener", {"use": "tracker", "name": name})
        if known:
            more = "; the project's name is the tracker's own variable" if "project" in key else ""
            source.converted(key, f'[[listener]] use = "tracker", name = "{known[0]}"{more}')
        elif all(str(name).strip() in ("none", "") for name in names):
            source.needless(key, "no tracker")
        else:
            source.could_not(key, f"trackers are {', '.join(TRACKERS)}")


def cards(source: Source, draft: Draft) -> None:
    """Fill in what several cards share."""
    for key in ("context_parallel_size", "sequence_parallel_degree"):
        size = source.get(key, int)
        if size is not None and size <= 1:
            source.needless(key, "rows are not spread over cards")
        elif size is not None:
            draft.add("memory.strategy", {"use": "context-parallel", "cards": size}, "Needs ft run --gpus N.")
            source.converted(key, '[[memory.strategy]] use = "context-parallel"')
    if source.has("heads_k_stride"):
        source.needless("heads_k_stride", "rows are spread by heads (Ulysses)")
    for key in ("max_memory", "gpu_memory_limit"):
        if source.has(key):
            source.could_not(key, '[memory] fit = "22GiB" keeps a run below so much')
