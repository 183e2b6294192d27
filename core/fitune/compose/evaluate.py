"""Evaluation on held-out data: the loss, and answers that the model generates."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from fitune.compose.objective import ObjectiveLoss
from fitune.compose.positions import table_of
from fitune.compose.reachable import cut_by
from fitune.compose.step import all_of_it
from fitune.compose.stopping import Ends
from fitune.compose.together import together
from fitune.compose.writing import Writer
from fitune.data.prepare import batches
from fitune.plugin.dataflow import IGNORED, Batch, Example
from fitune.plugin.events import Answer, EvalReport

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fitune.plugin.dataflow import Stage
    from fitune.plugin.recipe import Evaluation


class EvaluationStopped(Exception):
    """An evaluation that was cut short: the run is asked to end."""


class Evaluator:
    """Evaluates one model on one set of held-out rows, each process its share of them."""

    def __init__(
        self,
        *,
        settings: Evaluation,
        examples: Sequence[Example],
        make_batches: Stage,
        objective: ObjectiveLoss,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        ends: Ends,
        to_the_end: bool = False,
        length: int | None = None,
        whole: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda compute: compute,
        in_step: bool = False,
        part: Callable[[Batch], Batch] = all_of_it,
        context_parallel: int = 1,
    ) -> None:
        """`whole` gives the loss, or what generates, as strategies have it; `in_step` says that each process must call
        the model as often as the others; `part` gives what of a batch is computed here, of the rows that so many
        processes share (`Plan.context_parallel`).

        Answers end at `ends`; `to_the_end` has each answer take as many tokens as it may, whatever the model says;
        `length` is what rows were cut to, where that is known.
        """
        self.length = length
        self.whole = whole
        self.in_step = in_step
        self.part = part
        self.context_parallel = context_parallel
        self.ends = ends
        self.to_the_end = to_the_end
        self._stop: Callable[[], bool] = lambda: False
        self.settings = settings
        self.examples = examples
        self.make_batches = make_batches
        self.objective = objective
        self.model = model
        self.writer = Writer(model)
        self.tokenizer = tokenizer
        self.accelerator = accelerator

    @torch.no_grad()
    def evaluate(self, step: int, stop: Callable[[], bool] = lambda: False) -> EvalReport:
        """Measure loss and exact match, each if the recipe asks for it, after `step` steps.

        `stop` is asked before each batch; raises `EvaluationStopped` where it says so.
        """
        start = time.perf_counter()
        self._stop = stop
        self.objective.tally.begin()
        self.model.eval()
        try:
            loss = self._loss() if self.settings.loss else None
            answers = self._answers() if self.settings.exact_match else ()
        finally:
            self.model.train()
        return EvalReport(
            step=step,
            loss=loss,
            rows=len(self.examples),
            targets=sum(example.targets for example in self.examples),
            seconds=time.perf_counter() - start,
            answers=answers,
            metrics=self.objective.tally.means(self.accelerator),
        )

    def _picks(self, rows: Sequence[int], sharing: int = 1) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        """This process' share of rows, in micro-batches; so many processes have the same."""
        first, every = self.accelerator.process_index // sharing, self.accelerator.num_processes // sharing
        mine = np.asarray(rows)[first::every]
        size = self.settings.micro_batch
        return [mine[at : at + size] for at in range(0, len(mine), size)]

    def _idle(self, rows: Sequence[int], sharing: int = 1) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        """What this process computes beside its share, of which nothing counts, so that all call the model as often."""
        if not self.in_step:
            return []
        every = self.accelerator.num_processes // sharing
        most = math.ceil(math.ceil(len(rows) / every) / self.settings.micro_batch)
        return [np.asarray(rows[:1])] * (most - len(self._picks(rows, sharing)))

    def _go_on(self) -> None:
        if self._stop():
            raise EvaluationStopped

    def _loss(self) -> float:
        """Mean over all held-out target tokens, or what else the objective counts."""
        device = self.accelerator.device
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        every, loss, sharing = range(len(self.examples)), self.whole(self.objective), self.context_parallel
        for batch in batches(self.examples, self._picks(every, sharing), self.make_batches):
            self._go_on()
            total += loss(self.model, self.part(batch).to(device)).double().cpu()
        with self.objective.tally.unchanged():
            for batch in batches(self.examples, self._idle(every, sharing), self.make_batches):
                loss(self.model, self.part(batch).to(device))
        together().meet()
        total = cast(Tensor, self.accelerator.reduce(total.float().to(device), reduction="sum"))
        return total.item() / self.objective.units(self.examples)

    def _answers(self) -> tuple[Answer, ...]:
        """An answer to each held-out prompt, by greedy decoding."""
        from accelerate.utils import gather_object

        parts = [split_answer(example) for example in self.examples]
        by_length = sorted(range(len(parts)), key=lambda row: len(parts[row][0]))
        found: list[tuple[int, Answer]] = []
        with no_defaults(self.model):
            for pick in self._picks(by_length):
                self._go_on()
                prompts = [parts[row][0] for row in pick]
                for row, text in zip(pick, self._generate(prompts), strict=True):
                    found.append((int(row), self._answer(int(row), parts[row], text)))
            for pick in self._idle(by_length):
                self._generate([parts[row][0] for row in pick])
        together().meet()
        everybody = gather_object(found) if self.accelerator.num_processes > 1 else found
        return tuple(answer for _, answer in sorted(everybody, key=lambda pair: pair[0]))

    def _answer(self, row: int, parts: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]], generated: str) -> Answer:
        prompt, whole = (str(self.tokenizer.decode(part, skip_special_tokens=True)) for part in parts)
        expected = self.ends.without(whole)
        most, by_text = self.settings.max_new_tokens, expected != whole
        cut = cut_by(self.examples[row], parts[1], self.ends.tokens, most, self.length, by_text=by_text)
        return Answer(prompt=prompt, expected=expected, generated=generated, cut=cut)

    def _generate(self, prompts: Sequence[np.ndarray[Any, Any]]) -> list[str]:
        from transformers import GenerationConfig

        longest, most = max(len(p) for p in prompts), self.settings.max_new_tokens
        table = table_of(self.model)
        if table is not None and longest + most > table:  # each to the table's end, which is elsewhere for each
            if len(prompts) > 1 and not self.in_step:
                return [text for prompt in prompts for text in self._generate([prompt])]
            most = max(1, table - longest)
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(prompts), longest), pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, longest - len(prompt) :] = 1
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=most,
            min_new_tokens=most if self.to_the_end else None,
            eos_token_id=list(self.ends.tokens) or None,
            pad_token_id=pad,
        )
        out = self.whole(self.writer.write)(
            config,
            synced_gpus=self.in_step,
            input_ids=ids.to(self.accelerator.device),
            attention_mask=mask.to(self.accelerator.device),
            **({} if self.to_the_end else self.ends.arguments(self.tokenizer, longest)),
        )
        texts = self.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
        return [self.ends.cut(str(text)) for text in texts]


@contextlib.contextmanager
def no_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Keep the model's own generation settings out: a repetition penalty, say, would make decoding not greedy."""
    from transformers import GenerationConfig

    unwrap = getattr(model, "get_base_model", None)  # peft's wrapper hands the inner model's settings on
    inner = unwrap() if unwrap is not None else model
    before = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = before


def split_answer(example: Example) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Tokens before the last run of trained tokens, and that run: the prompt, and the answer to it.

    The prompt has one token at least: the first token of a row is predicted by none. Of a row with several documents,
    the first: of a pair, the chosen answer.
    """
    trained = np.flatnonzero(example.labels[: example.lengths[0] if example.lengths else None] != IGNORED)
    breaks = np.flatnonzero(np.diff(trained) > 1)
    first = max(1, trained[breaks[-1] + 1] if len(breaks) else trained[0])
    return example.input_ids[:first], example.input_ids[first : trained[-1] + 1]
