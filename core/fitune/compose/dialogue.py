"""How a run's conversations are written, and what of that is kept with what was trained: its template, and its ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune.compose.calling import call_plugin
from fitune.compose.stopping import ends_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from fitune.plugin.dataflow import DataContext
    from fitune.plugin.recipe import Recipe
    from fitune.plugin.records import Dialogue


def dialogue_of(recipe: Recipe, context: DataContext) -> Dialogue | None:
    """How the recipe's data stages write conversations; None where it trains on text. Raises `DataError`."""
    for use in recipe.stages:
        if use.record.dialogue is not None:
            return call_plugin(use, use.record.dialogue, use.options, context)
    return None


def end_at(model: PreTrainedModel, tokens: Iterable[int]) -> None:
    """Let the model's answers end at these tokens too: a base model that was taught to chat does not know its mark.

    They become part of its own settings (generation_config.json), which are saved with it.
    """
    settings: GenerationConfig | None = model.generation_config
    if settings is None:
        return
    known: Any = settings.eos_token_id
    before = [] if known is None else [known] if isinstance(known, int) else list(known)
    found = [*before, *(token for token in tokens if token not in before)]
    settings.eos_token_id = found[0] if len(found) == 1 else found or None


def end_as_trained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue | None) -> None:
    """Let a model's answers end where those of conversations were trained to end; of texts, nothing is changed."""
    if dialogue is not None:
        end_at(model, ends_of(tokenizer, dialogue).tokens)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue | None, directory: Path) -> None:
    """Write a tokenizer whose own template is the one that was trained with; the one given stays as it is."""
    whole: Any = tokenizer
    own = whole.chat_template
    try:
        if dialogue is not None:
            whole.chat_template = _templates(own, dialogue.template)
        whole.save_pretrained(str(directory))
    finally:
        whole.chat_template = own


def _templates(own: object, trained: str) -> str | dict[str, str]:
    """What takes the place of a tokenizer's own template; of several, the default, where that was trained with."""
    if isinstance(own, Mapping) and str(own.get("default", trained)) in trained:
        return {**own, "default": trained}
    return trained
