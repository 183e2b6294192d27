"""Models that see later tokens, told by their configuration alone: before weights, and before torch.

A run proves it of any model (`fitune.compose.causal`); what is known here need not be waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fitune.errors import ModelError

if TYPE_CHECKING:
    from fitune.plugin.recipe import Recipe

SAYS = {"is_decoder": True, "causal": True, "is_causal": True, "use_bidirectional_attention": False}
"""Keys of configurations that say whether a model is causal, and their values where it is."""

DECODERS_IF_SAID: Mapping[str, tuple[str, str]] = {
    "bert": ("BertLMHeadModel", "is_decoder"),
    "bert-generation": ("BertGenerationDecoder", "is_decoder"),
    "big_bird": ("BigBirdForCausalLM", "is_decoder"),
    "camembert": ("CamembertForCausalLM", "is_decoder"),
    "data2vec-text": ("Data2VecTextForCausalLM", "is_decoder"),
    "electra": ("ElectraForCausalLM", "is_decoder"),
    "ernie": ("ErnieForCausalLM", "is_decoder"),
    "megatron-bert": ("MegatronBertForCausalLM", "is_decoder"),
    "rembert": ("RemBertForCausalLM", "is_decoder"),
    "roberta": ("RobertaForCausalLM", "is_decoder"),
    "roberta-prelayernorm": ("RobertaPreLayerNormForCausalLM", "is_decoder"),
    "roc_bert": ("RoCBertForCausalLM", "is_decoder"),
    "roformer": ("RoFormerForCausalLM", "is_decoder"),
    "xlm": ("XLMWithLMHeadModel", "causal"),
    "xlm-roberta": ("XLMRobertaForCausalLM", "is_decoder"),
    "xlm-roberta-xl": ("XLMRobertaXLForCausalLM", "is_decoder"),
}
"""By `model_type`, the classes of transformers that are causal only where this key of their configuration is true; the
default is false. Other families have such a key too (GPT-NeoX), and are causal whatever it says.
"""

NEVER: Mapping[str, str] = {"cpmant": "CpmAntForCausalLM"}
"""Those that nothing makes causal."""


def must_not_say_so(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Raise `ModelError` if this configuration of a model that is to write what comes next says that it sees it; one
    that gives scores may.
    """
    if recipe.objective.record.convert is None and (said := sees_later(config)) is not None:
        raise ModelError(said)


def sees_later(config: Mapping[str, Any]) -> str | None:
    """Why a model of this configuration (as config.json holds it) is refused, in the words of a run; None where the
    configuration alone does not tell.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return None
    if kind in NEVER:
        return refusal(NEVER[kind], ())
    name, key = DECODERS_IF_SAID.get(kind, ("", ""))
    return refusal(name, (key,)) if name and config.get(key, False) is False else None


def refusal(name: str, keys: Sequence[str]) -> str:
    """The error of a model of this class; `keys` of its configuration say that it is not causal."""
    said = [f"{key} = {str(SAYS[key]).lower()}" for key in keys]
    what = f"{name} sees tokens that come later in a row: it would read there what it is to write"
    return f"{what}. {'Write ' + ' and '.join(said) + ' in its config.json' if said else 'Train another model'}"
