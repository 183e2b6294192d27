"""The tokenizer of a recipe's model, with the tokens that the recipe adds to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from fitune.plugin.contract import blame, wrong_gift
from fitune.plugin.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A tokenizer, and what a recipe has made of it."""

    tokenizer: PreTrainedTokenizerBase
    before: int
    """One more than the highest id that the tokenizer had by itself."""
    new: tuple[int, ...] = ()
    """Ids of the tokens that were added, ascending."""
    known: tuple[str, ...] = ()
    """Tokens that were to be added, and that it has already: they are what they were."""


def tokenizer_of(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model; no weight is read. Raises `ModelError` or `PluginError`."""
    return vocabulary_of(recipe).tokenizer


def vocabulary_of(recipe: Recipe) -> Vocabulary:
    """The same, with what was added to it. Raises `ModelError` or `PluginError`."""
    loader = f'model loader "{recipe.model.record.name}"'
    with blame(loader):
        found: object = recipe.model.record.load_tokenizer(recipe.model.options)
    if getattr(found, "backend_tokenizer", None) is None:
        raise wrong_gift(f"{loader}: load_tokenizer", found, "a fast tokenizer of transformers")
    return _with_new(found, recipe)


def _with_new(tokenizer: Any, recipe: Recipe) -> Vocabulary:
    from tokenizers import AddedToken

    tokens, own = recipe.model.tokens, tokenizer.get_vocab()
    asked = {**dict.fromkeys(tokens.add_tokens, False), **dict.fromkeys(tokens.add_special_tokens, True)}
    for token, special in asked.items():
        if token not in own:
            # As it stands: without what a normaliser makes of it, and whatever is beside it.
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=special)], special_tokens=special)
    new = sorted(int(tokenizer.convert_tokens_to_ids(token)) for token in asked if token not in own)
    return Vocabulary(
        tokenizer=cast("PreTrainedTokenizerBase", tokenizer),
        before=1 + max(own.values(), default=-1),
        new=tuple(new),
        known=tuple(token for token in asked if token in own),
    )
