"""Tokens and labels of a text: a token is trained on if, and only if, it is all within a trained range.

A text is tokenized in one pass. That is what a model sees when it answers, but at the border of a range: there, the
prompt ends before the answer is written, so no token may hold a part of both, e.g. the two line ends of a header that
ends with one and an answer that begins with one. Where a token does, or where the tokenizer splits the end of a prompt
in another way because of what follows, the text is cut at that border, and its pieces are tokenized one by one, as
they are when the model answers: tokens of the prompt first, tokens of the answer behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fitune import IGNORED, DataError, Document, Example

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Token = tuple[int, int, int]
"""Id, and the range of characters that it stands for."""

Range = tuple[int, int, tuple[int, ...]]
"""The first token of what is trained on, the one behind the last, and the borders that tokens do not keep to."""

ANCHORS = ("\n", "0", "a")
"""Texts to put before a piece, so that a tokenizer does not take its beginning for the beginning of a text."""

CACHED = 32
"""Most characters of a prompt's end whose tokens are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Added:
    """What the tokenizer puts around a text by itself."""

    before: tuple[int, ...]
    behind: tuple[int, ...]


class Labeller:
    """Turns documents to examples, with a copy of a tokenizer that pads, cuts and adds nothing."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from tokenizers import Tokenizer

        whole: Any = tokenizer
        self.backend = Tokenizer.from_str(whole.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.backend.no_truncation()
        self.added = self._added()
        bare: Any = self.backend
        bare.post_processor = None  # it may trim white space off the ranges of tokens
        self.own = set(self.backend.get_added_tokens_decoder())
        """Ids of tokens that are found in a text before it is split, e.g. those of a chat template."""
        self.prefixes = self.backend.encode("a").tokens[0].startswith(("▁", "Ġ"))
        """Whether a text is given a blank at its beginning."""
        self.ends: dict[str, list[int]] = {}
        """Tokens of the ends of prompts, behind the last of the tokenizer's own tokens."""

    def encode(self, documents: Sequence[Document]) -> list[Encoding]:
        """The documents' texts in tokens, on all cores; other Python code runs meanwhile."""
        return self.backend.encode_batch([document.text for document in documents], add_special_tokens=False)

    def example(self, document: Document, encoding: Encoding) -> Example:
        """A document with its labels, from its tokens. Raises `DataError` if they cannot be told."""
        import numpy as np

        text, ids, trained = document.text, encoding.ids, document.trained
        ranges = [self._tokens(text, encoding, ids, start, end) for start, end in trained]
        cuts = {cut for _, _, cuts in ranges for cut in cuts}
        if cuts:
            ids, ranges = self._cut(document, cuts)
        offset = 0
        if not document.special:
            before, behind = self.added.before, self.added.behind
            if behind and trained and trained[-1][1] == len(text):
                ranges.append((len(ids), len(ids) + len(behind), ()))
            ids, offset = [*before, *ids, *behind], len(before)
        array = np.array(ids, dtype=np.int32)
        labels = np.full_like(array, IGNORED)
        for first, last, _ in ranges:
            labels[first + offset : last + offset] = array[first + offset : last + offset]
        return Example(input_ids=array, labels=labels, origin=document.origin)

    def _tokens(self, text: str, encoding: Encoding, ids: Sequence[int], start: int, end: int) -> Range:
        """The first token of a range, the one behind its last, and the borders that a token does not keep to."""
        cuts: list[int] = []
        first, begins = _token_at(encoding, start, len(text))
        last, ends = _token_at(encoding, end, len(text))
        if begins < start or self._other_prompt(text, encoding, ids, start, first):
            cuts.append(start)
        if ends < end:
            if ids[last] not in self.own:
                cuts.append(end)
            last += 1  # a token of the tokenizer's own takes in white space behind it, and stays itself
        return first, last, tuple(cuts)

    def _other_prompt(self, text: str, encoding: Encoding, ids: Sequence[int], start: int, first: int) -> bool:
        """Whether a prompt that ends in white space is split in another way because of what follows it.

        Tokenizers split a run of white space before its last character if a word follows (GPT-2's `\\s+(?!\\S)`).
        """
        if start < 2 or not (text[start - 1].isspace() and text[start - 2].isspace()):
            return False
        own = first - 1
        while own >= 0 and ids[own] not in self.own:
            own -= 1
        begin = _characters(encoding, own)[0] if own >= 0 else 0
        prompt = text[begin:start]
        alone = self.ends.get(prompt)
        if alone is None:
            alone = self.backend.encode(prompt, add_special_tokens=False).ids
            if len(prompt) <= CACHED:
                self.ends[prompt] = alone
        return alone != list(ids[max(own, 0) : first])

    # ------------------------------------------------------------------------------------------------- piece by piece

    def _cut(self, document: Document, cuts: set[int]) -> tuple[list[int], list[Range]]:
        """Tokens of a text that is cut at these places, and of each trained range. Raises `DataError`."""
        tokens = self._pieces(document, cuts)
        while more := self._joined(document, tokens) - cuts:  # a piece may be split in another way than the whole
            cuts |= more
            tokens = self._pieces(document, cuts)
        ranges: list[Range] = []
        for start, end in document.trained:
            inside = [at for at, (_, begin, last) in enumerate(tokens) if begin < end and last > start]
            ranges.append((inside[0], inside[-1] + 1, ()) if inside else (0, 0, ()))
        return [id_ for id_, _, _ in tokens], ranges

    def _joined(self, document: Document, tokens: Sequence[Token]) -> set[int]:
        """The borders of trained ranges that lie within a token."""
        starts, ends = ({border[side] for border in document.trained} for side in (0, 1))
        joined: set[int] = set()
        for id_, begin, last in tokens:
            borders = starts if id_ in self.own else starts | ends
            joined |= {border for border in borders if begin < border < last}
        return joined

    def _pieces(self, document: Document, cuts: set[int]) -> list[Token]:
        tokens: list[Token] = []
        for begin, end in pairwise(sorted({0, len(document.text), *cuts})):
            found = self._piece(document.text[begin:end], first=begin == 0)
            if found is None:
                raise DataError(
                    f"{document.origin}: the tokenizer joins an answer with the text around it (at character {begin}), "
                    "so its tokens cannot be told exactly. Use another chat template"
                )
            tokens += [(id_, start + begin, last + begin) for id_, start, last in found]
        return tokens

    def _piece(self, text: str, *, first: bool) -> list[Token] | None:
        """Tokens of a piece, as they are in the middle of a text; None if that cannot be told."""
        for anchor in ("",) if first or not self.prefixes else ANCHORS:
            encoding = self.backend.encode(anchor + text, add_special_tokens=False)
            at, begins = _token_at(encoding, len(anchor), len(anchor) + len(text))
            if begins >= len(anchor):
                skipped = len(anchor)
                tokens = zip(encoding.ids[at:], encoding.offsets[at:], strict=True)
                return [(id_, start - skipped, end - skipped) for id_, (start, end) in tokens]
        return None

    def _added(self) -> _Added:
        encoding = self.backend.encode("a", add_special_tokens=True)
        added = encoding.special_tokens_mask
        text = [at for at, mark in enumerate(added) if not mark]
        if not text:
            return _Added(before=(), behind=())
        return _Added(before=tuple(encoding.ids[: text[0]]), behind=tuple(encoding.ids[text[-1] + 1 :]))


def _token_at(encoding: Encoding, character: int, characters: int) -> tuple[int, int]:
    """The token of a character and where it begins; that of the next one, if a tokenizer drops the character."""
    while character < characters:
        token = encoding.char_to_token(character)
        if token is not None:
            return token, _characters(encoding, token)[0]
        character += 1
    return len(encoding), characters


def _characters(encoding: Encoding, token: int) -> tuple[int, int]:
    found = encoding.token_to_chars(token)
    return found if found is not None else (0, 0)
