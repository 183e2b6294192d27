"""How a run's conversations are written, and what of that is kept with what was trained: its template, and its ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune.compose.model import call_plugin
from fitune.compose.special import special_ids

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


def ends(tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue | None) -> tuple[list[int], str]:
    """What ends an answer: special tokens, and, where the template has none for it, a text ("" for none)."""
    stops = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    if dialogue is None:
        return sorted(stops), ""
    whole: Any = tokenizer
    special = special_ids(tokenizer)
    bare = []
    for end in filter(None, dict.fromkeys((dialogue.end, *dialogue.ends))):
        marks = [token for token in whole(end, add_special_tokens=False)["input_ids"] if token in special]
        stops.update(map(int, marks[-1:]))
        bare += [] if marks else [end]
    return sorted(stops), bare[0] if bare else ""


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
        end_at(model, ends(tokenizer, dialogue)[0])


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
