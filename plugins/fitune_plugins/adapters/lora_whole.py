"""Modules that train whole beside a low-rank adapter (peft's `modules_to_save`): which are meant, and which are one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fitune import ModelError, nearest
from fitune_plugins.adapters.lora_places import plain_modules

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What trains whole, by full names."""

    modules: tuple[str, ...] = ()
    tied: bool = False
    """Whether embeddings are among them that are the output head too, and stay so."""


def find_whole(asked: Sequence[str], model: PreTrainedModel) -> Whole:
    """The modules that a recipe's `modules_to_save` names. Raises `ModelError` for a name that none has, and for what
    cannot train.
    """
    every = plain_modules(model)
    found: dict[str, None] = {}
    for name in asked:
        named = [one for one in every if one == name or one.endswith(f".{name}")]
        if not named:
            known = {one.rpartition(".")[2] for one, module in every.items() if not list(module.children())}
            raise ModelError(f'[adapter] modules_to_save: the model has no module "{name}". {nearest(name, known)}')
        for one in named:
            _must_train(one, every[one])
        found |= dict.fromkeys(named)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(embeddings, "weight", None)
    chosen = {id(every[name]) for name in found}
    return Whole(modules=tuple(found), tied=tied and bool({id(embeddings), id(head)} & chosen))


def _must_train(name: str, module: nn.Module) -> None:
    weights = list(module.parameters())
    if not weights:
        raise ModelError(f'[adapter] modules_to_save: "{name}" has no weights. Leave it out')
    if not all(weight.is_floating_point() for weight in weights):
        raise ModelError(f'[adapter] modules_to_save: "{name}" is quantised, and cannot train whole. Leave it out')


def whole_names(inner: PreTrainedModel) -> list[str]:
    """The modules of an adapted model that train whole, by the ends of their names."""
    from peft.utils.other import ModulesToSaveWrapper

    found = [name for name, module in inner.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in found))


def row_names(inner: PreTrainedModel) -> list[str]:
    """The modules of an adapted model in which the rows of new tokens train, by the ends of their names."""
    from peft.utils.other import TrainableTokensWrapper

    found = [name for name, module in inner.named_modules() if isinstance(module, TrainableTokensWrapper)]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in found))
