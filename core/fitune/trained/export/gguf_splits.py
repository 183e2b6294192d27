"""What llama.cpp cuts a text by before it merges bytes to tokens: it knows that by name, and a GGUF file gives one.

A name is right if it cuts as the tokenizer does that was trained with: both are tried on a text with all that they may
differ in. The patterns are those of the models' own tokenizers, as llama.cpp has them under these names
(`src/llama-vocab.cpp`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""Of scripts that know capitals, as the tokenizer of DeepSeek LLM lists them."""

MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
IDEOGRAPHS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CAPITALS, SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How one name cuts: each pattern cuts what the one before it left."""

    patterns: tuple[str, ...] = ()
    words: bool = False
    """Whether what is left is cut as GPT-2 cuts it."""
    whole_first: bool = False
    """Whether a piece that is a token as a whole becomes that one, whatever the merges say."""


SPLITS: Mapping[str, Split] = {
    "gpt-2": Split(words=True),
    "smollm": Split(patterns=(r"\p{N}",), words=True),
    "llama-bpe": Split(patterns=(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}",), whole_first=True),
    "qwen2": Split(patterns=(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}",)),
    "qwen35": Split(
        patterns=(
            rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
    "tekken": Split(
        patterns=(
            rf"[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}*{SMALL}+|[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}+{SMALL}*|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        whole_first=True,
    ),
    "deepseek-llm": Split(
        patterns=(
            r"[\r\n]",
            rf"\s?[{LETTERS}]+",
            MARKS,
            r"\s+$",
            IDEOGRAPHS,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": Split(patterns=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", IDEOGRAPHS, r"\p{N}")),
}
"""By the value of `tokenizer.ggml.pre`."""

PROBE = (
    "Don't we'LL they'Re I've it's I'D 'tis x's7 3 33 333 4444 55555 ٣٤ Ⅳ² 1,234.50 v2.0-rc1\n\n \n  a   b \t\tc\r\nd"
    "\r\r  snake_case camelCase HTTPServer ÄÖÜßéÉ naïve Ωmega привет Мир ԱՖ नमस्ते ไทย 日本語テキスト 中文，测试。한국어 "
    "ｆｕｌｌ 🙂👍 «quoted» “curly” ‘single’ a/b\\c <tag/> {x:[1,2]} $9.99 #1 @me !!! ... ?! — – - -- == != => `code`\n"
    "\t- item/\n      deep\n\n\n\nend a\u00a0b\u3000c  trailing   "
)
"""A text with what cuts differ in: contractions, digits, blanks, lines, marks and many scripts."""


def pre_tokenizer_of(split: Split) -> PreTokenizer:
    """What cuts so, and writes bytes as byte-level vocabularies do."""
    from tokenizers import Regex, pre_tokenizers

    parts: list[Any] = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in split.patterns]
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.words))
    return pre_tokenizers.Sequence(parts)


def name_of(cuts: PreTokenizer, *, whole_first: bool) -> str | None:
    """The name under which llama.cpp cuts as a tokenizer does; None if there is none."""
    found = _pieces(cuts)
    for name, split in SPLITS.items():
        if split.whole_first == whole_first and _pieces(pre_tokenizer_of(split)) == found:
            return name
    return None


def _pieces(cuts: PreTokenizer) -> list[str]:
    return [piece for piece, _ in cuts.pre_tokenize_str(PROBE)]
