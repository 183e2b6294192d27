"""Chat template families for the tests of masks: each with a small tokenizer of its kind and its real special tokens.

What a family writes is given here as literal pieces, apart from the templates that are tested against it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fitune import IGNORED, Conversation, DataContext, DataError, Document, Example, Origin
from fitune_plugins.data import chat, tokenize

CORPUS = [
    "hi, how are you? I am well. The answer is 42, and the other answer is 17.\n\nUser: hello\n\nAssistant: hello",
    "  two blanks\n\n\nthree line ends: one, two\n\tand a tab. [INST] the question [/INST] the answer user assistant",
    "<|user|>\nsystem\n\n ### Response:\n\nhello there ::\n\n.\n\n>\n>\n>\n  hi  hi\n\nhi \n hi",
]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
Kind = Literal["gpt2", "gpt4", "gpt4-nfc", "llama", "metaspace", "unigram", "gemma"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a family puts around the messages of users and of the assistant."""

    name: str
    kind: Kind
    bos: str | None
    eos: str
    start: str = ""
    """Before everything, if there is no system message."""
    user: tuple[str, str]
    header: str
    """Of the assistant's turn: part of its prompt."""
    lead: str = ""
    """What the assistant writes before its answer."""
    mark: str
    """What it writes behind it."""
    after: str = ""
    closing: str = ""
    """At the end of the whole."""
    strips: bool = False
    others: tuple[str, ...] = ()
    """More special tokens."""
    eats: bool = False
    """Whether special tokens take in white space behind them."""

    def written(self, content: str) -> str:
        """What the assistant has to write for this content."""
        return self.lead + (content.strip() if self.strips else content) + self.mark

    def rendered(self, turns: Sequence[tuple[str, str]]) -> str:
        """The text of questions and answers."""
        clean = str.strip if self.strips else str
        whole = self.start
        for question, answer in turns:
            whole += self.user[0] + clean(question) + self.user[1] + self.header + self.written(answer) + self.after
        return whole + self.closing

    def marked_template(self) -> str:
        """A template of the same text with generation marks."""
        strip = ".strip()" if self.strips else ""

        def put(text: str) -> str:
            return "{{ " + json.dumps(text) + " }}"

        return (
            put(self.start)
            + "{% for m in messages %}{% if m.role == 'user' %}"
            + put(self.user[0]) + "{{ m.content" + strip + " }}" + put(self.user[1])
            + "{% else %}" + put(self.header)
            + "{% generation %}" + put(self.lead) + "{{ m.content" + strip + " }}" + put(self.mark)
            + "{% endgeneration %}" + put(self.after)
            + "{% endif %}{% endfor %}" + put(self.closing)
        )  # fmt: skip


VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
IM = {"user": ("<|im_start|>user\n", "<|im_end|>\n"), "header": "<|im_start|>assistant\n", "mark": "<|im_end|>"}
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
FAMILIES = (
    Family(name="chatml", kind="gpt2", bos=None, eos="<|im_end|>", after="\n", others=("<|im_start|>",), **IM),  # type: ignore[arg-type]
    Family(name="llama-2", kind="llama", bos="<s>", eos="</s>", user=("<s>[INST] ", " [/INST]"), header="",
           lead=" ", mark=" </s>", strips=True),
    Family(name="llama-3", kind="gpt4", bos="<|begin_of_text|>", eos="<|eot_id|>", start="<|begin_of_text|>",
           user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
           header="<|start_header_id|>assistant<|end_header_id|>\n\n", mark="<|eot_id|>", strips=True,
           others=("<|start_header_id|>", "<|end_header_id|>")),
    Family(name="mistral", kind="metaspace", bos="<s>", eos="</s>", start="<s>", user=(" [INST] ", " [/INST]"),
           header="", lead=" ", mark="</s>"),
    Family(name="gemma", kind="gemma", bos="<bos>", eos="<eos>", start="<bos>",
           user=("<start_of_turn>user\n", "<end_of_turn>\n"), header="<start_of_turn>model\n",
           mark="<end_of_turn>", after="\n", strips=True, others=("<start_of_turn>", "<end_of_turn>")),
    Family(name="deepseek-llm", kind="gpt2", bos=DEEPSEEK[0], eos=DEEPSEEK[1], start=DEEPSEEK[0],
           user=("User: ", "\n\n"), header="Assistant:", lead=" ", mark=DEEPSEEK[1]),
    Family(name="qwen", kind="gpt4-nfc", bos=None, eos="<|im_end|>", start=QWEN, after="\n",
           others=("<|im_start|>", "<|endoftext|>"), **IM),  # type: ignore[arg-type]
    Family(name="phi-3", kind="llama", bos="<s>", eos="<|endoftext|>", user=("<|user|>\n", "<|end|>\n"),
           header="<|assistant|>\n", mark="<|end|>", after="\n", closing="<|endoftext|>",
           others=("<|user|>", "<|assistant|>", "<|end|>", "<|system|>"), eats=True),
    Family(name="zephyr", kind="llama", bos="<s>", eos="</s>", user=("<|user|>\n", "</s>\n"),
           header="<|assistant|>\n", mark="</s>", after="\n"),
    Family(name="vicuna", kind="unigram", bos="<s>", eos="</s>", start="<s>" + VICUNA, user=("USER: ", " "),
           header="ASSISTANT:", lead=" ", mark="</s>"),
)  # fmt: skip


@cache
def tokenizer(family: Family) -> PreTrainedTokenizerBase:
    """A tokenizer of the family's kind, in which the end-of-text token pads too."""
    from tokenizers import AddedToken

    backend = _backend(family.kind)
    special = [token for token in (family.bos, family.eos, *family.others) if token]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=family.eats) for t in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=family.eos, bos_token=family.bos)
    fast.pad_token = family.eos
    return fast


@cache
def _model(kind: Kind) -> str:
    """A small model of words and parts of words, as JSON."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind.startswith("gpt"):
        backend = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(GPT2 if kind == "gpt2" else GPT4), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        if kind == "gpt4-nfc":
            backend.normalizer = normalizers.NFC()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(CORPUS, trainer)
        return str(backend.to_str())
    blanks = normalizers.Replace(" ", "▁")
    trained = Tokenizer(models.BPE())
    trained.normalizer = blanks
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    return str(trained.to_str())


def _backend(kind: Kind) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    if kind.startswith("gpt"):
        backend = Tokenizer.from_str(_model(kind))
        backend.post_processor = processors.ByteLevel(trim_offsets=True)  # as Llama 3's, which hides white space
        return backend
    learned = json.loads(_model(kind))["model"]
    pieces = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)], *learned["vocab"]]
    vocab = {
        piece: number
        for number, piece in enumerate(dict.fromkeys(p for p in pieces if "\n" not in p and "\t" not in p))
    }
    if kind == "unigram":
        scores = [(piece, -1000.0 if re.fullmatch(r"<0x..>|<unk>", piece) else -10.0 + len(piece)) for piece in vocab]
        backend = Tokenizer(models.Unigram(scores, 0, True))
    else:
        merges = [tuple(merge) for merge in learned["merges"] if "".join(merge) in vocab and set(merge) <= set(vocab)]
        backend = Tokenizer(
            models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
    blanks = normalizers.Replace(" ", "▁")
    if kind == "llama":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks])
    elif kind == "gemma":
        backend.normalizer = blanks
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = [] if kind == "gemma" else [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def context(made: PreTrainedTokenizerBase, counted: list[str] | None = None, *, skip: bool = False) -> DataContext:
    """What a data stage may know of a run; counts are added to the list."""
    return DataContext(
        tokenizer=made, length=4096, seed=0, count=([] if counted is None else counted).append, skip_bad_rows=skip
    )


def conversation(*turns: str | dict[str, Any], tools: Sequence[Any] = ()) -> Conversation:
    """A conversation in which questions and answers alternate; other messages are given whole."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        role = "assistant" if messages and messages[-1]["role"] == "user" else "user"
        messages.append(turn if isinstance(turn, dict) else {"role": role, "content": turn})
    return Conversation(messages=tuple(messages), origin=Origin(file="data.jsonl", row=1), tools=tuple(tools))


def render(made: PreTrainedTokenizerBase, talk: Conversation, **options: Any) -> Document:
    """The conversation as the stage `chat` renders it."""
    (stage,) = chat.ft_data_stages()
    (document,) = stage.make(chat.ChatOptions(**options), context(made))(iter([talk]))
    assert isinstance(document, Document)
    return document


def label(made: PreTrainedTokenizerBase, document: Document) -> Example:
    """The document as the stage `tokenize` gives it."""
    (stage,) = tokenize.ft_data_stages()
    (example,) = stage.make(stage.options(), context(made))(iter([document]))
    assert isinstance(example, Example)
    return example


def marked(document: Document) -> list[str]:
    """The texts that are trained on."""
    return [document.text[start:end] for start, end in document.trained]


def targets(made: PreTrainedTokenizerBase, example: Example) -> list[str]:
    """The decoded runs of tokens that are trained on."""
    whole: Any = made
    backend = whole.backend_tokenizer
    anchor = backend.token_to_id("<0x41>") or backend.token_to_id("A")  # so that no blank at the beginning is stripped
    runs: list[list[int]] = []
    before = IGNORED
    for token, target in zip(example.input_ids.tolist(), example.labels.tolist(), strict=True):
        before, previous = target, before
        if target == IGNORED:
            continue
        assert target == token
        if previous == IGNORED:
            runs.append([])
        runs[-1].append(token)
    return [backend.decode([anchor, *run], skip_special_tokens=False).removeprefix("A") for run in runs]


def error(talk: Conversation, made: PreTrainedTokenizerBase, **options: Any) -> str:
    """What the stage `chat` says of a conversation that it cannot use."""
    try:
        render(made, talk, **options)
    except DataError as found:
        return found.message
    raise AssertionError("it is taken")
