"""A merged model as one GGUF file, which llama.cpp and what is built on it read: weights, tokenizer, chat template.

Weights of one dimension stay in float32, as llama.cpp wants them; matrices are rounded once from what was merged, to
`f16`, `bf16` or `q8_0` (blocks of 32 numbers with a scale each). A row that is no multiple of 32 long is `f16` then.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from fitune.compose.model import built
from fitune.compose.special import special_ids
from fitune.compose.tokens import with_tokens
from fitune.errors import ModelError
from fitune.plugin.dataflow import Example
from fitune.trained.export.gguf_family import family_of, settings_of, tensors_of, told_of
from fitune.trained.export.gguf_read import must_cut_alike, opened
from fitune.trained.export.gguf_tokenizer import Vocabulary, vocabulary_of
from fitune.trained.form import Merged
from fitune.trained.open import must_write, tokenizer_for
from fitune.trained.parity import LIMITS, SHARES, Parity
from fitune.trained.seen import Seen, see

if TYPE_CHECKING:
    import gguf
    from torch import Tensor

    from fitune.trained.open import Trained

Type = Literal["f16", "bf16", "q8_0"]

DTYPES: dict[Type, torch.dtype] = {"f16": torch.float16, "bf16": torch.bfloat16}
"""Of types that torch has, too."""

NAMES: dict[Type, str] = {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""As the package `gguf` calls them."""

ROUNDED = 0.1
"""Largest relative difference that rounding to q8_0 explains, beside that of the type that was trained in; and how far
the share of the effect may be from 1. Measured: benchmarks/export_gguf.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """The form: one GGUF file in a directory."""

    name: str
    """Of the model; the file's is made of it and of the type."""
    type: Type

    option: ClassVar[str] = "--out"
    hint: ClassVar[str] = "Export with --type f16 or bf16 to see whether rounding alone does it"

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{self.name}-{self.type}.gguf"

    def must_take(self, trained: Trained) -> None:
        """Raise `ModelError` if the package is missing, or a GGUF file cannot say what the model is."""
        must_write(trained, "GGUF")
        if importlib.util.find_spec("gguf") is None:
            raise ModelError("the package gguf is not installed, which writes such files. Install it: pip install gguf")
        if trained.recipe.model.record.build_model is not None:
            config: Any = with_tokens(trained.recipe, built(trained.recipe)).config
            family_of(config)
            vocabulary_of(tokenizer_for(trained), None, (), int(config.vocab_size), None)

    def notices(self, trained: Trained) -> tuple[str, ...]:
        """What a person should know of the file."""
        return () if trained.recipe.model.record.build_model is None else told_of(built(trained.recipe).config)

    def dtype(self, own: torch.dtype) -> torch.dtype:
        """What was trained in float32 is rounded by the file alone; else it takes no more memory than that."""
        return own if own == torch.float32 else DTYPES.get(self.type, own)

    def write(self, merged: Merged, directory: Path) -> None:
        """Write the file, and prove that its tokenizer makes the same tokens of the rows."""
        family = family_of(merged.model.config)
        config: Any = merged.model.config
        words = vocabulary_of(merged.tokenizer, merged.dialogue, merged.rows, int(config.vocab_size), end_of(merged))
        _write(merged, words, directory / self.file, self.name, self.type, family.architecture)
        must_cut_alike(directory / self.file, merged.tokenizer, merged.rows, words)

    def see(self, directory: Path, rows: Sequence[Example], device: torch.device, own: torch.dtype) -> Seen:
        """By transformers' own reader of such files, in the type that was trained in, so that it has room there."""
        return see(opened(directory / self.file, device, own), rows)

    def judged(self, found: Parity) -> Parity:
        """With limits of the file's type, where that is coarser than what was trained in."""
        coarse = LIMITS[DTYPES[self.type]] if self.type in DTYPES else ROUNDED
        share = SHARES[DTYPES[self.type]] if self.type in DTYPES else ROUNDED
        noise = found.share_limit - SHARES.get(_dtype(found.dtype), 0.0)
        return replace(
            found,
            dtype=self.type,
            limit=max(found.limit, coarse),
            share_limit=max(found.share_limit, max(noise, 0.0) + share),
            cast_difference=None,
        )


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def end_of(merged: Merged) -> int | None:
    """The token that ends what the model answers; None where it was taught none."""
    if merged.dialogue is None:
        return None
    whole: Any = merged.tokenizer
    special = special_ids(merged.tokenizer)
    marks = [one for one in whole(merged.dialogue.end, add_special_tokens=False)["input_ids"] if one in special]
    return int(marks[-1]) if marks else None


def _write(merged: Merged, words: Vocabulary, file: Path, name: str, type_: Type, architecture: str) -> None:
    import gguf

    writer = gguf.GGUFWriter(file, architecture)
    try:
        _say_what_it_is(writer, merged, name, type_, architecture)
        _say_words(writer, words)
        tensors = [(one, weight, _kind(weight, type_)) for one, weight in _tensors(merged)]
        for one, weight, kind in tensors:
            shape = gguf.quant_shape_to_byte_shape(weight.shape, kind)
            writer.add_tensor_info(one, shape, np.dtype(np.uint8), int(np.prod(shape)), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, weight, kind in tensors:
            writer.write_tensor_data(_bytes(weight, kind))
    finally:
        writer.close()


def _tensors(merged: Merged) -> list[tuple[str, Tensor]]:
    return [(name, weight.detach()) for name, weight in tensors_of(merged.model, family_of(merged.model.config))]


def _say_what_it_is(writer: gguf.GGUFWriter, merged: Merged, name: str, type_: Type, architecture: str) -> None:
    import gguf

    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{NAMES[type_]}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    config: Any = merged.model.config
    for key, value in settings_of(config, family_of(config)):
        full = f"{architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        else:
            writer.add_uint32(full, value)


def _say_words(writer: gguf.GGUFWriter, words: Vocabulary) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.merges:
        writer.add_token_merges(words.merges)
    if words.scores:
        writer.add_token_scores(words.scores)
    for mark, number in words.marks.items():
        writer.add_uint32(f"tokenizer.ggml.{mark}_token_id", number)
    writer.add_add_bos_token(words.add_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(words.add_space)
    if words.template is not None:
        writer.add_chat_template(words.template)


def _kind(weight: Tensor, type_: Type) -> gguf.GGMLQuantizationType:
    """What a weight is written as."""
    import gguf

    if weight.dim() == 1:
        return gguf.GGMLQuantizationType.F32
    if type_ == "q8_0" and weight.shape[-1] % 32:
        return gguf.GGMLQuantizationType.F16
    return gguf.GGMLQuantizationType[NAMES[type_]]


def _bytes(weight: Tensor, kind: gguf.GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """A weight as it is in the file, `[rows, bytes of a row]`. Raises `ModelError` where float16 is too small."""
    import gguf

    numbers = weight.float().cpu().contiguous().numpy()
    if kind == gguf.GGMLQuantizationType.F16 and np.abs(numbers).max(initial=0) > np.finfo(np.float16).max:
        raise ModelError("a merged weight is larger than float16 can hold. Export with --type bf16")
    found = gguf.quants.quantize(numbers, kind)
    return np.ascontiguousarray(found).view(np.uint8)
