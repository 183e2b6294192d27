"""Special tokens of a tokenizer: those that end answers are among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of the special tokens: those that have a name, e.g. `eos_token`, and those that were added as special."""
    whole: Any = tokenizer
    added = {int(number) for number, token in whole.added_tokens_decoder.items() if token.special}
    return added | set(map(int, tokenizer.all_special_ids))
