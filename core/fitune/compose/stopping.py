"""Where answers end: one way to stop, for `ft generate` and for the held-out answers of an evaluation.

An answer ends at a special token, or at a text that no special token ends ("\\n### User"), which may be several tokens.
transformers' own `stop_strings` lays a table of the whole vocabulary on the card; here, the last tokens of each row are
decoded on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fitune.compose.special import special_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from fitune.plugin.records import Dialogue


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What ends an answer."""

    tokens: tuple[int, ...] = ()
    """Special tokens, ascending."""
    texts: tuple[str, ...] = ()
    """Texts that hold no special token."""

    def cut(self, text: str) -> str:
        """What the model wrote, up to the first of the texts."""
        return text[: min((at for at in map(text.find, self.texts) if at >= 0), default=len(text))]

    def without(self, text: str) -> str:
        """An answer of the data without the text that ends it."""
        return text.removesuffix(next((end for end in self.texts if text.endswith(end)), ""))

    def begun(self, text: str) -> int:
        """How many characters at the end of a text may be the beginning of an end."""
        longest = max(map(len, self.texts), default=0)
        sizes = range(min(longest - 1, len(text)), 0, -1)
        return next((size for size in sizes if any(end.startswith(text[-size:]) for end in self.texts)), 0)

    def arguments(self, tokenizer: PreTrainedTokenizerBase, prompt: int) -> dict[str, Any]:
        """What `generate` must be given, beside the tokens, to stop at the texts behind a prompt of so many tokens."""
        from transformers import StoppingCriteriaList

        return {"stopping_criteria": StoppingCriteriaList([self._criterion(tokenizer, prompt)])} if self.texts else {}

    def _criterion(self, tokenizer: PreTrainedTokenizerBase, prompt: int) -> Callable[..., Tensor]:
        window = max(len(text.encode()) for text in self.texts) + MARGIN

        def ended(ids: Tensor, scores: Any, **named: Any) -> Tensor:
            start = max(prompt, ids.shape[1] - window)
            texts = [_behind(tokenizer, row, start > 0) for row in ids[:, max(start - 1, 0) :].tolist()]
            return ids.new_tensor([self.cut(text) != text for text in texts]).bool()

        return ended


MARGIN = 8
"""Tokens that are decoded beside those that an end can be: each is a byte at least, but for special ones."""


def _behind(tokenizer: PreTrainedTokenizerBase, ids: list[int], skip: bool) -> str:
    """The text of tokens, `skip` without that of the first: many tokenizers drop a blank that begins a text."""
    first, whole = (
        str(tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for part in (ids[: int(skip)], ids)
    )
    return whole.removeprefix(first)


def ends_of(tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue | None) -> Ends:
    """What ends answers: the end of text, and what the template writes behind answers; of plain texts, what the
    tokenizer puts behind each by itself.
    """
    whole: Any = tokenizer
    special = special_ids(tokenizer)
    stops = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    if dialogue is None:
        return Ends(tokens=tuple(sorted(stops | ({*added_behind(tokenizer)} & special))))
    texts = []
    for end in filter(None, dict.fromkeys((dialogue.end, *dialogue.ends))):
        marks = [token for token in whole(end, add_special_tokens=False)["input_ids"] if token in special]
        stops.update(map(int, marks[-1:]))
        texts += [] if marks else [end]
    return Ends(tokens=tuple(sorted(stops)), texts=tuple(texts))


def added_behind(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that a tokenizer puts behind every text by itself."""
    whole: Any = tokenizer
    bare, ended = (list(whole("a", add_special_tokens=add)["input_ids"]) for add in (False, True))
    place = next((at for at in range(len(ended)) if ended[at : at + len(bare)] == bare), len(ended))
    return [int(token) for token in ended[place + len(bare) :]]
