"""A GGUF file read again: by transformers, and by what the file says where transformers does not look.

transformers takes weights and most of the configuration. What it leaves out is read here from the file alone, as
llama.cpp reads it: the size of heads, biases, scaled rotary embeddings, and what texts are cut by.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from fitune.errors import RunError
from fitune.plugin.dataflow import Example
from fitune.trained.export.gguf_family import ROPE_FACTORS, frequencies
from fitune.trained.export.gguf_splits import PROBE, SPLITS, pre_tokenizer_of
from fitune.trained.export.gguf_tokenizer import CONTROL, USER_DEFINED, Vocabulary

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def opened(file: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model in a file, in a type of torch's. Raises `RunError` if a weight is missing there."""
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM

    reader = GGUFReader(str(file))
    with _quiet():
        config: Any = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
        _complete(config, reader)
        load: Any = AutoModelForCausalLM.from_pretrained
        model, report = load(
            str(file.parent),
            gguf_file=file.name,
            config=config,
            dtype=dtype,
            device_map={"": device},
            output_loading_info=True,
        )
    missing = set(report["missing_keys"]) - {"lm_head.weight"}
    if missing or report["mismatched_keys"]:
        wrong = sorted(missing | {str(key) for key in report["mismatched_keys"]})
        raise RunError(f"{file.name} read again lacks {', '.join(wrong[:3])} ({len(wrong)} in all): nothing is kept")
    factors = next((one.data for one in reader.tensors if one.name == ROPE_FACTORS), None)
    if factors is not None:
        rotary = model.model.rotary_emb
        rotary.inv_freq = (frequencies(model.config) / torch.from_numpy(factors.copy())).to(rotary.inv_freq.device)
    return cast("PreTrainedModel", model)


def _complete(config: Any, reader: GGUFReader) -> None:
    """Tell a configuration what the file says, and transformers does not read."""
    names = {one.name for one in reader.tensors}
    architecture = str(_value(reader, "general.architecture"))
    config.head_dim = int(_value(reader, f"{architecture}.attention.key_length"))
    if architecture == "llama":
        config.attention_bias = "blk.0.attn_output.bias" in names
        config.mlp_bias = "blk.0.ffn_gate.bias" in names
    if _value(reader, f"{architecture}.rope.scaling.type") == "linear":
        factor = float(_value(reader, f"{architecture}.rope.scaling.factor"))
        theta = float(_value(reader, f"{architecture}.rope.freq_base"))
        config.rope_parameters = {"rope_type": "linear", "factor": factor, "rope_theta": theta}


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def must_cut_alike(file: Path, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example], words: Vocabulary) -> None:
    """Raise `RunError` unless the file's tokenizer makes the same tokens of the rows' texts, and of one with all that
    tokenizers differ in.
    """
    from transformers import AutoTokenizer

    with _quiet():
        read: Any = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    _cut_as_told(read, words)
    before: Any = tokenizer
    for text in dict.fromkeys((*_texts(before, rows, words), PROBE)):
        was, found = (one(text, add_special_tokens=False)["input_ids"] for one in (before, read))
        if list(was) != list(found):
            place = next((at for at, (a, b) in enumerate(zip(was, found, strict=False)) if a != b), len(was))
            said = json.dumps(text[:60], ensure_ascii=False)
            raise RunError(
                f"the tokenizer in {file.name} does not make the same tokens as that of the run: of {said}..., "
                f"from token {place} on. Nothing is kept"
            )


def _cut_as_told(read: Any, words: Vocabulary) -> None:
    """Have a tokenizer cut texts as llama.cpp does by the name that the file gives: transformers knows some of them."""
    split = SPLITS.get(words.pre)
    if split is None:
        return
    backend = read.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizer_of(split)
    backend.model.ignore_merges = split.whole_first


def _texts(tokenizer: Any, rows: Sequence[Example], words: Vocabulary) -> Iterator[str]:
    """The texts between the special tokens of rows."""
    marks = {number for number, kind in enumerate(words.types) if kind in (CONTROL, USER_DEFINED)}
    for row in rows:
        part: list[int] = []
        for number in [*map(int, row.input_ids), *sorted(marks)[:1]]:
            if number not in marks:
                part.append(number)
                continue
            if part:
                yield tokenizer.decode(part, clean_up_tokenization_spaces=False)
            part = []


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and remarks, which are about reading such files in general; errors are raised."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # one of the bars asks nobody
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
