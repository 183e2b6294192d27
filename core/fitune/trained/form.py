"""What a merged model is written as, and how that is read again: a plain model of transformers, or another form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from fitune.compose.dialogue import save_tokenizer
from fitune.plugin.dataflow import Example
from fitune.runs.card import gives_scores
from fitune.trained.parity import Parity
from fitune.trained.seen import Seen, see

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fitune.plugin.records import Dialogue
    from fitune.trained.open import Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A merged model in memory, with all that is written of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dialogue: Dialogue | None
    """How the run wrote conversations; None where it trained on text."""
    rows: Sequence[Example]
    """Those that it is compared on."""


class Form(Protocol):
    """What a merged model is written as."""

    option: ClassVar[str]
    """Of the command: where it is written to."""
    hint: ClassVar[str]
    """What to try where it is not the model that was trained."""

    @property
    def file(self) -> str | None:
        """Name of the one file that holds the weights, where a reader has to be told; None for `from_pretrained`'s."""

    def must_take(self, trained: Trained) -> None:
        """Raise an error of `fitune.errors` if the run's model cannot be written so. Reads no weight."""

    def dtype(self, own: torch.dtype) -> torch.dtype:
        """The type to merge in, of a base that was trained on in its `own`."""

    def write(self, merged: Merged, directory: Path) -> None:
        """Write it into an empty directory. Raises `OSError` or an error of `fitune.errors`."""

    def see(self, directory: Path, rows: Sequence[Example], device: torch.device, own: torch.dtype) -> Seen:
        """What it makes of rows, read as anybody reads it; `own` is the type that was trained in."""

    def judged(self, found: Parity) -> Parity:
        """The figures with this form's own limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A plain model of transformers, in safetensors."""

    merged_in: torch.dtype
    shard_size: str = "5GB"

    option: ClassVar[str] = "--to"
    hint: ClassVar[str] = "Merge with --dtype float32 to see whether rounding alone does it"

    @property
    def file(self) -> str | None:
        """None: it is read as any model."""
        return None

    def must_take(self, trained: Trained) -> None:
        """It takes all."""

    def dtype(self, own: torch.dtype) -> torch.dtype:
        """The one that was asked for."""
        return self.merged_in

    def write(self, merged: Merged, directory: Path) -> None:
        """Weights, configuration, tokenizer and chat template."""
        merged.model.save_pretrained(str(directory), max_shard_size=self.shard_size)
        save_tokenizer(merged.tokenizer, merged.dialogue, directory)

    def see(self, directory: Path, rows: Sequence[Example], device: torch.device, own: torch.dtype) -> Seen:
        """By `from_pretrained`, in the type that is written there."""
        import transformers

        kind = "AutoModelForSequenceClassification" if gives_scores(directory) else "AutoModelForCausalLM"
        load: Any = getattr(transformers, kind).from_pretrained
        return see(load(str(directory), device_map={"": device}, trust_remote_code=False), rows)

    def judged(self, found: Parity) -> Parity:
        """As they are: the limits are those of the types."""
        return found
