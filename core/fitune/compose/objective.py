"""A recipe's objective at work: what it may ask of the model, its loss over a batch, and what it measures on the way.

Nothing here waits for the device: a micro-batch is launched whole, and what was measured is read once a step.
Shapes: B rows, S tokens, D documents of all rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fitune.compose.calling import call_plugin
from fitune.compose.criterion import must_be_criterion, outcome_of, units_of
from fitune.compose.loss import plain_log_probs, plain_loss
from fitune.compose.masks import unasked
from fitune.errors import ModelError, PluginError
from fitune.plugin.dataflow import IGNORED, Batch, Example
from fitune.plugin.model import unwrapped
from fitune.plugin.objective import Criterion, Measure
from fitune.plugin.recipe import Recipe
from fitune.plugin.strategy import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from fitune.plugin.strategy import Loss

REFERENCE = "reference"
"""The extra of a batch that holds the log-probabilities of the model before training, where they were prepared."""

WORDS = {"loss": "losses of tokens", "log_probs": "log-probabilities"}
"""What a strategy may give, for a person."""

Replaced = Sequence[tuple[str, str]]
"""As `Plan.replaced`."""

Off = Callable[["PreTrainedModel"], "contextlib.AbstractContextManager[object]"]


class RunScores:
    """What the model of a run says of a batch (`fitune.Scores`)."""

    def __init__(self, loss: Loss, log_probs: Loss, off: Off | None) -> None:
        """`log_probs` gives those of single tokens; `off` makes the model what it was before training, None where the
        batches say what that gave.
        """
        self.token_loss = loss
        self._log_probs = log_probs
        self._off = off
        self.asked: set[str] = set()
        """What of it the objective has asked for, by the names of `Plan`."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """As `fitune.Scores` has it."""
        self.asked.add("loss")
        return self.token_loss(model, batch)

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        """As `fitune.Scores` has it."""
        self.asked.add("log_probs")
        return by_document(self._log_probs(model, batch), batch)

    def reference(self, model: nn.Module, batch: Batch) -> Tensor:
        """As `fitune.Scores` has it: without dropout, too."""
        if self._off is None and REFERENCE not in batch.extras:
            raise PluginError(
                "the objective asks for a reference, and its record does not say that it needs one "
                "(fitune.Objective.needs_reference)"
            )
        if self._off is None:
            return batch.extras[REFERENCE]
        training = model.training
        with torch.no_grad(), self._off(cast("PreTrainedModel", model)):
            model.eval()
            try:
                return self.log_probs(model, batch)
            finally:
                model.train(training)

    def last_states(self, model: nn.Module, batch: Batch) -> Tensor:
        """As `fitune.Scores` has it."""
        inner = unwrapped(model)
        padding = inner.config.get_text_config().pad_token_id
        hidden_BSH = cast(Any, inner.base_model)(**batch.inputs())[0]
        return cast(Tensor, hidden_BSH.flatten(0, 1)[last_tokens(batch, padding)])

    def targets(self, batch: Batch) -> Tensor:
        """As `fitune.Scores` has it."""
        counted = (batch.labels[:, 1:] != IGNORED).float()
        return by_document(torch.nn.functional.pad(counted, (1, 0)), batch)


def by_document(values_BS: Tensor, batch: Batch) -> Tensor:
    """Sums of float32 values over each document, `[D]`, in float32; documents of no token have 0.

    They are summed in float64, so that the order in which a GPU adds them changes no bit of what is rounded, or hardly
    ever one.
    """
    if batch.begin is not None:
        raise ModelError(
            "the objective asks for what documents say as a whole, of which each process has a part. Remove the "
            "[[memory.strategy]] that splits rows over processes"
        )
    if batch.positions is None:
        return values_BS.double().sum(1).float()
    sums = torch.zeros(_documents(batch), dtype=torch.float64, device=values_BS.device)
    return sums.index_add(0, _places(batch.positions), values_BS.flatten().double()).float()


def _documents(batch: Batch) -> int:
    """How many there are in rows of several."""
    return len(batch.lengths) if batch.ends is None else len(batch.ends) - 1


def _places(positions: Tensor) -> Tensor:
    """The document that each token of all rows is in: no question to the device, for each begins at position 0."""
    return (positions.flatten() == 0).cumsum(0) - 1


def last_tokens(batch: Batch, padding: int | None) -> Tensor:
    """Where the last token of each document is that is not `padding`, among those of all rows: `[D]`, int64; 0 for a
    document that has none.
    """
    ids = batch.input_ids
    tokens = torch.arange(ids.numel(), device=ids.device)
    tokens = tokens * (ids.flatten() != (-1 if padding is None else padding))
    if batch.positions is None:
        return tokens.view(ids.shape).amax(1)
    found = torch.zeros(_documents(batch), dtype=torch.int64, device=ids.device)
    return found.scatter_reduce(0, _places(batch.positions), tokens, reduce="amax")


class Tally:
    """Sums of what an objective measures, on the device, over the micro-batches of a step or an evaluation."""

    def __init__(self, names: Sequence[str] = (), device: torch.device | str = "cpu") -> None:
        self.names = tuple(names)
        self._sums = torch.zeros((len(names), 2), dtype=torch.float32, device=device) if names else None

    def begin(self) -> None:
        """Forget everything."""
        if self._sums is not None:
            self._sums.zero_()  # where they are: what is recorded adds to them there

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """While this lasts, what is measured is not added."""
        kept = None if self._sums is None else self._sums.clone()
        yield
        if kept is not None and self._sums is not None:
            self._sums.copy_(kept)

    def add(self, measures: Mapping[str, Measure]) -> None:
        """Add those of a micro-batch."""
        if self._sums is None:
            return
        nothing = self._sums.new_zeros(())
        numbers = [number for name in self.names for number in measures.get(name, (nothing, nothing))]
        self._sums += torch.stack([number.detach().float() for number in numbers]).view(-1, 2)

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes, which must all ask; without those of nothing. Waits for the device."""
        if self._sums is None:
            return {}
        sums = cast(Tensor, accelerator.reduce(self._sums.clone(), reduction="sum")).tolist()
        return {name: total / count for name, (total, count) in zip(self.names, sums, strict=True) if count}


class ObjectiveLoss:
    """The loss of an objective over a batch, as steps and evaluations call it: a sum, a float32 scalar."""

    def __init__(
        self, criterion: Criterion, scores: RunScores, device: torch.device, *, replaced: Replaced = (), name: str = ""
    ) -> None:
        """`replaced` is the plan's; `name` the objective's."""
        self._replaced, self._name = replaced, name
        self.criterion = criterion
        self.scores = scores
        self.tally = Tally(criterion.measures, device)
        self._compute = unasked(self._measured)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute it, and add what is measured to `tally`."""
        return self._compute(model, batch)

    def units(self, examples: Sequence[Example]) -> int:
        """What the sum over these examples is divided by."""
        return units_of(self.criterion, self._name, examples)

    def without_effect(self) -> tuple[str, ...]:
        """Which strategies give what the objective did not ask for, once it has been computed, and once only."""
        given: dict[str, list[str]] = {}
        for name, what in self._replaced:
            given.setdefault(name, []).append(what)
        self._replaced = ()
        idle = {name: whats for name, whats in given.items() if not self.scores.asked.intersection(whats)}
        return tuple(_idle(name, whats, self._name, self.scores.asked) for name, whats in idle.items())

    def _measured(self, model: nn.Module, batch: Batch) -> Tensor:
        outcome = outcome_of(self.criterion, self._name, model, batch, self.scores)
        self.tally.add(outcome.measures)
        return outcome.loss


def _idle(name: str, given: Sequence[str], objective: str, asked: Collection[str]) -> str:
    """What the user is to know of a strategy that gives what nobody asks for."""
    plain = f"; {WORDS['log_probs']} are computed over the full logits" if "log_probs" in asked else ""
    what = " and ".join(WORDS[one] for one in given)
    return f'{name} has no effect here: it changes how {what} are computed, and "{objective}" asks for none{plain}'


def objective_of(recipe: Recipe, plan: Plan, device: torch.device) -> ObjectiveLoss:
    """The loss of a recipe's objective, computed as its memory strategies have planned. Raises `PluginError`."""
    use = recipe.objective
    criterion = must_be_criterion(call_plugin(use, use.record.make, use.options), use.record.name)
    off = recipe.adapter.record.off if use.reference == "adapter-off" else None
    scores = scores_of(plan, off)
    return ObjectiveLoss(criterion, scores, device, replaced=plan.replaced, name=use.record.name)


def scores_of(plan: Plan, off: Off | None = None) -> RunScores:
    """What a model with this plan says of batches."""
    return RunScores(plan.loss or plain_loss, plan.log_probs or plain_log_probs, off)
