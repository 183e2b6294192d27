"""Where SentencePiece's blank goes: llama.cpp puts one before every text behind a special token, or before none.

Tokenizers do it so (Llama 2's first form), or before the text's beginning alone (`prepend_scheme = "first"`). What the
latter do behind a special token, which is where turns of a conversation begin, is only told by a file that says "none",
and then nothing tells it of a text that begins without one. So the rows that were trained on decide.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fitune.errors import ModelError
from fitune.plugin.dataflow import Example
from fitune.trained.export.gguf_family import OTHERWISE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLANK = "▁"


def adds_space(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> bool:
    """Whether llama.cpp is to put a blank before each text, so that it makes the tokens of the rows. Raises
    `ModelError` if it makes them neither with blanks nor without.
    """
    known = list(_texts(tokenizer, rows))
    by_itself = _first_token(tokenizer).startswith(BLANK)
    for blank in (by_itself, not by_itself):
        cuts = _as_llama_cpp(tokenizer, blank=blank)
        if all(cuts.encode(text, add_special_tokens=False).ids == ids for text, ids in known):
            return blank
    raise ModelError(
        "the tokenizer puts a blank before a text's beginning and none behind special tokens, and rows have both: "
        f"llama.cpp has them in both places, or in neither. {OTHERWISE}"
    )


def _texts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> Iterator[tuple[str, list[int]]]:
    """Texts of rows, special tokens in them, with the tokens that they are: as the tokenizer itself makes them, which
    tells that it is the text, and not one that reads alike. llama.cpp puts a mark of beginning there by itself.
    """
    whole: Any = tokenizer
    for row in rows:
        ids = [int(number) for number in row.input_ids]
        for own in (ids[1:], ids) if ids[:1] == [tokenizer.bos_token_id] else (ids,):
            text = whole.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if list(whole(text, add_special_tokens=False)["input_ids"]) == own:
                yield text, own
                break


def _as_llama_cpp(tokenizer: PreTrainedTokenizerBase, *, blank: bool) -> Any:
    """What cuts as llama.cpp does: special tokens first, then each text between them by itself."""
    from tokenizers import Tokenizer

    whole: Any = tokenizer
    parts = json.loads(whole.backend_tokenizer.to_str())
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": BLANK}] if blank else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": BLANK})
    parts |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None, "post_processor": None}
    return Tokenizer.from_str(json.dumps(parts))


def _first_token(tokenizer: PreTrainedTokenizerBase) -> str:
    whole: Any = tokenizer
    return str(whole.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0])
