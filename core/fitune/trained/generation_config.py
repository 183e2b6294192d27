"""A model's own settings for generating text (generation_config.json), made fit to be saved with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


def end_at(model: PreTrainedModel, tokens: Iterable[int]) -> None:
    """Let the model's answers end at these tokens too: a base model that was taught to chat does not know its mark."""
    settings: GenerationConfig | None = model.generation_config
    if settings is None:
        return
    known: Any = settings.eos_token_id
    before = [] if known is None else [known] if isinstance(known, int) else list(known)
    ends = [*before, *(token for token in tokens if token not in before)]
    settings.eos_token_id = ends[0] if len(ends) == 1 else ends or None
