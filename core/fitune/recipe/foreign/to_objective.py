"""Of a configuration: what is minimised."""

from __future__ import annotations

from fitune.errors import RecipeError
from fitune.recipe.draft import Draft
from fitune.recipe.foreign.source import Source

SFT = ("sft", "pt", "none", "nll")

NO_SUCH = "{what}: there is no such objective. ft has sft, dpo, ipo, kto, orpo, simpo, cpo and reward"

LOSSES = {"sigmoid": "dpo", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo", "kto_pair": "kto", "sft": "sft"}
"""Losses of pairs, as TRL and LLaMA-Factory call them."""

OPTIONS: dict[str, dict[str, str]] = {
    "beta": {"beta": "", "rl_beta": "", "dpo_beta": "", "pref_beta": ""},
    "label_smoothing": {"label_smoothing": "dpo cpo", "dpo_label_smoothing": "dpo"},
    "rpo_alpha": {"rpo_alpha": "dpo", "pref_ftx": "dpo"},
    "gamma": {"simpo_gamma": "simpo"},
    "alpha": {"cpo_alpha": "cpo"},
    "desirable": {"desirable_weight": "kto", "kto_desirable_weight": "kto", "kto_chosen_weight": "kto"},
    "undesirable": {"undesirable_weight": "kto", "kto_undesirable_weight": "kto", "kto_rejected_weight": "kto"},
    "center": {"center_rewards_coefficient": "reward"},
}
"""Options of objectives: the keys that say them, with the objectives that take them (empty: all but sft, reward)."""


def objective(source: Source, draft: Draft, trainer: str) -> str:
    """Fill in `[objective]`; gives its name. `trainer` is TRL's, e.g. "dpo". Raises `RecipeError` for one not here."""
    name = _named(source, trainer)
    if name == "sft":
        return name
    draft.set("objective", "use", name)
    for option, keys in OPTIONS.items():
        for key, takes in keys.items():
            value = source.get(key, float) if source.has(key) else None
            if value is None:
                continue
            if name in takes.split() or (not takes and name not in ("sft", "reward")):
                draft.set("objective", option, value, "" if key in source.given else f"the default of {source.tool}")
                source.converted(key, f"[objective] {option}")
            elif value:
                source.could_not(key, f"{name} has no such option")
            else:
                source.needless(key, "it is off")
    if name == "orpo" and source.has("orpo_alpha"):
        draft.set("objective", "beta", source.get("orpo_alpha", float))
        source.converted("orpo_alpha", "[objective] beta")
    if source.get("precompute_ref_log_probs", bool):
        draft.set("objective", "reference", "prepared")
        source.converted("precompute_ref_log_probs", '[objective] reference = "prepared"')
    draft.comments.setdefault("objective", "Rows are pairs of answers, or judged ones: docs/preference.md.")
    return name


def _named(source: Source, trainer: str) -> str:
    """The objective's name."""
    if source.tool == "axolotl":
        return _of_axolotl(source)
    if source.tool == "llama-factory":
        return _of_llama_factory(source)
    losses = source.values.get("loss_type")
    loss = losses[0] if isinstance(losses, list) and losses else losses
    if trainer in ("dpo", "cpo") and loss is not None:
        name = LOSSES.get(str(loss))
        alone = not isinstance(losses, list) or len(losses) == 1
        if trainer == "cpo" and name == "dpo":
            name = "cpo"
        if name is None or not alone:
            source.could_not("loss_type", f"no objective has such a loss: the recipe has {trainer}")
            return trainer
        source.converted("loss_type", f'[objective] use = "{name}"')
        return name
    source.converted("loss_type", "[objective] use")
    return trainer


def _of_axolotl(source: Source) -> str:
    kind = source.get("rl", str)
    if source.get("reward_model", bool):
        source.converted("reward_model", '[objective] use = "reward"')
        return "reward"
    if source.get("process_reward_model", bool):
        raise RecipeError([NO_SUCH.format(what="process_reward_model")])
    if kind is None:
        return "sft"
    if kind not in ("dpo", "ipo", "orpo", "kto", "simpo"):
        raise RecipeError([NO_SUCH.format(what=f"rl: {kind}")])
    loss = source.values.get("dpo_loss_type")
    name = LOSSES.get(str(loss[0] if isinstance(loss, list) and loss else loss), kind) if kind == "dpo" else kind
    source.converted("rl", f'[objective] use = "{name}"')
    if name != kind:
        source.converted("dpo_loss_type", f'[objective] use = "{name}"')
    return name


def _of_llama_factory(source: Source) -> str:
    stage, loss = source.get("stage", str) or "sft", source.get("pref_loss", str) or "sigmoid"
    name = {"dpo": LOSSES.get(loss), "kto": "kto", "rm": "reward", "sft": "sft", "pt": "sft"}.get(stage, "")
    if name == "":
        raise RecipeError([NO_SUCH.format(what=f"stage: {stage}")])
    if name is None or (stage == "dpo" and name == "kto"):
        source.could_not("pref_loss", "no objective has such a loss of pairs: the recipe has dpo")
        name = "dpo"
    elif stage == "dpo":
        source.converted("pref_loss", f'[objective] use = "{name}"')
    source.converted("stage", 'plain-text in place of "chat"' if stage == "pt" else f'[objective] use = "{name}"')
    return name
