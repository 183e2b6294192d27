"""Objective `reward`: a reward model, which gives an answer a score (Ouyang et al., arXiv 2203.02155, equation 1).

The model becomes transformers' own for sequence classification with one label: its output head is let go, and a linear
layer of one number is put in its place, which trains whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

from annotated_types import Ge

from fitune import Batch, ModelError, Objective, Outcome, Scores, hookimpl, unwrapped
from fitune_plugins.objectives.pairs import MEASURES, OfPairs, Pairs, smoothed

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

HEAD = "score"
"""What transformers calls the layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOptions:
    """Options of the objective `reward`."""

    center: Annotated[float, Ge(0)] = 0.0
    """Weight of the squared sum of a pair's scores beside the loss, which keeps scores around 0 (Eisenstein et al.,
    arXiv 2312.09244, who take 0.01); only differences of scores are learnt without it."""


class Reward(OfPairs):
    """`-log sigmoid(s_chosen - s_rejected)`, s the score of an answer: the head's, at its last token."""

    measures = MEASURES[:4]

    def __init__(self, options: RewardOptions) -> None:
        self.options = options

    def loss(self, model: nn.Module, batch: Batch, scores: Scores) -> Outcome:
        """The sum over pairs."""
        pairs, head = Pairs.of(batch), getattr(unwrapped(model), HEAD)
        scores_D = head(scores.last_states(model, batch)).squeeze(1).float()
        chosen, rejected = pairs.sides(scores_D)
        losses_P = smoothed(chosen - rejected, 0.0)
        if self.options.center:
            losses_P = losses_P + self.options.center * (chosen + rejected).square()
        return Outcome(loss=pairs.sum(losses_P), measures=pairs.measures(scores_D))


def _convert(options: RewardOptions, model: PreTrainedModel) -> PreTrainedModel:
    """The model with a head of one number in place of its output head."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config, base = model.config, model.base_model
    config.num_labels = 1
    try:
        with torch.device("meta"):
            scorer: Any = AutoModelForSequenceClassification.from_config(config, dtype=model.dtype)
    except ValueError as error:  # transformers has no such class
        raise ModelError(_unknown(model)) from error
    prefix = scorer.base_model_prefix
    own = {name.partition(".")[0] for name, _ in scorer.named_parameters()} - {prefix}
    if own != {HEAD} or type(getattr(scorer, prefix)) is not type(base):
        raise ModelError(_unknown(model))
    setattr(scorer, prefix, base)
    scorer.config = config
    for name, value in vars(model).items():  # what loading it has noted, e.g. how it is quantised
        vars(scorer).setdefault(name, value)
    for name, child in list(model.named_children()):
        if child is not base:
            delattr(model, name)  # its memory is free again
    _begin(scorer, next(base.parameters()).device)
    return cast("PreTrainedModel", scorer.train(model.training))


def _begin(scorer: Any, device: Any) -> None:
    """Draw the head's first weights, on the host, so that they are the same on every device."""
    import torch
    from torch import nn

    head = getattr(scorer, HEAD)
    for name, parameter in list(head.named_parameters()):
        spread = getattr(scorer.config.get_text_config(), "initializer_range", None) or 0.02
        if device.type == "meta":
            drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        else:
            drawn = torch.zeros(parameter.shape) if name == "bias" else spread * torch.randn(parameter.shape)
        setattr(head, name, nn.Parameter(drawn.to(device, parameter.dtype)))


def _unknown(model: PreTrainedModel) -> str:
    return (
        f'[objective] "reward": transformers has no {type(model).__name__} that gives a text a score (a class for '
        "sequence classification with the same decoder). Name another model"
    )


@hookimpl
def ft_objectives() -> Iterable[Objective[RewardOptions]]:
    """Offer the objective."""
    yield Objective(
        name="reward",
        summary="A reward model: a head that gives the chosen answer the higher score; it writes no text",
        options=RewardOptions,
        make=Reward,
        takes="pairs",
        convert=_convert,
        writes=False,
    )
