"""Text from a trained model: the prompt as it was trained on, the answer as it comes, up to where it ends itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from fitune.compose.positions import known_by, table_of
from fitune.compose.stopping import Ends, added_behind, ends_of
from fitune.compose.writing import Writer
from fitune.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer

    from fitune.plugin.records import Dialogue

Messages = Sequence[Mapping[str, Any]]

TRIED = 4
"""Tokens of a prompt that are read to see whether the model's cache works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 256
    """Most tokens of an answer."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; higher is more random."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn from."""


class Generator:
    """Writes answers with one model."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dialogue: Dialogue | None,
        sampling: Sampling,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Without a dialogue, the model goes on with plain text. `note` gets what the user should know."""
        self.model, self.tokenizer, self.dialogue, self.sampling = model, tokenizer, dialogue, sampling
        self._ends = ends_of(tokenizer, dialogue)
        self._note, self._writer, self._tried = note, Writer(model), False

    def answer(self, messages: Messages, tell: Callable[[str], None]) -> str:
        """The model's answer to messages, or what it writes behind the last one; `tell` gets it piece by piece.

        Raises `DataError` for messages that the template refuses, `RunError` for those that are too long.
        """
        import torch

        ids = self.tokens(messages)
        room = self._room(len(ids))
        device = self.model.device
        prompt = torch.tensor([ids], device=device)
        with torch.no_grad(), self._own_settings():
            self._try(prompt)
            out = self._writer.write(
                self._config(room),
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                streamer=_streamer(self.tokenizer, self._ends, tell),
                **self._ends.arguments(self.tokenizer, len(ids)),
            )
        return self._ends.cut(str(self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)))

    def _try(self, prompt: Tensor) -> None:
        """Write two tokens, once, so that a cache that fails is known before anything is told."""
        from transformers import GenerationConfig

        if self._tried:
            return
        self._tried, few = True, prompt[:, : max(1, min(TRIED, prompt.shape[1] - 2))]
        short = GenerationConfig(max_new_tokens=2, min_new_tokens=2, pad_token_id=self.tokenizer.pad_token_id)
        self._writer.write(short, input_ids=few, attention_mask=few.new_ones(few.shape))
        if self._writer.uncached:
            self._note(self._writer.uncached)

    def tokens(self, messages: Messages) -> list[int]:
        """What the model is given, tokenized as in training."""
        tokenizer: Any = self.tokenizer
        if self.dialogue is not None:  # the template has written the special tokens
            return list(tokenizer(self.dialogue.prompt(messages), add_special_tokens=False)["input_ids"])
        ids = list(tokenizer(messages[-1]["content"])["input_ids"])
        ids = ids[: len(ids) - len(added_behind(tokenizer))]
        if not ids and tokenizer.bos_token_id is None:
            raise RunError("the prompt is empty, and the tokenizer has no token that begins a text. Write something")
        return ids or [tokenizer.bos_token_id]

    def _room(self, prompt: int) -> int:
        """Tokens that may be written. Raises `RunError` if the prompt takes all that the model knows positions of."""
        most = table_of(self.model) or known_by(self.model)
        if most is None:
            return self.sampling.max_new_tokens
        if prompt >= most:
            raise RunError(f"the prompt has {prompt} tokens, and the model takes {most} in all. Shorten it")
        return min(self.sampling.max_new_tokens, most - prompt)

    def _config(self, room: int) -> Any:
        from transformers import GenerationConfig

        sampling = self.sampling
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=room,
            do_sample=sampling.temperature > 0,
            eos_token_id=list(self._ends.tokens) or None,
            pad_token_id=self.tokenizer.pad_token_id,
            **(drawn if sampling.temperature > 0 else {}),
        )

    def _own_settings(self) -> Any:
        from fitune.compose.evaluate import no_defaults

        return no_defaults(self.model)


def _streamer(tokenizer: PreTrainedTokenizerBase, ends: Ends, tell: Callable[[str], None]) -> BaseStreamer:
    """Tells of whole words, since one character may come in several tokens, and not of what ends the answer."""
    from transformers import TextStreamer

    class Telling(TextStreamer):
        held = ""
        """What may be the beginning of an end."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            """Hand the text on; transformers' own prints it."""
            whole = self.held + text
            known = ends.cut(whole)
            kept = 0 if known != whole or stream_end else ends.begun(whole)
            self.held = whole[len(known) - kept :]
            if known[: len(known) - kept]:
                tell(known[: len(known) - kept])

    return Telling(cast(Any, tokenizer), skip_prompt=True, skip_special_tokens=True)
