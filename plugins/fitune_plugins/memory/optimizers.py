"""What strategies share that make another optimizer than AdamW.

Each works on the float32 masters, which the loop has summed, clipped and will publish: an optimizer sees none
of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fitune import ModelError, Problem, Recipe, Strategy, added_modules, unwrapped

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

FEW = 64 * 2**20
"""Elements that train, at most, for all of them to be changed in few launches: that takes a copy of them, 256 MiB."""


def in_few_launches(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether so little trains that an optimizer may work on all of it at a time; else on one tensor after the other,
    which takes room for the largest of them alone.
    """
    return sum(parameter.numel() for parameter in parameters) <= FEW


def without_effect(recipe: Recipe, options: type, *keys: str) -> Iterator[Problem]:
    """Keys of `[train]` that a recipe sets, and that the optimizer of a strategy with these options does not have."""
    use = next((use for use in recipe.strategies if isinstance(use.options, options)), None)
    if use is None:
        return
    usual = {field.name: field.default for field in fields(recipe.train)}
    for key in keys:
        if getattr(recipe.train, key) != usual[key]:
            what = f'"{key}" is AdamW\'s, and the optimizer of "{use.record.name}" does not have it'
            yield Problem(key=f"train.{key}", what=what, fix="Remove it")


class OfMatrices(Strategy):
    """A strategy whose optimizer looks at whole matrices, and knows where in the model each stands."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self._model: PreTrainedModel | None = None

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Keep it until the optimizer is made, which is given masters alone."""
        self._model = model
        return model

    def of_model(self, masters: Sequence[nn.Parameter], name: str) -> list[nn.Parameter]:
        """The parameters that these masters stand for, in their order. Raises `ModelError` where any is in parts."""
        from torch.distributed.tensor import DTensor

        if self._model is None:
            return list(masters)
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._model = None
        if any(isinstance(parameter, DTensor) for parameter in trained):
            raise ModelError(
                f'"{name}" works on whole matrices, and each process has a part of those that train. Remove '
                f'[[memory.strategy]] "{name}", or what shares the weights out'
            )
        return trained


def of_tokens(model: PreTrainedModel) -> set[int]:
    """The ids of what stands for tokens, or for scores: weights of embeddings, of the output head and of other heads.

    A low-rank adapter of theirs is not among them.
    """
    from torch import nn

    inner: Any = unwrapped(model)
    found = {id(p) for m in inner.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    heads = [inner.get_output_embeddings(), *(inner.get_submodule(name) for name in added_modules(model))]
    for head in (head for head in heads if head is not None):
        weight = getattr(getattr(head, "original_module", head), "weight", None)  # not one that peft makes when asked
        found |= {id(p) for p in head.parameters() if weight is not None and p.shape == weight.shape}
    return found | {id(p) for name, p in inner.named_parameters() if ".trainable_tokens_delta." in name}
