"""The data of a run, prepared before anything is on a card: every composition of the run works with the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from fitune.data.prepare import UNWATCHED, Prepared, Watch, context_of, held_out_data, training_data
from fitune.data.tokenizer import tokenizer_of
from fitune.errors import ModelError
from fitune.plugin.dataflow import DataContext
from fitune.plugin.model import known_tokens
from fitune.plugin.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """What a run trains and is evaluated on."""

    tokenizer: PreTrainedTokenizerBase
    context: DataContext
    data: Prepared
    held_out: Prepared | None

    @property
    def counts(self) -> tuple[tuple[str, int], ...]:
        """What the data stages counted: (what, how many)."""
        of_eval = [(f"held out: {what}", number) for what, number in (self.held_out.notes if self.held_out else ())]
        return (*self.data.notes, *of_eval)

    def must_be_known_to(self, model: PreTrainedModel) -> None:
        """Raise `ModelError` if the data hold a token that the model has no embedding of: a GPU's own error says
        nothing.
        """
        known = known_tokens(model)
        of_data = [prepared.highest for prepared in (self.data, self.held_out) if prepared is not None]
        highest = max(cast(int, self.tokenizer.pad_token_id), *of_data)
        if highest >= known:
            raise ModelError(
                f"the tokenizer gives token {highest} ({self.tokenizer.convert_ids_to_tokens(highest)!r}), but the "
                f"model knows {known} tokens only. They do not belong together: check the model's directory"
            )


def gather(recipe: Recipe, watch: Watch = UNWATCHED) -> RunData:
    """Prepare a recipe's data, or find them prepared. Raises the errors of `fitune.errors`."""
    tokenizer = tokenizer_of(recipe)
    context = context_of(recipe, tokenizer)
    return RunData(
        tokenizer=tokenizer,
        context=context,
        data=training_data(recipe, context, watch),
        held_out=held_out_data(recipe, context, watch),
    )
