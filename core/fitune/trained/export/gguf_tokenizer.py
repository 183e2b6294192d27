"""A tokenizer as a GGUF file has it: tokens by number, what each is, how bytes become tokens, and the marks.

llama.cpp knows two kinds that these families use: byte-level BPE ("gpt2"), which has merges, and SentencePiece's
("llama"), which has a score for each token and merges those first whose result scores best.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fitune.errors import ModelError
from fitune.plugin.dataflow import Example
from fitune.trained.export.gguf_family import OTHERWISE
from fitune.trained.export.gguf_spaces import adds_space
from fitune.trained.export.gguf_splits import name_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fitune.plugin.records import Dialogue

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""What a token is, in `tokenizer.ggml.token_type`."""

UNREACHED = -1e6
"""Score of what no merge makes: below every rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What is written of a tokenizer."""

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    add_bos: bool = False
    add_space: bool = False
    marks: Mapping[str, int]
    """By what llama.cpp calls them: "bos", "eos", "unknown", "padding"."""
    template: str | None


def vocabulary_of(
    tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue | None, rows: Sequence[Example], size: int, end: int | None
) -> Vocabulary:
    """What a GGUF file says of a tokenizer; `size` is the number of the model's embeddings, `end` the token that ends
    its answers. Raises `ModelError` if llama.cpp has no way to do what it does.
    """
    whole: Any = tokenizer
    if not hasattr(whole, "backend_tokenizer"):
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} has no fast form, which is what is written. {OTHERWISE}"
        )
    parts = json.loads(whole.backend_tokenizer.to_str())
    model, added = parts["model"], parts["added_tokens"]
    if model["type"] != "BPE":
        raise ModelError(f"no GGUF is written of a tokenizer of the kind {model['type']}, but of BPE. {OTHERWISE}")
    tokens = _tokens(model["vocab"], added, size)
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    types = _types(tokens, added, tokenizer.unk_token_id, bytewise=bool(model.get("byte_fallback")))
    shared = Vocabulary(
        model="gpt2",
        pre="default",
        tokens=tuple(token if token is not None else f"[PAD{number}]" for number, token in enumerate(tokens)),
        types=tuple(types),
        marks=_marks(tokenizer, end),
        add_bos=_begins(tokenizer, rows),
        template=dialogue.template if dialogue is not None else own_template(tokenizer),
    )
    if model.get("byte_fallback"):
        return replace(shared, model="llama", scores=_scores(tokens, merges), add_space=adds_space(tokenizer, rows))
    return replace(shared, pre=_pre(whole, parts, merges), merges=tuple(merges))


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's own chat template; of several, the default."""
    found: Any = tokenizer.chat_template
    found = found.get("default") if isinstance(found, Mapping) else found
    return found if isinstance(found, str) else None


def _tokens(vocabulary: Mapping[str, int], added: Sequence[Mapping[str, Any]], size: int) -> list[str | None]:
    """Tokens by number, None where there is none."""
    numbered = {number: token for token, number in vocabulary.items()}
    numbered |= {one["id"]: one["content"] for one in added}
    last = max(numbered)
    if last >= size:
        raise ModelError(
            f"the tokenizer has a token {last} ({numbered[last]!r}), and the model embeddings for {size:,}: a file of "
            "both cannot be read. Give the model's own tokenizer"
        )
    return [numbered.get(number) for number in range(size)]


def _types(
    tokens: Sequence[str | None], added: Sequence[Mapping[str, Any]], unknown: object, *, bytewise: bool
) -> list[int]:
    kinds = {one["id"]: CONTROL if one["special"] else USER_DEFINED for one in added}
    found = []
    for number, token in enumerate(tokens):
        if token is None:
            found.append(UNUSED)
        elif bytewise and number == unknown:
            found.append(UNKNOWN)
        elif bytewise and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            found.append(BYTE)
        else:
            found.append(kinds.get(number, NORMAL))
    return found


def _marks(tokenizer: PreTrainedTokenizerBase, end: int | None) -> dict[str, int]:
    own = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id if end is None else end,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    return {name: int(number) for name, number in own.items() if isinstance(number, int)}


def adds_beginning(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it puts a mark of beginning before every text by itself, and not a chat template alone, which writes it
    as text: llama.cpp would write it once more.
    """
    mark, whole = tokenizer.bos_token_id, tokenizer
    ids: Any = whole("a")["input_ids"]
    return mark is not None and len(ids) > 0 and int(ids[0]) == mark


def _begins(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> bool:
    """Whether texts begin with that mark, as those that were trained on do."""
    mark = tokenizer.bos_token_id
    return adds_beginning(tokenizer) and bool(rows) and all(int(row.input_ids[0]) == mark for row in rows)


def _scores(tokens: Sequence[str | None], merges: Sequence[str]) -> tuple[float, ...]:
    """For SentencePiece's way: less the rank of the first merge that makes a token, so that the same come first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    return tuple(UNREACHED if token is None or token not in ranks else -float(ranks[token]) for token in tokens)


def _pre(tokenizer: Any, parts: Mapping[str, Any], merges: Sequence[str]) -> str:
    """What llama.cpp calls the way in which it cuts. Raises `ModelError`."""
    normal = parts["normalizer"]
    if normal is not None and normal.get("type") != "NFC":  # Qwen's; a text that is in that form already is the same
        raise ModelError(f"no GGUF is written of a tokenizer that normalises by {normal.get('type')}. {OTHERWISE}")
    if not merges:
        raise ModelError(f"no GGUF is written of a tokenizer of single bytes: llama.cpp wants merges. {OTHERWISE}")
    cuts = tokenizer.backend_tokenizer.pre_tokenizer
    whole_first = bool(parts["model"].get("ignore_merges"))
    name = None if cuts is None else name_of(cuts, whole_first=whole_first)
    if name is None:
        raise ModelError(f"the tokenizer cuts texts in none of the ways that are known here of llama.cpp. {OTHERWISE}")
    return name
